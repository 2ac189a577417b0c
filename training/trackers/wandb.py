"""Weights & Biases, by the extra `wandb`.

Its variables win over what is set here: WANDB_PROJECT, WANDB_NAME, WANDB_DIR and the
like. Under a sweep's agent each trial has the run that the agent made, which
WANDB_RUN_ID names; other runs have an id that is kept in MODEL_DIR, so that a run goes
on in the same one after every restart, wherever its folder is moved.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

import wandb

from commentree.training.checkpointing import storage
from commentree.training.trackers import tracker
from commentree.training.trackers.tracker import TrackedRun

_NAME = "wandb"
_PROJECT = "commentree"
# Uploads that take longer are left to `wandb sync`; see also `background`.
_FINISH_SECONDS = 45.0


class Wandb:
  """A run there."""

  def __init__(self, run: Any):
    """Takes an open run."""
    self._run = run
    # Of a run that continues: it has the steps before, and refuses them.
    self._first_step = run.step

  def log_settings(self, settings: Mapping[str, Any]) -> None:
    """Adds the settings to the run's config."""
    self._run.config.update(dict(settings), allow_val_change=True)

  def log_scalars(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Logs the scalars of a step."""
    if step >= self._first_step:
      self._run.log(tracker.joined(scalars, condition), step=step)

  def finish(self, exit_code: int) -> None:
    """Ends the run there."""
    self._run.finish(exit_code=exit_code)


def open_tracker(run: TrackedRun) -> Wandb:
  """Begins a run there, or continues the one of earlier starts."""
  folder = tempfile.gettempdir() if storage.is_remote(run.model_dir) else run.model_dir
  kept = tracker.kept_id(run, _NAME)
  chosen = {
    "project": run.project or _PROJECT,
    "name": run.model_dir.name,
    "dir": os.fspath(folder),
    "run_id": kept or secrets.token_hex(8),
    "resume": "allow",
  }
  free = {
    name: value
    for name, value in chosen.items()
    if not os.environ.get(f"WANDB_{name.upper()}")
  }
  if "run_id" in free:
    free["id"] = free.pop("run_id")
  opened = wandb.init(**free, settings=_settings())
  tracker.keep_id(run, _NAME, opened.id)
  return Wandb(opened)


def _settings() -> wandb.Settings:
  if os.environ.get("WANDB_FINISH_TIMEOUT"):
    return wandb.Settings()
  return wandb.Settings(finish_timeout=_FINISH_SECONDS)
