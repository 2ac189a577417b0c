"""What a run is, written beside its checkpoints, and whether this is the same run.

MODEL_DIR/config.gin   the operative settings of the latest start
MODEL_DIR/vocabulary/  a copy of the vocabulary, so that the folder can be moved
MODEL_DIR/run.json     the facts that decide results, and every start: when, from
                       which step, by which command, with which versions
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec
from etils import epath

from commentree import differences, json_shapes
from commentree.errors import UserError
from commentree.settings import identity
from commentree.training.checkpointing import saving, storage
from commentree.training.config import TrainConfig

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
_ATTEMPTS = 3
_DECAY_STEPS = "ScheduleConfig.decay_steps"
_VOCABULARY = "vocabulary"

Say = Callable[[str], None]


def _command() -> str:
  return shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What the caller knows of a run.

  Attributes:
    facts: settings that decide results, by name, JSON-able: of the model and the
      data. The trainer adds its own (`training_facts`). A MODEL_DIR made with other
      values is refused; `settings.identity` leaves out what may change.
    config_text: all settings, as a gin file.
    command: the command line.
    grown_from: fingerprints of vocabularies whose tokens have the same ids in this
      run's, so that their parameters may be taken.
    files: what else MODEL_DIR is to hold, by path; None for what is to go.
  """

  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config_text: str = ""
  command: str = dataclasses.field(default_factory=_command)
  grown_from: Sequence[str] = ()
  files: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)


def training_facts(config: TrainConfig) -> dict[str, Any]:
  """Returns the trainer's settings that decide results.

  Of the schedule, those that it does not use are left out, and the step where its
  decay ends is given, which may follow from `train_steps`.
  """
  facts = identity(config)
  schedule = config.optimizer.schedule
  if schedule.name in ("constant", "rsqrt"):
    for field in ("decay_steps", "decay_share", "final_share"):
      del facts[f"ScheduleConfig.{field}"]
  elif schedule.decay_steps is None and config.train_steps is None:
    del facts[_DECAY_STEPS]  # which is known once data are there
  else:
    end = schedule.last_decay_step(config.last_step)
    facts[_DECAY_STEPS] = end
  return facts


def check(
  model_dir: epath.Path,
  facts: Mapping[str, Any],
  say: Say = storage.print_line,
  *,
  part: bool = False,
) -> None:
  """Makes sure that MODEL_DIR's checkpoints are of this run.

  Args:
    model_dir: the run's folder.
    facts: the caller's and the trainer's.
    say: tells the user a line.
    part: whether these are only some of the facts: others are not compared.

  Raises:
    UserError: naming the settings that differ.
  """
  if not saving.steps_in(model_dir):
    return
  recorded = _read(model_dir, say).facts
  if recorded is None:
    return
  if part:
    names = recorded.keys() & facts.keys()
    recorded = {name: recorded[name] for name in names}
    facts = {name: facts[name] for name in names}
  found = differences.find(recorded, facts)
  if found:
    texts = [f"{name} ({before} there, {now} now)" for name, before, now in found]
    raise UserError(
      f"{model_dir} holds a run with other settings:"
      f" {differences.listed(texts, _SHOWN_DIFFERENCES)}: use those, or another"
      f" MODEL_DIR{_hint(found)}"
    )


def _hint(found: Sequence[tuple[str, Any, Any]]) -> str:
  """Returns what to do about a decay, which another TRAIN_STEPS moves."""
  before = {name: there for name, there, _ in found}.get(_DECAY_STEPS)
  if before is None:
    return ""
  return (
    "; a decay ends at the last step unless it is set: to train for more or fewer steps"
    f" by the same schedule, add --gin.{_DECAY_STEPS}={before}"
  )


def check_vocabulary(
  checkpoint: epath.Path,
  facts: Mapping[str, Any],
  say: Say = storage.print_line,
  grown_from: Sequence[str] = (),
) -> None:
  """Makes sure that a checkpoint was trained with this vocabulary, if that is noted.

  Parameters of two vocabularies of one size fit each other, but mean nothing.

  Args:
    checkpoint: a `checkpoint_<step>` folder.
    facts: the caller's.
    say: tells the user a line.
    grown_from: fingerprints of other vocabularies that do as well.

  Raises:
    UserError: if it was another.
  """
  there = (_read(checkpoint.parent, say).facts or {}).get(_VOCABULARY)
  here = facts.get(_VOCABULARY)
  if there is not None and here is not None and there not in (here, *grown_from):
    raise UserError(
      f"{checkpoint} was trained with another vocabulary (fingerprint {there}, now"
      f" {here}): set VOCABULARY to the one in {checkpoint.parent}/vocabulary, or to"
      " one that `commentree vocab --from` made of it"
    )


def recorded_facts(
  model_dir: epath.Path, say: Say = storage.print_line
) -> Mapping[str, Any]:
  """Returns the facts that a run was recorded with; none where it was not.

  Raises:
    UserError: if the record is damaged.
  """
  return _read(model_dir, say).facts or {}


def warm_start_of(model_dir: epath.Path, say: Say) -> dict[str, Any] | None:
  """Returns what was noted of the latest start that took parameters from elsewhere.

  Args:
    model_dir: the run's folder.
    say: tells the user a line.

  Returns:
    `write`'s `warm_start`; None if no start has any.

  Raises:
    UserError: if the record is damaged.
  """
  starts = _read(model_dir, say).starts
  found = (start["warm_start"] for start in reversed(starts) if "warm_start" in start)
  return next(found, None)


def write(
  model_dir: epath.Path,
  record: RunRecord,
  facts: Mapping[str, Any],
  step: int,
  say: Say = storage.print_line,
  warm_start: Mapping[str, Any] | None = None,
) -> None:
  """Notes a start of the run.

  Args:
    model_dir: the run's folder.
    record: what the caller knows.
    facts: the caller's and the trainer's.
    step: the step this start continues from, 0 if new.
    say: tells the user a line.
    warm_start: where parameters were taken from, if they were.

  Raises:
    StorageError: if it cannot be written.
  """
  config_file = model_dir / "config.gin"

  def read_before() -> str | None:
    return config_file.read_text() if config_file.exists() else None

  before = storage.retried(f"{config_file} cannot be read", read_before, _ATTEMPTS, say)
  start: dict[str, Any] = {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "step": step,
    "command": record.command,
    "versions": versions(),
  }
  if warm_start is not None:
    start["warm_start"] = dict(warm_start)
  if before is not None and before != record.config_text:
    start["config_before"] = before
  starts = [*_read(model_dir, say).starts, start]
  run = {"facts": dict(facts), "starts": starts}
  write_files(
    model_dir,
    {
      # First: who finds settings finds the vocabulary.
      **record.files,
      "config.gin": record.config_text.encode(),
      "run.json": (json.dumps(run, indent=2) + "\n").encode(),
    },
    say,
  )


def write_files(
  model_dir: epath.Path,
  files: Mapping[str, bytes | None],
  say: Say = storage.print_line,
) -> None:
  """Makes MODEL_DIR hold files, each whole, and not hold others.

  Args:
    model_dir: the run's folder.
    files: contents by path; None for what is to go.
    say: tells the user a line.

  Raises:
    StorageError: if they cannot be written.
  """
  for name, content in files.items():
    storage.retried(
      f"{model_dir / name} cannot be written",
      functools.partial(_make, model_dir / name, content),
      _ATTEMPTS,
      say,
    )


def _make(file: epath.Path, content: bytes | None) -> None:
  there = file.read_bytes() if file.exists() else None
  if there == content:
    return
  if content is None:
    file.unlink()
    return
  file.parent.mkdir(parents=True, exist_ok=True)
  storage.write_bytes(file, content)


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that matter."""
  found = {"python": platform.python_version()}
  for package in _PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[package] = metadata.version(package)
  return found


class _Record(msgspec.Struct):
  """What run.json holds; other programs' keys are passed over."""

  facts: dict[str, Any] | None = None
  starts: list[dict[str, Any]] = []


def _read(model_dir: epath.Path, say: Say) -> _Record:
  file = model_dir / "run.json"

  def read() -> _Record:
    if not file.exists():
      return _Record()
    return json_shapes.parse(file.read_bytes(), _Record)

  try:
    return storage.retried(f"{file} cannot be read", read, _ATTEMPTS, say)
  except ValueError as error:
    raise UserError(
      f"{file} is damaged ({storage.reason(error)}): remove it, and mind that the"
      " settings are those of before"
    ) from error
