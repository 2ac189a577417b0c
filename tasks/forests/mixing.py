"""Mixtures of tasks: which task's which example stands at a position of a run's order.

Positions are dealt in blocks. Of the first n positions, n a multiple of the block, a
task has its rate's share to within one example; within a block the tasks are shuffled.
All of this is found from the position alone, so that streams seek, and hosts agree. Of
each task's examples, the first, second, third… are those of a run of that task alone.

Grain's `MapDataset.mix` is not used: it deals the tasks in one fixed pattern, and
rounds their rates.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from commentree.tasks.forests.forest_layout import SubtreeTotals
from commentree.tasks.forests.shuffling import EpochShuffle, shuffle

# In a block this long or longer every task has its turn.
_LEAST_BLOCK = 1024
# Subtrees that the totals of a mixture are of.
_SAMPLE = 1_000_000
# Tells the permutations of a block from those of a task's examples.
_SALT = 0x6D697865


def mix_totals(
  totals: Sequence[SubtreeTotals], parts: Sequence[Fraction]
) -> SubtreeTotals:
  """What a sample of a mixture's subtrees holds, from samples of each of its tasks.

  Args:
    totals: of each task.
    parts: of each task, as from `mixture_config.shares`.
  """
  if len(totals) == 1:
    return totals[0]
  mixed = {"most_masked": max(each.most_masked for each in totals)}
  for field in dataclasses.fields(SubtreeTotals):
    if field.name not in mixed:
      mean = sum(
        part * Fraction(getattr(each, field.name), max(1, each.subtrees))
        for each, part in zip(totals, parts)
      )
      mixed[field.name] = round(mean * _SAMPLE)
  return SubtreeTotals(**mixed)


class MixtureSampler:
  """Positions 0, 1, 2… to (task, epoch, index)."""

  def __init__(self, examples: Sequence[int], parts: Sequence[Fraction], seed: int):
    """Computes nothing yet.

    Args:
      examples: of each task.
      parts: of each task, as from `mixture_config.shares`.
      seed: of the run.
    """
    self._ends = list(itertools.accumulate(parts))
    # Not below 1 / the least part, so that no task's count falls from block to block.
    self.block_size = max(_LEAST_BLOCK, 1 << math.ceil(1 / min(parts)).bit_length())
    self._orders = [EpochShuffle(number, seed) for number in examples]
    self._seed = seed ^ _SALT
    self._dealt: tuple[int, np.ndarray, np.ndarray] | None = None

  def __getitem__(self, position: int) -> tuple[int, int, int]:
    task, turn = self.turn(position)
    epoch, index = self._orders[task][turn]
    return task, epoch, index

  def turn(self, position: int) -> tuple[int, int]:
    """The task at a position, and which of its turns that is, from 0."""
    if len(self._orders) == 1:
      return 0, position
    block, place = divmod(position, self.block_size)
    if self._dealt is None or self._dealt[0] != block:
      self._dealt = (block, *self._deal(block))
    _, tasks, turns = self._dealt
    return int(tasks[place]), int(turns[place])

  def counts(self, blocks: int) -> list[int]:
    """Turns of each task in the first so many blocks."""
    dealt = blocks * self.block_size
    # Of the cumulated shares, exact as they are: so all turns are dealt.
    ends = [math.floor(end * dealt) for end in self._ends]
    return [end - start for start, end in itertools.pairwise([0, *ends])]

  def _deal(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each place in a block the task, and the number of its turn."""
    before = np.array(self.counts(block))
    here = np.array(self.counts(block + 1)) - before
    in_order = np.repeat(np.arange(len(here)), here)
    places = np.arange(self.block_size)
    tasks = in_order[shuffle(places, self.block_size, self._seed, block & 0x7FFFFFFF)]
    by_task = np.argsort(tasks, kind="stable")
    turns = np.empty_like(places)
    turns[by_task] = places - np.repeat(np.cumsum(here) - here - before, here)
    return tasks, turns
