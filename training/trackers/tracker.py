"""What a tracker of runs does, and the names that `TrainConfig.trackers` may hold.

Loads neither JAX nor a tracker's own package.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from etils import epath

from commentree.errors import UserError, suggestion


class Tracker(Protocol):
  """Takes what a run tells. All calls come from one thread, on host 0.

  An exception of any of them is told as one line, and the run goes on without it.
  """

  def log_settings(self, settings: Mapping[str, Any]) -> None:
    """Takes the run's settings by 'CLASS.FIELD'; at each start, before any scalars."""

  def log_scalars(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Takes the scalars of a step.

    A run that continues from a checkpoint repeats steps since, with the same values.

    Args:
      step: the step.
      scalars: by name.
      condition: the ancestor condition or baseline that they are of, if of one; the
        same names are drawn in one chart, a curve for each condition.
    """

  def finish(self, exit_code: int) -> None:
    """Writes what is left.

    Args:
      exit_code: 0 if the run is done, else as in `commentree.errors`.
    """


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """What a tracker may want to know of a run when it opens.

  Attributes:
    model_dir: the run's folder, absolute, maybe in a bucket.
    project: `TrainConfig.tracker_project`.
  """

  model_dir: epath.Path
  project: str | None = None


Open = Callable[[TrackedRun], Tracker]


@dataclasses.dataclass(frozen=True)
class _Known:
  """A tracker of ours: the module whose `open_tracker` opens it, and its package."""

  module: str
  package: str
  extra: str | None


_KNOWN = {
  name: _Known(f"commentree.training.trackers.{name}", package, extra)
  for name, package, extra in (
    ("tensorboard", "tensorboard", None),
    ("wandb", "wandb", "wandb"),
    ("mlflow", "mlflow", "mlflow"),
  )
}
_registered: dict[str, Open] = {}


def register(name: str, open_tracker: Open) -> None:
  """Makes a tracker of your own known to `TrainConfig.trackers`.

  Call it in a module that your gin file imports.

  Args:
    name: what to call it.
    open_tracker: called once a run has begun, in the thread that makes all calls.
  """
  _registered[name] = open_tracker


def check(names: Iterable[str]) -> None:
  """Makes sure that there are such trackers, and what they need.

  Raises:
    UserError: naming the one that there is not.
  """
  for name in names:
    if name in _registered:
      continue
    if name not in _KNOWN:
      there = (*_KNOWN, *_registered)
      raise UserError(
        f"TrainConfig.trackers has {name!r}: there are {', '.join(there)}, and those"
        f" that a module registers which a gin file imports{suggestion(name, there)}"
      )
    known = _KNOWN[name]
    if importlib.util.find_spec(known.package) is None:
      what = f"'commentree[{known.extra}]'" if known.extra else known.package
      raise UserError(
        f"TrainConfig.trackers has {name!r}, which needs {known.package}: pip install"
        f" {what}, or leave it out"
      )


def find(name: str) -> Open:
  """Returns how to open a tracker; loads its package when called."""
  if name in _registered:
    return _registered[name]
  return lambda run: importlib.import_module(_KNOWN[name].module).open_tracker(run)


def joined(scalars: Mapping[str, float], condition: str | None) -> dict[str, float]:
  """Returns scalars with the condition in their names, for trackers without runs."""
  ending = f"/{condition}" if condition else ""
  return {f"{name}{ending}": value for name, value in scalars.items()}


def kept_id(run: TrackedRun, tracker: str) -> str | None:
  """Returns the name that a tracker gave the run at an earlier start, if any."""
  file = _id_file(run, tracker)
  text = file.read_text().strip() if file.exists() else ""
  return text if re.fullmatch(r"[\w.:-]{1,128}", text) else None


def keep_id(run: TrackedRun, tracker: str, name: str) -> None:
  """Keeps the name that a tracker gave the run for the next start."""
  if kept_id(run, tracker) != name:
    file = _id_file(run, tracker)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name + "\n")


def _id_file(run: TrackedRun, tracker: str) -> epath.Path:
  return run.model_dir / "trackers" / f"{tracker}.txt"
