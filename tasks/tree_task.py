"""A task over comment trees, as the trainer knows it: without SeqIO.

`seqio_tasks/registry.py` makes a SeqIO task of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Generic, TypeVar

from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.objectives import objectives
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.vocabulary import vocabularies


class TreeTask:
  """Where trees come from, how they become subtrees, and what is predicted of them.

  Attributes:
    tree_source: where the trees come from.
    tokenizer: text to token ids.
    preprocessing: the settings.
  """

  def __init__(
    self,
    name: str,
    tree_source: TreeSource,
    tokenizer: vocabularies.Tokenizer,
    preprocessing: PreprocessingConfig,
  ):
    """Reads and trains nothing yet.

    Args:
      name: of the task.
      tree_source: where the trees come from.
      tokenizer: text to token ids.
      preprocessing: the settings.
    """
    self._name = name
    self.tree_source = tree_source
    self.tokenizer = tokenizer
    self.preprocessing = preprocessing

  @property
  def name(self) -> str:
    """What the task is called, among SeqIO's too."""
    return self._name

  @property
  def splits(self) -> Sequence[str]:
    """The splits there are."""
    return self.tree_source.splits

  def subtree_builder(self) -> SubtreeBuilder:
    """A fresh builder, its counts at zero."""
    return SubtreeBuilder(self.tokenizer, self.preprocessing)

  def objective(self) -> objectives.Objective:
    """What is predicted of this task's comments.

    Raises:
      UserError: if its vocabulary lacks a token that the objective needs.
    """
    return objectives.build(self.preprocessing, self.tokenizer)


Task = TypeVar("Task", bound=TreeTask, covariant=True)


@dataclasses.dataclass(frozen=True)
class MixedTask(Generic[Task]):
  """A task, and its share of what it is mixed into: 1 if it stands alone."""

  task: Task
  share: Fraction
