"""Batches whose order is a pure function of the run's seed and the step.

The data is dealt over a fixed number of *streams*, regardless of the number of hosts:
stream i of N reads positions i, i+N, i+2N… of an endless shuffled order, of one task
or of several in turns (see `mixing`), packs its own forests from its own pool, and
always fills the same rows of the global batch. A host owns whole streams. What a stream
has read is a position and the keys of its pool, a few numbers: resuming seeks, and
replays nothing.

This is the trainer's way to a forest, by index; SeqIO and T5X take the same subtrees
as a stream (`seqio_tasks/`). See docs/architecture.md.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from commentree.errors import UserError
from commentree.tasks.forests import packing
from commentree.tasks.forests.forest_layout import ForestShape, PackSizes, SubtreeTotals
from commentree.tasks.forests.mixing import MixtureSampler
from commentree.tasks.forests.pack_items import PackItem, measure
from commentree.tasks.forests.packing import Forest, Packer, Waiting
from commentree.tasks.forests.shuffling import EpochShuffle
from commentree.tasks.forests.stream_shares import own_streams
from commentree.tasks.objectives import objectives
from commentree.tasks.objectives.objectives import Objective
from commentree.tasks.subtrees.subtree_builder import Subtree

Batch = dict[str, np.ndarray]

_POOLS_AN_EPOCH = 4


@dataclasses.dataclass(frozen=True)
class SubtreeSource:
  """A task's part of the training data.

  Attributes:
    records: its subtrees, by index.
    objective: says what is to be predicted of them.
    share: its share of the subtrees read; the shares of all sources add up to 1.
  """

  records: Sequence[Subtree]
  objective: Objective
  share: Fraction = Fraction(1)


class ForestStream:
  """One stream of forests, endless and resumable."""

  def __init__(
    self,
    sources: Sequence[SubtreeSource],
    shape: ForestShape,
    *,
    seed: int,
    stream: int,
    num_streams: int,
    lookahead: int,
  ):
    """Starts at the beginning.

    Args:
      sources: what is read, in turns; subtrees of all may share a forest.
      shape: what a forest holds.
      seed: seed of the run, for order and masks.
      stream: which stream this is, from 0.
      num_streams: how many there are over all hosts.
      lookahead: subtrees in the pool.
    """
    self._sources = sources
    self._shape = shape
    self._seed = seed
    self._stream = stream
    self._num_streams = num_streams
    self._order = MixtureSampler(
      [len(source.records) for source in sources], [s.share for s in sources], seed
    )
    # A pool of more than an epoch would show some subtrees several times before others.
    epoch = sum(len(source.records) for source in sources) // num_streams
    self._packer = Packer(shape, lookahead, epoch // _POOLS_AN_EPOCH)
    self._next = 0

  def _items(self, position: int) -> list[PackItem]:
    number, epoch, index = self._order[position * self._num_streams + self._stream]
    source = self._sources[number]
    subtree = source.objective(
      source.records[index], self._shape.decoder_length, self._seed, epoch, index
    )
    return list(packing.fitting_items(subtree, self._shape))

  def __next__(self) -> Forest:
    barren = 0
    while self._packer.wants_more():
      items = self._items(self._next)
      self._packer.pool += [
        Waiting((self._next, k), item) for k, item in enumerate(items)
      ]
      self._next += 1
      barren = 0 if items else barren + 1
      if barren > sum(len(source.records) for source in self._sources):
        raise UserError("the data holds no comment with a token to predict")
    return self._packer.next_forest()

  def get_state(self) -> dict[str, Any]:
    """Where the stream stands, as JSON-able numbers."""
    pool = [[*waiting.key, waiting.first] for waiting in self._packer.pool]
    return {"next": self._next, "pool": pool}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to where `get_state` was called; reads the pool again, nothing else."""
    self._next = state["next"]
    items: dict[int, list[PackItem]] = {}
    pool = []
    for position, number, first in state["pool"]:
      if position not in items:
        items[position] = self._items(position)
      waiting = Waiting((position, number), items[position][number])
      pool.append(waiting.after(first) if first else waiting)
    self._packer.pool = pool


class TrainForests:
  """This host's rows of the global batches, endless and resumable."""

  def __init__(
    self,
    sources: Sequence[SubtreeSource],
    shape: ForestShape,
    *,
    batch_size: int,
    seed: int,
    lookahead: int,
    host: int = 0,
    num_hosts: int = 1,
  ):
    """Starts at step 0.

    Args:
      sources: what is read: a task, or those of a mixture.
      shape: what a forest holds.
      batch_size: forests in a global batch.
      seed: seed of the run.
      lookahead: subtrees in each stream's pool.
      host: this process.
      num_hosts: all processes.

    Raises:
      UserError: if the hosts do not divide the streams.
    """
    own, num_streams = own_streams(batch_size, host, num_hosts)
    self._rows_per_stream = batch_size // num_streams
    self._streams = {
      stream: ForestStream(
        sources,
        shape,
        seed=seed,
        stream=stream,
        num_streams=num_streams,
        lookahead=lookahead,
      )
      for stream in own
    }

  def __iter__(self) -> TrainForests:
    return self

  def __next__(self) -> Batch:
    return stack(
      [
        next(stream)
        for stream in self._streams.values()
        for _ in range(self._rows_per_stream)
      ]
    )

  def get_state(self) -> dict[str, Any]:
    """The state after the batch last returned, JSON-able; keyed by stream."""
    return {str(key): stream.get_state() for key, stream in self._streams.items()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to where `get_state` was called; other hosts' streams are passed over.

    Raises:
      UserError: if a stream of ours is missing, as after a change of BATCH_SIZE.
    """
    for key, stream in self._streams.items():
      if str(key) not in state:
        raise UserError(
          f"the checkpoint's data state lacks stream {key}: was BATCH_SIZE changed?"
        )
      stream.set_state(state[str(key)])


def eval_batches(
  records: Sequence[Subtree],
  objective: Objective,
  shape: ForestShape,
  *,
  batch_size: int,
  seed: int,
  lookahead: int,
  host: int = 0,
  num_hosts: int = 1,
) -> Iterator[Batch]:
  """This host's rows of batches that hold every subtree once, always alike.

  Dealt over the same streams as training, regardless of the number of hosts. Rows whose
  stream has ended are padding; a host's batches end with its last stream, and there is
  at least one.

  Args:
    records: subtrees of the held-out split.
    objective: says what is to be predicted.
    shape: what a forest holds.
    batch_size: forests in a global batch.
    seed: seed of the evaluation, not of the run: runs stay comparable.
    lookahead: subtrees that each stream holds back to choose from.
    host: this process.
    num_hosts: all processes.

  Raises:
    UserError: if the hosts do not divide the streams.
  """
  own, num_streams = own_streams(batch_size, host, num_hosts)
  # Shuffled, so that a limit takes a fair sample rather than the head of a file.
  order = EpochShuffle(len(records), seed)

  def forests(stream: int) -> Iterator[Forest]:
    places = map(order.__getitem__, range(stream, len(records), num_streams))
    masked = (
      objective(records[index], shape.decoder_length, seed, epoch, index)
      for epoch, index in places
    )
    return packing.pack(masked, shape, lookahead)

  streams = [forests(stream) for stream in own]
  padding = packing.empty_forest(shape)
  rows_per_stream = batch_size // num_streams
  for number in itertools.count():
    rows = [next(s, None) for s in streams for _ in range(rows_per_stream)]
    if number and all(row is None for row in rows):
      return
    yield stack([padding if row is None else row for row in rows])


def stack(forests: Sequence[Forest]) -> Batch:
  """Forests to a batch: every feature gains a leading batch dimension."""
  return {name: np.stack([f[name] for f in forests]) for name in forests[0]}


class Sample:
  """Subtrees spread evenly over the data, measured for `forest_layout.resolve`."""

  def __init__(
    self,
    records: Sequence[Subtree],
    objective: Objective,
    row_lengths: tuple[int, int],
    max_ancestors: int,
    size: int = 2000,
  ):
    """Reads nothing yet.

    Args:
      records: the subtrees.
      objective: what they are masked by.
      row_lengths: tokens of a row of the encoder and of the decoder.
      max_ancestors: most ancestors that a comment sees.
      size: how many subtrees are measured at most.
    """
    self._records = records
    self._objective = objective
    self._row_lengths = row_lengths
    self._max_ancestors = max_ancestors
    self._chosen = np.unique(np.linspace(0, len(records) - 1, size).astype(int))

  def totals(self, shape: ForestShape | None = None) -> SubtreeTotals:
    """Adds up what the subtrees take.

    Args:
      shape: of the forests that subtrees are cut to fit, with these row lengths and
        ancestors; None for whole subtrees.
    """
    length = self._row_lengths[1]
    totals = SubtreeTotals(most_masked=self._objective.most_masked(length))
    totals.subtrees = len(self._chosen)
    for index, whole in zip(self._chosen.tolist(), self._whole):
      if shape is None or packing.surely_fits(whole, shape):
        totals.add(whole)
        continue
      for item in packing.fitting_items(self._masked(index), shape):
        totals.add(item.pack_sizes)
    return totals

  @functools.cached_property
  def _whole(self) -> list[PackSizes]:
    """What each takes that is not cut: most need no second look."""
    return [
      measure(self._masked(index), *self._row_lengths, self._max_ancestors).pack_sizes
      for index in self._chosen.tolist()
    ]

  def _masked(self, index: int) -> Subtree:
    return self._objective(self._records[index], self._row_lengths[1], 0, 0, index)


def first_target(
  records: Sequence[Subtree], objective: Objective, length: int, seed: int
) -> int | None:
  """Returns the place of the first subtree with a target, in `eval_batches`'s order.

  Args:
    records: subtrees of the held-out split.
    objective: says what is to be predicted.
    length: tokens of a decoder row.
    seed: seed of the evaluation.
  """
  order = EpochShuffle(len(records), seed)
  for place in range(len(records)):
    epoch, index = order[place]
    masked = objective(records[index], length, seed, epoch, index)
    if masked["is_masked"].any():
      return place
  return None


def count_targets(
  records: Sequence[Subtree],
  objective: Objective,
  length: int,
  size: int,
  sample: int = 20_000,
) -> np.ndarray:
  """How often each id below `size` is to be predicted, int64 [size].

  Args:
    records: subtrees of the training split.
    objective: says what is to be predicted.
    length: tokens of a decoder row.
    size: how many ids there are.
    sample: most subtrees that are read, spread evenly over the data.
  """
  counts = np.zeros(size, np.int64)
  for index in np.unique(np.linspace(0, len(records) - 1, sample).astype(int)):
    subtree = objectives.complete(
      objective(records[int(index)], length, 0, 0, int(index))
    )
    targets = subtree[objectives.TARGET_TOKENS][subtree["is_masked"] == 1]
    counts += np.bincount(targets, minlength=size)
  return counts


def has_target(records: Sequence[Subtree], objective: Objective, length: int) -> bool:
  """Whether any subtree has something to predict; reads until one has."""
  for index in range(len(records)):
    if objective(records[index], length, 0, 0, index)["is_masked"].any():
      return True
  return False
