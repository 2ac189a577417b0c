"""Rows of equal length, and where items go in them."""

from __future__ import annotations

import bisect
from typing import NamedTuple


class Placed(NamedTuple):
  """Where items go in rows, and what is left of the rows then.

  Attributes:
    places: row and column of each.
    free: free tokens of each row and its number, ascending.
    masked_left: masked tokens that there is room for, by group of rows.
  """

  places: list[tuple[int, int]]
  free: list[tuple[int, int]]
  masked_left: list[int]


class OpenRows:
  """Rows of equal length with best-fit placement and a second limit per group of rows.

  Kept sorted by free tokens, so that the tightest row that still fits is found by
  bisection.
  """

  def __init__(self, rows: int, length: int, most_masked: int = 0, groups: int = 1):
    self._length = length
    self._free = [(length, row) for row in range(rows)]
    self._in_group = rows // groups
    self._masked_left = [most_masked] * groups

  @property
  def longest(self) -> int:
    """Free tokens of the row that has most."""
    return self._free[-1][0]

  def find(self, lengths: list[int], masked: list[int]) -> Placed | None:
    """Finds places for items, longest first, or None."""
    free, masked_left = self._free[:], self._masked_left[:]
    in_group = self._in_group
    places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for item in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
      need, mask = lengths[item], masked[item]
      at = bisect.bisect_left(free, (need, -1))
      while at < len(free) and masked_left[free[at][1] // in_group] < mask:
        at += 1
      if at == len(free):
        return None
      most, row = free.pop(at)
      places[item] = (row, self._length - most)
      masked_left[row // in_group] -= mask
      bisect.insort(free, (most - need, row))
    return Placed(places, free, masked_left)

  def take(self, found: Placed) -> list[tuple[int, int]]:
    """Takes items in where `find` found places last; returns these."""
    _, self._free, self._masked_left = found
    return found.places
