"""MLflow, by the extra `mlflow`.

Where to is for its variables to say: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
MLFLOW_RUN_ID. The id of a run is kept in MODEL_DIR, so that it goes on in the same one
after every restart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import mlflow

from commentree.training.trackers import tracker
from commentree.training.trackers.tracker import TrackedRun

_NAME = "mlflow"
_PROJECT = "commentree"
_PARAMS_A_CALL = 100
_LONGEST_PARAM = 500
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
# Exit codes of a run that was asked to stop; see `commentree.errors`.
_STOPPED = (130, 143)


class Mlflow:
  """A run there."""

  def __init__(self, known: Mapping[str, str]):
    """Takes the active run.

    Args:
      known: parameters that it has from earlier starts, which it lets nobody change.
    """
    self._known = known

  def log_settings(self, settings: Mapping[str, Any]) -> None:
    """Logs settings that it does not have yet as parameters."""
    texts = {_name(name): str(value) for name, value in settings.items()}
    new = [
      (name, text if len(text) <= _LONGEST_PARAM else f"{text[: _LONGEST_PARAM - 1]}…")
      for name, text in texts.items()
      if name not in self._known
    ]
    for at in range(0, len(new), _PARAMS_A_CALL):
      mlflow.log_params(dict(new[at : at + _PARAMS_A_CALL]))

  def log_scalars(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Logs the scalars of a step."""
    named = tracker.joined(scalars, condition)
    mlflow.log_metrics({_name(name): value for name, value in named.items()}, step)

  def finish(self, exit_code: int) -> None:
    """Ends the run there."""
    ended = "KILLED" if exit_code in _STOPPED else "FAILED"
    mlflow.end_run("FINISHED" if exit_code == 0 else ended)


def open_tracker(run: TrackedRun) -> Mlflow:
  """Begins a run there, or continues the one of earlier starts."""
  named = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
  if not any(os.environ.get(name) for name in named):
    mlflow.set_experiment(run.project or _PROJECT)
  kept = os.environ.get("MLFLOW_RUN_ID") or tracker.kept_id(run, _NAME)
  opened = mlflow.start_run(run_id=kept, run_name=None if kept else run.model_dir.name)
  tracker.keep_id(run, _NAME, opened.info.run_id)
  return Mlflow(opened.data.params)


def _name(text: str) -> str:
  """Returns a name with the characters that there may be in one."""
  return _NOT_IN_NAMES.sub("_", text)
