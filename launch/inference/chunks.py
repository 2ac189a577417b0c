"""Chunks of input: what is answered, written and gone on with at once.

A unit's chunks are numbered from 0 and depend on nothing but its trees, so any number
of hosts, started however often, deals with the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from commentree.launch.inference.trees import Unit
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts


@dataclasses.dataclass(frozen=True)
class ChunkSize:
  """When a chunk is full.

  Attributes:
    trees: most trees.
    comments: comments after which no tree is added.
  """

  trees: int = 256
  comments: int = 8192


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Trees that follow each other.

  Attributes:
    unit: which of the input's.
    number: which of the unit's chunks.
    trees: in order; none only in a unit that has none.
    end: the position where the next chunk begins, or None.
  """

  unit: int
  number: int
  trees: list[CommentTree]
  end: int | None


def cut(
  unit: Unit,
  which: int,
  size: ChunkSize,
  read_counts: ReadCounts,
  number: int = 0,
  start: int = 0,
) -> Iterator[Chunk]:
  """Yields a unit's chunks from one on; there is at least one.

  Args:
    unit: the unit.
    which: its place in the input.
    size: when a chunk is full.
    read_counts: counts what became of what is read.
    number: the first chunk.
    start: the position where that begins.
  """
  trees: list[CommentTree] = []
  comments, end = 0, start
  for tree, behind in unit.read(start, read_counts):
    # Only with the next tree in hand is it known that the chunk is not the last.
    if len(trees) == size.trees or comments >= size.comments:
      yield Chunk(which, number, trees, end)
      trees, comments, number = [], 0, number + 1
    trees.append(tree)
    comments += len(tree.comments)
    end = behind
  yield Chunk(which, number, trees, None)


Done = Mapping[int, Mapping[int, int | None]]
"""By unit: its chunks that are done, each with its `end`."""


def missing(
  units: Sequence[Unit],
  size: ChunkSize,
  done: Done,
  host: int,
  num_hosts: int,
  read_counts: ReadCounts,
) -> Iterator[Chunk]:
  """Yields the chunks that a host has yet to do.

  Where there are as many units as hosts, each reads its own alone; else all read all,
  and chunks are dealt in turn.

  Args:
    units: of the input.
    size: when a chunk is full.
    done: what is done.
    host: this host.
    num_hosts: how many share the work.
    read_counts: counts what became of what is read.
  """
  by_unit = len(units) >= num_hosts
  for which, unit in enumerate(units):
    if by_unit and which % num_hosts != host:
      continue
    known = done.get(which, {})
    number, start = 0, 0
    while number in known:
      end = known[number]
      if end is None:
        break
      number, start = number + 1, end
    if number in known:
      continue
    for chunk in cut(unit, which, size, read_counts, number, start):
      mine = by_unit or (which + chunk.number) % num_hosts == host
      if mine and chunk.number not in known:
        yield chunk


def is_whole(units: Sequence[Unit], done: Done) -> bool:
  """Whether all chunks of all units are done."""
  return all(which in done and _ends(done[which]) for which in range(len(units)))


def _ends(known: Mapping[int, int | None]) -> bool:
  number = 0
  while number in known:
    if known[number] is None:
      return True
    number += 1
  return False
