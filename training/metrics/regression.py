"""R², correlation and order of numbers, from sums that add up.

Of numbers as they are learnt: transformed and standardized. Nothing of this needs all
numbers at once, so it is exact over any number of batches and hosts; a correlation of
ranks (Spearman) would need them, and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.training.config import CheckpointConfig

# Among the counts of a condition, and the measures.
REGRESSION = "regression"
R2, PEARSON, PAIRWISE = "r2", "pearson", "pairwise_accuracy"
_IN_WORDS = {
  R2: "R²",
  PEARSON: "Pearson's correlation",
  PAIRWISE: "order of replies to one comment",
}


def sums(tokens: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the sums of a batch under one condition; nothing but of numbers.

  Args:
    tokens: what the model's `evaluate_batch` returned.
  """
  return {REGRESSION: tokens[REGRESSION]} if REGRESSION in tokens else {}


def results(counts: Mapping[str, Any]) -> dict[str, float]:
  """Returns measures, given the sums of all batches; nothing but of numbers."""
  return _measures(counts[REGRESSION]) if REGRESSION in counts else {}


def _measures(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Returns measures, NaN of what has none.

  `r2` is 1 less the squared error over that of the mean of the numbers evaluated: 0 for
  a model that always predicts that, not told of ranking, whose predictions have no
  scale. `pairwise_accuracy` is the share of the `pairs` in the right order.
  """
  count = float(totals["numbers"])
  variance = _variance(count, totals["there"], totals["there_squares"])
  spread = _variance(count, totals["predicted"], totals["predicted_squares"])
  together = float(totals["products"]) - float(
    totals["predicted"] * totals["there"]
  ) / max(count, 1)
  found = {}
  if "squared_errors" in totals:
    found[R2] = 1 - _ratio(float(totals["squared_errors"]), variance)
  correlation = _ratio(together, math.sqrt(variance * spread))
  # Rounding may lead beyond 1.
  found[PEARSON] = float(np.clip(correlation, -1, 1))
  pairs = float(totals["pairs"])
  return found | {PAIRWISE: _ratio(float(totals["right"]), pairs), "pairs": int(pairs)}


def _variance(count: float, total: np.ndarray, squares: np.ndarray) -> float:
  """Returns the sum of the squares of differences to the mean; 0 if that is rounding.

  Sums of a batch are float32: less than a millionth of the squares tells nothing.
  """
  found = float(squares) - float(total) ** 2 / max(count, 1)
  return found if found > 1e-6 * float(squares) else 0.0


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole > 0 else math.nan


def is_of(result: Mapping[str, Any]) -> bool:
  """Whether results are of numbers."""
  return PEARSON in result


def unit(result: Mapping[str, Any]) -> str:
  """Returns what losses are in."""
  return "squared error" if R2 in result else "nats"


def rows(every: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[float], int]]:
  """Yields rows of a table: what it is, values by condition, of how many there are.

  Args:
    every: results by condition.
  """
  for name, words in _IN_WORDS.items():
    values = [result[name] for result in every if name in result]
    if values:
      yield words, values, every[0]["pairs" if name == PAIRWISE else "tokens"]


def in_short(result: Mapping[str, Any]) -> str:
  """Returns a word on a condition's results for the console; nothing of others."""
  names = {R2: "R²", PEARSON: "correlation", PAIRWISE: "pairs in order"}
  return "  ".join(
    f"{words} {result[name]:.4f}"
    for name, words in names.items()
    if math.isfinite(result.get(name, math.nan))
  )


def check_best_metric(config: CheckpointConfig, model: ModelConfig) -> None:
  """Raises UserError if the metric that decides is one that there will not be."""
  metric = config.best_metric.split("/")[-1]
  if config.keep_best == 0:
    return
  numbers = model.head == "regression"
  needed = ""
  if metric in _IN_WORDS and not numbers:
    needed = "unless ModelConfig.head is 'regression'"
  elif metric == R2 and model.regression_loss == "ranking":
    needed = "with ModelConfig.regression_loss = 'ranking', whose numbers have no scale"
  elif metric == "accuracy" and numbers:
    needed = "with ModelConfig.head = 'regression'"
  if needed:
    raise UserError(
      f"CheckpointConfig.best_metric = {config.best_metric!r}: there is no such metric"
      f" {needed}"
    )
