"""How far a host has come, told every few seconds."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence

from commentree.launch.inference.chunks import Chunk
from commentree.launch.inference.forests import PackedForest
from commentree.launch.inference.trees import Unit

_SECONDS = 5.0


class InferenceProgress:
  """Counts what is done; tells of it."""

  def __init__(self, units: Sequence[Unit], say: Callable[[str], None]):
    """Begins now.

    Args:
      units: what this host reads.
      say: tells the user a line.
    """
    self._units = units
    self._say = say
    self._start = self._told = time.monotonic()
    self._first: tuple[float, float] | None = None
    self.trees = 0
    self.comments = 0
    self._begun: set[tuple[int, int]] = set()

  def see(self, filled: PackedForest, chunk: Chunk) -> None:
    """Counts what a forest of a chunk has of its comments, and tells if it is time."""
    for document, number in filled.targets or filled.slots:
      # Modes may number a node a second time, behind all nodes.
      node = number % len(document.firsts)
      self._begun.add((id(document), document.comment_of(node)))
    now = time.monotonic()
    if now - self._told >= _SECONDS:
      self._told = now
      trees = _trees(len(chunk.trees))
      these = f"{len(self._begun):,} of {_comments(chunk):,} comments of {trees}"
      before = f"{self.comments:,} comments, and " if self.comments else ""
      rate = (self.comments + len(self._begun)) / max(1e-9, now - self._start)
      self._say(f"{before}{these}, {rate:,.1f} comments/s")

  def add(self, chunk: Chunk) -> None:
    """Counts a chunk that is done, and tells of it if it is time."""
    now = time.monotonic()
    self.trees += len(chunk.trees)
    self.comments += _comments(chunk)
    self._begun.clear()
    if now - self._told >= _SECONDS:
      self._told = now
      share = self._share(chunk)
      left = "" if share is None else f", {self._left(now, share)}"
      self._say(f"{self._counts(now)}{left}")

  def end(self) -> None:
    """Tells what was done in all."""
    self._say(self._counts(time.monotonic()))

  def _counts(self, now: float) -> str:
    rate = self.comments / max(1e-9, now - self._start)
    return f"{self.comments:,} comments of {_trees(self.trees)}, {rate:,.1f} comments/s"

  def _share(self, chunk: Chunk) -> float | None:
    """Returns the share of the input before a chunk's end, by bytes."""
    sizes = [unit.size for unit in self._units]
    here = 1.0
    if chunk.end is not None:
      found = self._units[chunk.unit].share(chunk.end)
      if found is None:
        return None
      here = found
    before = sum(sizes[: chunk.unit])
    return (before + here * sizes[chunk.unit]) / max(1, sum(sizes))

  def _left(self, now: float, share: float) -> str:
    if self._first is None:
      # What an earlier start did took this one no time.
      self._first = now, share
      return f"{share:.0%}"
    since, done = self._first
    if share <= done:
      return f"{share:.0%}"
    seconds = round((now - since) * (1 - share) / (share - done))
    return f"{share:.0%}, {datetime.timedelta(seconds=seconds)} left"


def _comments(chunk: Chunk) -> int:
  return sum(len(tree.comments) for tree in chunk.trees)


def _trees(count: int) -> str:
  return "1 tree" if count == 1 else f"{count:,} trees"
