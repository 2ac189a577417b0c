"""What a run is, written beside its checkpoints, and whether this is the same run.

MODEL_DIR/config.gin   the operative settings of the latest start
MODEL_DIR/run.json     the facts that decide results, and every start: when, from
                       which step, by which command, with which versions
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from ..errors import UserError
from .config import TrainConfig
from .schedules import decay_steps

_PACKAGES = (
  "commentree",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "seqio",
  "tensorflow",
  "numpy",
)
_SHOWN_DIFFERENCES = 6


def _command() -> str:
  return shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What the caller knows of a run.

  Attributes:
    facts: settings that decide results, by name, JSON-able: of the model and the
      data. The trainer adds its own (`training_facts`). A MODEL_DIR made with other
      values is refused; leave out what may change, such as paths and periods.
    config_text: all settings, as a gin file.
    command: the command line.
  """

  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config_text: str = ""
  command: str = dataclasses.field(default_factory=_command)


def training_facts(config: TrainConfig) -> dict[str, Any]:
  """Returns the trainer's settings that decide results.

  Those left out may change between starts: `train_steps` (unless the schedule's
  decay ends there), periods, devices, microbatches, and where things are written.
  """
  optimizer = dataclasses.asdict(config.optimizer)
  schedule = optimizer.pop("schedule")
  if config.optimizer.schedule.name in ("constant", "rsqrt"):
    for field in ("decay_steps", "decay_share", "final_share"):
      del schedule[field]
  else:
    schedule["decay_steps"] = decay_steps(config.optimizer.schedule, config.train_steps)
  return {
    "TrainConfig.batch_size": config.batch_size,
    "TrainConfig.random_seed": config.random_seed,
    **{f"OptimizerConfig.{name}": value for name, value in optimizer.items()},
    **{f"ScheduleConfig.{name}": value for name, value in schedule.items()},
  }


def check(model_dir: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Raises UserError naming the settings that differ from those of MODEL_DIR."""
  recorded = _read(model_dir).get("facts")
  if recorded is None:
    return
  now = _jsonable(facts)
  absent = "absent"
  differing = [
    f"{name} ({recorded.get(name, absent)!r} there, {now.get(name, absent)!r} now)"
    for name in sorted(recorded.keys() | now.keys())
    if recorded.get(name, absent) != now.get(name, absent)
  ]
  if differing:
    shown = ", ".join(differing[:_SHOWN_DIFFERENCES])
    more = len(differing) - _SHOWN_DIFFERENCES
    raise UserError(
      f"{model_dir} holds a run with other settings: {shown}"
      f"{f' and {more} more' if more > 0 else ''}: use those, or another MODEL_DIR"
    )


def write(
  model_dir: pathlib.Path, record: RunRecord, facts: Mapping[str, Any], step: int
) -> None:
  """Notes a start of the run.

  Args:
    model_dir: the run's folder.
    record: what the caller knows.
    facts: the caller's and the trainer's.
    step: the step this start continues from, 0 if new.
  """
  config_file = model_dir / "config.gin"
  before = config_file.read_text() if config_file.exists() else None
  start = {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "step": step,
    "command": record.command,
    "versions": versions(),
  }
  if before is not None and before != record.config_text:
    start["config_before"] = before
  starts = [*_read(model_dir).get("starts", []), start]
  run = {"facts": _jsonable(facts), "starts": starts}
  _replace(config_file, record.config_text)
  _replace(model_dir / "run.json", json.dumps(run, indent=2) + "\n")


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that matter."""
  found = {"python": platform.python_version()}
  for package in _PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[package] = metadata.version(package)
  return found


@contextlib.contextmanager
def lock(model_dir: pathlib.Path) -> Iterator[None]:
  """Holds MODEL_DIR for this process alone; the lock dies with the process.

  Raises:
    UserError: if another process holds it.
  """
  model_dir.mkdir(parents=True, exist_ok=True)
  with open(model_dir / ".lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another process is training in {model_dir}: stop it, or use another MODEL_DIR"
      ) from None
    yield


def _read(model_dir: pathlib.Path) -> dict[str, Any]:
  file = model_dir / "run.json"
  return json.loads(file.read_text()) if file.exists() else {}


def _jsonable(facts: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(dict(facts)))


def _replace(file: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  written = file.with_name(file.name + ".new")
  with open(written, "w") as stream:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
  written.replace(file)
