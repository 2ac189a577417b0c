"""What every kind of answer has to say of itself."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.run_context import RunContext
from commentree.models.conditions import apply_condition
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.tasks.config.objective import TARGET_NUMBERS
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.forests.packing import Forest
from commentree.tasks.trees.comment_tree import CommentTree

Answer = dict[str, Any]
"""What is said of a comment; JSON-able, but for arrays of NumPy."""

D = TypeVar("D", bound=TokenizedTree)


class Mode(abc.ABC, Generic[D]):
  """A kind of answer.

  Attributes:
    name: what `--mode` calls it.
    run: what is known of the run.
    ancestors: which ancestors comments see.
    shape: what its forests hold.
  """

  name: str

  def __init__(self, run: RunContext, ancestors: Condition = "true"):
    """Sets up; subclasses check what the user asked for."""
    self.run = run
    self.ancestors = ancestors
    self.shape = self.make_shape()

  @property
  def program_key(self) -> Hashable:
    """Equal for modes of one run with the same computation."""
    return self.name, self.ancestors

  @property
  def note(self) -> str:
    """What the user should know before the first answer; "" for nothing."""
    return ""

  def prepare(self, documents: Callable[[Iterable[CommentTree]], Iterator[D]]) -> None:
    """Does what has to be done before the first answer; nothing, as a rule.

    Args:
      documents: returns documents of trees, with all collected that is computed.
    """

  def summary(self, answers: Iterable[Answer]) -> str:
    """Returns what is to be said of all answers, in one line; "" for nothing."""
    del answers
    return ""

  @abc.abstractmethod
  def make_shape(self) -> ForestShape:
    """Returns what forests hold."""

  @abc.abstractmethod
  def read(self, tree: CommentTree) -> D:
    """Makes a document of a tree."""

  @abc.abstractmethod
  def items(self, document: D) -> Iterator[PackItem]:
    """Yields what is to be computed of a document."""

  def arrays(self, filled: PackedForest) -> Forest:
    """Returns what the computation of a forest is given."""
    return filled.forest

  @abc.abstractmethod
  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns the computation of a forest; traced once."""

  @abc.abstractmethod
  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in what was computed of a forest, into the documents it is of."""

  @abc.abstractmethod
  def answers(self, document: D) -> list[Answer]:
    """Returns one answer a comment, once all is collected."""

  def shape_of(
    self,
    predicted_per_row: int,
    optional_features: tuple[str, ...] = (),
    encoded_share: float = 0.6,
  ) -> ForestShape:
    """Returns the shape of forests, by the run's settings; see `forests.shape_for`."""
    data = self.run.config.data
    objective = self.run.builder.preprocessing.objective
    # Numbers are found here, not given.
    given = [name for name in objective.optional_features if name != TARGET_NUMBERS]
    return forests.shape_for(
      data.layout,
      data.task_feature_lengths,
      predicted_per_row,
      (*optional_features, *given),
      encoded_share,
    )

  def hide(self, batch: Any) -> Any:
    """Returns a batch with the ancestors that comments are to see."""
    return apply_condition(batch, self.ancestors)


def rounded(value: float) -> float:
  """A number as it is written: six digits."""
  return float(f"{value:.6g}")
