"""How much alike the vectors are that comments are pooled to.

An encoder that pools all comments to nearly the same vector has collapsed: whatever the
decoder makes of its ancestors then, it is not what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commentree.training.metrics.batch_sums import BatchSums

VECTORS = "vectors"
_COLLAPSED = 0.9


class VectorSums(BatchSums):
  """Sums over batches of what `Model.vector_sums` returns."""

  def results(self) -> dict[str, float]:
    """Returns statistics of the vectors, none if there are less than two.

    `mean_cosine`, of two of them; `norm`, the root of their mean squared length;
    `spread`, that of their mean squared distance from their mean.
    """
    count = float(self._sums.get("count", 0.0))
    if count < 2:
      return {}
    units, mean = self._sums["units"], self._sums["vectors"] / count
    square = float(self._sums["squares"]) / count
    return {
      "mean_cosine": float((units @ units - count) / (count * (count - 1))),
      "norm": square**0.5,
      "spread": max(square - float(mean @ mean), 0.0) ** 0.5,
    }


def warning(results: Mapping[str, Any]) -> str:
  """Says that an encoder has collapsed; "" if it has not, or nothing is known.

  Args:
    results: of one condition of an evaluation.
  """
  found = results.get(VECTORS, {})
  if found.get("mean_cosine", 0.0) <= _COLLAPSED:
    return ""
  return (
    f"comments' vectors are nearly alike (mean cosine {found['mean_cosine']:.2f},"
    f" spread {found['spread']:.2g} at length {found['norm']:.2g}): the encoder tells"
    " the decoder little of what an ancestor says"
  )
