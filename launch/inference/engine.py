"""A run's model, ready to answer: from trees to answers, a chunk at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from commentree.launch.inference import forests
from commentree.launch.inference.devices import Devices, Program
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.modes.base import Answer, Mode
from commentree.launch.inference.run_context import RunContext
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.packing import Forest, empty_forest
from commentree.tasks.trees.comment_tree import CommentTree
from commentree.training.checkpointing import (
  checkpoint_choice,
  checkpoints,
  run_record,
  storage,
)

T = TypeVar("T")

_TREES_AT_ONCE = 256


class Engine:
  """A model with its parameters on this process's devices.

  Attributes:
    run: what is known of the run.
    step: of the checkpoint.
    path: of the checkpoint.
    devices: where the parameters are.
  """

  def __init__(self, run: RunContext, step: int | Literal["best"] | None = None):
    """Reads a checkpoint; all hosts do it together.

    Args:
      run: what is known of the run.
      step: which checkpoint; the newest if None.

    Raises:
      UserError: if there is no such checkpoint, or it is of another model or
        vocabulary.
    """
    self.run = run
    train = run.config.train
    folder = storage.as_path(train.model_dir)
    self.step = checkpoint_choice.choose(folder, step, train.checkpoint.best_metric)
    self.path = checkpoints.path_of(folder, self.step)
    vocabulary = {"vocabulary": run.tokenizer.fingerprint}
    run_record.check_vocabulary(self.path, vocabulary)
    data = run.config.data
    shape = forests.shape_for(data.layout, data.task_feature_lengths, 8)
    example = {name: values[None] for name, values in empty_forest(shape).items()}
    self.devices = Devices(
      CommentTreeModel(run.model_config),
      train.partitioning,
      lambda like: checkpoints.restore_params(self.path, like),
      example,
    )

  def program(self, mode: Mode) -> Program:
    """Returns the computation of a mode's forests, to be compiled at its first one."""
    return self.devices.program(mode.compute(self.devices.model))

  def answers(
    self,
    mode: Mode,
    program: Program,
    chunks: Iterable[tuple[Sequence[CommentTree], T]],
    ahead: int | None = None,
    tick: Callable[[], None] = lambda: None,
    watch: Callable[[PackedForest, T], None] = lambda filled, beside: None,
  ) -> Iterator[tuple[list[list[Answer]], T]]:
    """Yields the answers of chunks of trees, by tree and comment, in order.

    Args:
      mode: the kind of answer.
      program: its `program`.
      chunks: trees, each time with what is to come out beside their answers.
      ahead: forests that are begun before the first is waited for; None for two a
        group of devices. It changes nothing in the answers.
      tick: called for every forest; what it raises ends the work.
      watch: called with every forest that is computed, and what was given beside the
        trees of its chunk.
    """
    found = self._documents(mode, program, chunks, ahead, tick, watch)
    for documents, beside in found:
      yield [mode.answers(document) for document in documents], beside

  def prepare(
    self,
    mode: Mode,
    program: Program,
    ahead: int | None = None,
    tick: Callable[[], None] = lambda: None,
  ) -> None:
    """Does what a mode has to do before its first answer; see `answers`."""

    def documents(trees: Iterable[CommentTree]) -> Iterator[Any]:
      rest = iter(trees)
      chunks = iter(lambda: list(itertools.islice(rest, _TREES_AT_ONCE)), [])
      numbered = ((chunk, None) for chunk in chunks)
      for found, _ in self._documents(mode, program, numbered, ahead, tick):
        yield from found

    mode.prepare(documents)

  def _documents(
    self,
    mode: Mode,
    program: Program,
    chunks: Iterable[tuple[Sequence[CommentTree], T]],
    ahead: int | None,
    tick: Callable[[], None],
    watch: Callable[[PackedForest, T], None] = lambda filled, beside: None,
  ) -> Iterator[tuple[list[Any], T]]:
    """Yields the documents of chunks of trees once all is collected."""
    laid_out = self._lay_out(mode, chunks)
    for arrays, (filled, documents, beside) in program.over(laid_out, ahead):
      tick()
      if filled is not None:
        mode.collect(arrays, filled)
        watch(filled, beside)
      else:
        yield documents, beside

  def _lay_out(
    self, mode: Mode, chunks: Iterable[tuple[Sequence[CommentTree], T]]
  ) -> Iterator[tuple[Forest | None, tuple[PackedForest | None, list[Any], T]]]:
    """Yields forests, and after the last of each chunk its documents."""
    for trees, beside in chunks:
      documents = [mode.read(tree) for tree in trees]
      items = (item for document in documents for item in mode.items(document))
      for filled in forests.fill(items, mode.shape):
        yield mode.arrays(filled), (filled, [], beside)
      yield None, (None, documents, beside)
