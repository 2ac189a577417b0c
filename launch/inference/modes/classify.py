"""`classify`: a label for each comment."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from commentree.launch.inference import forests
from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import EMPTY, TokenizedTree
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode, rounded
from commentree.launch.inference.run_context import RunContext
from commentree.models.config import Condition
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.objectives import label_objectives
from commentree.tasks.trees.comment_tree import CommentTree


@dataclasses.dataclass(frozen=True, eq=False)
class AnsweredDocument(TokenizedTree):
  """A tree and what is predicted of its comments.

  Attributes:
    found: by comment, as the mode computes it.
  """

  found: dict[int, np.ndarray]


class OfComments(Mode[AnsweredDocument]):
  """A mode that predicts one thing of each comment, at its first token."""

  def make_shape(self) -> ForestShape:
    """Returns what forests hold: a prediction a comment."""
    return self.shape_of(self.run.decoder_length)

  def read(self, tree: CommentTree) -> AnsweredDocument:
    """Makes a document of a tree."""
    return AnsweredDocument.read(tree, self.run.builder, found={})

  def items(self, document: AnsweredDocument) -> Iterator[PackItem]:
    """Yields every comment once; of one in chunks the first, as in training."""
    nodes = document.subtree()
    asked = (nodes["lengths"] > 0) & (document.firsts == 0)
    for subtree in forests.cut(nodes, asked, self.run.builder.preprocessing.subtrees):
      subtree["input_tokens"] = subtree["tokens"]
      subtree["is_masked"] = (forests.columns(subtree["lengths"]) == 0).astype(np.int32)
      yield from forests.items_of(subtree, self.shape)

  def collect(self, arrays: Any, filled: PackedForest) -> None:
    """Takes in the predictions of a forest."""
    for row, column, target, _ in filled.predicted():
      document, node = filled.targets[target]
      document.found[document.comment_of(node)] = arrays[row, column]

  def answers(self, document: AnsweredDocument) -> list[Answer]:
    """Returns an answer for each comment."""
    return [
      self.answer(document.found.get(comment))
      for comment in range(len(document.tree.comments))
    ]

  @abc.abstractmethod
  def answer(self, found: np.ndarray | None) -> Answer:
    """Returns what is said of a comment; None is found of one without text."""


class Classify(OfComments):
  """The likeliest label of each comment, and the probabilities of all."""

  name = "classify"

  def __init__(self, run: RunContext, ancestors: Condition = "true"):
    """Sets up."""
    super().__init__(run, ancestors)
    self._names = label_objectives.label_names(
      run.config.data.preprocessing, run.config.data.objective_names[0]
    )

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns the probabilities of all labels, `[B, G, M, C]`."""

    def compute(params: Any, batch: Any) -> Any:
      _, beside = model.predict_batch_with_aux(params, self.hide(batch))
      return beside["probabilities"]

    return compute

  def answer(self, found: np.ndarray | None) -> Answer:
    """Returns `label` and `probabilities`."""
    if found is None:
      return {"label": None, "probabilities": None, "why": EMPTY}
    return {
      "label": self._names[int(found.argmax())],
      "probabilities": {
        name: rounded(p) for name, p in zip(self._names, found.tolist())
      },
    }
