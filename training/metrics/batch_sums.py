"""Sums of arrays over batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class BatchSums:
  """Adds up named arrays over batches, in float64."""

  def __init__(self):
    """Starts at nothing."""
    self._sums: dict[str, np.ndarray] = {}

  def total(self, name: str) -> np.ndarray:
    """Returns a sum, 0 if there was none of that name."""
    return np.asarray(self._sums.get(name, 0.0))

  def add(self, sums: Mapping[str, Any]) -> None:
    """Adds the sums of a batch; there may be none."""
    for name, values in sums.items():
      before = self._sums.get(name, 0.0)
      self._sums[name] = before + np.asarray(values, np.float64)
