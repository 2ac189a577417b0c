"""Which checkpoint of a run is the best, and which one the user means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from etils import epath

from commentree import json_shapes
from commentree.errors import UserError
from commentree.training.checkpointing.saving import path_of, steps_in
from commentree.training.cluster import hosts

Metrics = Mapping[str, float]

# Where a checkpoint has the evaluation at its step.
METRICS = "metrics/metrics"


@dataclasses.dataclass(frozen=True)
class Best:
  """The best checkpoint.

  Attributes:
    step: its step; None if none was evaluated.
    quality: how good it is, see `quality`; -inf if none was evaluated.
  """

  step: int | None = None
  quality: float = -math.inf


def quality(metrics: Metrics | None, best_metric: str) -> float:
  """Returns how good metrics are, more being better; -inf if they do not tell."""
  value = math.nan if metrics is None else metrics.get(best_metric, math.nan)
  if not math.isfinite(value):
    return -math.inf
  return -value if best_metric.endswith("loss") else value


def metrics_of(model_dir: epath.Path, step: int) -> Metrics | None:
  """Returns what was saved as a checkpoint's metrics, if anything."""
  try:
    text = (path_of(model_dir, step) / METRICS).read_bytes()
    return json_shapes.parse(text, dict[str, float])
  except (FileNotFoundError, ValueError):
    return None


def best_step(model_dir: epath.Path, best_metric: str) -> int | None:
  """Returns the best checkpoint's step, None if no checkpoint was evaluated."""
  return best_of(
    {s: metrics_of(model_dir, s) for s in steps_in(model_dir)}, best_metric
  )


def best_of(metrics: Mapping[int, Metrics | None], best_metric: str) -> int | None:
  """Returns the step of the best of some metrics, None if none were evaluated."""
  by_quality = {step: quality(m, best_metric) for step, m in metrics.items()}
  best = max(by_quality, key=by_quality.__getitem__, default=None)
  return None if best is None or by_quality[best] == -math.inf else best


def choose(
  model_dir: epath.Path, step: int | Literal["best"] | None, best_metric: str
) -> int:
  """Returns the step that the user means: a number, 'best', or None for the newest.

  Every host calls it, and gets the same.

  Raises:
    UserError: if it is missing.
  """
  return hosts.run_on_host0("choice", lambda: _choose(model_dir, step, best_metric))


def _choose(
  model_dir: epath.Path, step: int | Literal["best"] | None, best_metric: str
) -> int:
  steps = steps_in(model_dir)
  if not steps:
    raise UserError(f"{model_dir} holds no checkpoint: name a run's MODEL_DIR")
  if step is None:
    return steps[-1]
  if step == "best":
    best = best_step(model_dir, best_metric)
    if best is None:
      raise UserError(
        f"{model_dir}: no checkpoint was evaluated for {best_metric}: name a step of"
        f" {', '.join(map(str, steps))}"
      )
    return best
  if step not in steps:
    raise UserError(
      f"{model_dir} holds no checkpoint of step {step}, but"
      f" {', '.join(map(str, steps))}"
    )
  return step
