"""Paired differences of losses, with standard errors over trees.

The tokens of a tree are no independent draws: the topic of a thread moves them all. So
losses are summed by tree, over the subtrees, batches and hosts that a tree lies in, and
the spread of trees gives the standard error: that of a ratio of two sums over clusters
(Cochran, "Sampling Techniques", 1977, section 6.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much larger one loss is than another on the same tokens.

  Attributes:
    value: nats a token.
    standard_error: of the value, over trees; None for fewer than two.
    trees: trees that have such tokens.
  """

  value: float
  standard_error: float | None
  trees: int


class TreeSums:
  """Sums of losses and counts of tokens by tree: P losses in S slices of the tokens."""

  def __init__(self, num_losses: int, num_slices: int):
    """Starts with no tree."""
    self._rows: dict[int, int] = {}
    self._sums = np.zeros((0, num_losses + 1, num_slices))

  def add(self, trees: np.ndarray, sums: np.ndarray) -> None:
    """Adds the sums of comments to those of their trees.

    Args:
      trees: number of each comment's tree. [N]
      sums: of each of its losses, then of its tokens, by slice. [N, P + 1, S]
    """
    numbers, of_comment = np.unique(trees, return_inverse=True)
    rows = [self._rows.setdefault(n, len(self._rows)) for n in numbers.tolist()]
    missing = len(self._rows) - len(self._sums)
    if missing > 0:
      # At least doubled, so that adding many trees stays linear.
      room = np.zeros((max(missing, len(self._sums)), *self._sums.shape[1:]))
      self._sums = np.concatenate([self._sums, room])
    np.add.at(self._sums, np.array(rows, np.int64)[of_comment], sums)

  def difference(self, loss: int, base: int, part: int) -> Difference:
    """Returns how much larger loss number `loss` is than `base` in slice `part`."""
    tokens = self._sums[: len(self._rows), -1, part]
    more = self._sums[: len(self._rows), loss] - self._sums[: len(self._rows), base]
    return clustered(more[:, part], tokens)


def clustered(sums: np.ndarray | Sequence[float], tokens: np.ndarray) -> Difference:
  """Returns the mean of a quantity over tokens, its standard error over clusters.

  Args:
    sums: of the quantity, by cluster. [G]
    tokens: in each cluster; clusters without any do not count. [G]
  """
  used = np.asarray(tokens) > 0
  sums, tokens = np.asarray(sums, np.float64)[used], np.asarray(tokens)[used]
  count, total = len(tokens), float(tokens.sum())
  value = float(sums.sum() / total) if count else float("nan")
  if count < 2:
    return Difference(value, None, count)
  residuals = sums - value * tokens
  variance = count / (count - 1) * float(np.sum(residuals**2)) / total**2
  return Difference(value, float(np.sqrt(variance)), count)
