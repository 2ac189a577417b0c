"""Checkpoints in T5X's layout, through Orbax.

    MODEL_DIR/checkpoint_<step>/state/     {'target': parameters, 'state': {'step',
                                           'param_states'}}, as T5X restores it
    MODEL_DIR/checkpoint_<step>/dataset/   where the data stands, JSON
    MODEL_DIR/checkpoint_<step>/metrics/   the evaluation at that step, if any

A checkpoint is written in the background under a temporary name and renamed when
whole, so what bears its final name can be trusted; see `saving`. What MODEL_DIR holds,
host 0 alone looks up, so that all hosts do the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from commentree.errors import StorageError, UserError
from commentree.training.checkpointing import checksums, orbax_noise, saving, storage
from commentree.training.checkpointing.checkpoint_choice import (
  METRICS,
  Best,
  Metrics,
  best_of,
  metrics_of,
  quality,
)
from commentree.training.checkpointing.reading import (
  check_tree,
  read_params,
  read_together,
  why_unreadable,
)
from commentree.training.checkpointing.saving import path_of, steps_in
from commentree.training.cluster import hosts
from commentree.training.config import CheckpointConfig
from commentree.training.state import (
  PyTree,
  TrainState,
  from_tree,
  to_tree,
  with_empty,
  without_empty,
)

Say = Callable[[str], None]

_DATASET = "dataset/metadata"

# Orbax's manager, which T5X saves by, leaves it; we do not.
_OF_MANAGER = "_CHECKPOINT_METADATA"

# Waits for the save before that are not worth a line.
_SLOW_SECONDS = 1.0

__all__ = [
  "Checkpoints",
  "Restored",
  "is_deleted",
  "path_of",
  "steps_in",
]


@dataclasses.dataclass(frozen=True)
class Restored:
  """A state read from disk.

  Attributes:
    state: the training state.
    data_state: where the data stood, of all hosts there were.
    path: folder it came from.
  """

  state: TrainState
  data_state: dict[str, Any]
  path: epath.Path


@dataclasses.dataclass(frozen=True)
class _Request:
  """What was asked to be saved, kept until it is."""

  state: TrainState
  step: int
  data_state: dict[str, Any]
  metrics: dict[str, float]


class Checkpoints:
  """The checkpoints of a run. Every host calls every method, in the same order."""

  def __init__(self, model_dir: epath.Path, config: CheckpointConfig, say: Say):
    """Opens the folder, and clears away what an interrupted save left.

    Args:
      model_dir: the run's folder, absolute; made if it is not there.
      config: when to save and what to keep.
      say: tells the user a line.
    """
    self._model_dir = epath.Path(model_dir)
    self._config = config
    self._say = say
    orbax_noise.silence()
    self._handler = ocp.StandardCheckpointHandler()
    self._writing: saving.Writing | None = None
    self._request: _Request | None = None
    self._failures = 0
    self._attempts = 0
    self._stuck = False
    self._said_slow = False
    self._last_begun = time.monotonic()

    def look() -> tuple[list[int], dict[str, Any]]:
      self._model_dir.mkdir(parents=True, exist_ok=True)
      removed = saving.remove_unfinished(self._model_dir)
      steps = steps_in(self._model_dir)
      return removed, {str(s): metrics_of(self._model_dir, s) for s in steps}

    removed, metrics = hosts.run_on_host0(
      "checkpoints there",
      lambda: storage.retried(
        f"MODEL_DIR {model_dir} cannot be read", look, config.save_attempts, say
      ),
    )
    for step in removed:
      say(
        f"checkpoint {step} was still being written when the run was killed:"
        " removed; the ones before it are whole"
      )
    # What is there, and how it did; the same on all hosts.
    self._metrics: dict[int, Metrics | None] = {int(s): m for s, m in metrics.items()}

  @property
  def newest(self) -> int | None:
    """The newest checkpoint's step, should it prove readable; None without any."""
    return max(self._metrics, default=None)

  def best(self) -> Best:
    """Returns the best checkpoint."""
    best = best_of(self._metrics, self._config.best_metric)
    return Best() if best is None else Best(best, self._quality(best))

  def due_by_time(self) -> bool:
    """Whether to save now, at any step.

    Because `period_minutes` are over; because a save failed and is to be tried again;
    or because one does not end, which `save` then says. Hosts may differ in their
    answers: let one decide for all.
    """
    now = time.monotonic()
    writing = self._writing
    if writing is not None:
      if writing.ended is None:
        return writing.overdue
      if writing.errors:
        return now > writing.ended + storage.pause(self._failures + 1)
    minutes = self._config.period_minutes
    return minutes is not None and now - self._last_begun > 60 * minutes

  def save(
    self,
    state: TrainState,
    step: int,
    data_state: Mapping[str, Any],
    metrics: Metrics | None,
  ) -> None:
    """Begins to save; returns once the state is copied and may be donated.

    Waits for the save before it, if that is not done. Does nothing if this step is
    saved already.

    Args:
      state: the training state.
      step: its step.
      data_state: where this host's data stands after this step, by stream; those of
        all hosts are saved together.
      metrics: the evaluation at this step, if any.

    Raises:
      StorageError: if saves failed as often in a row as they may, or one hangs.
    """
    self._finish(next_step=step)
    if step in self._metrics:
      return
    self._begin(_Request(state, step, _gathered(step, data_state), dict(metrics or {})))

  def wait(self) -> epath.Path | None:
    """Waits for saves under way; returns the newest checkpoint's folder, if any.

    A save that fails is tried again, while its state is on the devices.

    Raises:
      StorageError: if it fails as often as it may, or hangs.
    """
    self._finish()
    while self._request is not None and not is_deleted(self._request.state):
      time.sleep(storage.pause(self._failures))
      self._begin(self._request)
      self._finish()
    return self._newest()

  def restore(self, like: TrainState) -> Restored | None:
    """Reads the newest checkpoint that can be read, or None.

    One that is damaged is said, and put aside under another name if an older one can
    be read.

    Args:
      like: the abstract state, with the shardings to read it to.

    Raises:
      UserError: if there are checkpoints and each is damaged, or if one is of
        another model.
      StorageError: if the storage refuses to be read.
    """
    damaged: dict[int, str] = {}
    for step in sorted(self._metrics, reverse=True):
      restored = self._read(step, like, damaged)
      if restored is not None:
        for number, reason in damaged.items():
          self._put_aside(number, reason)
        return restored
    if damaged:
      newest, reason = next(iter(damaged.items()))
      raise UserError(
        f"{path_of(self._model_dir, newest)} cannot be read, nor can any before it"
        f" ({reason}): use another MODEL_DIR"
      )
    return None

  def close(self) -> None:
    """Waits for a save under way, and says if it fails; raises nothing."""
    writing, self._writing = self._writing, None
    if writing is not None and not self._stuck and not writing.join():
      self._say(f"checkpoint {writing.step} is still being written: left behind")
      storage.end_when_done(StorageError.exit_code)
    elif writing is not None and writing.errors:
      self._say(f"checkpoint {writing.step} was not saved ({writing.errors[0]})")
    self._handler.close()

  def _quality(self, step: int) -> float:
    return quality(self._metrics[step], self._config.best_metric)

  def _newest(self) -> epath.Path | None:
    return path_of(self._model_dir, max(self._metrics)) if self._metrics else None

  def _last_good(self) -> str:
    path = self._newest()
    return f"the last good checkpoint is {path}" if path else "no checkpoint is there"

  def _begin(self, request: _Request) -> None:
    self._attempts += 1
    self._request = request
    self._last_begun = time.monotonic()
    self._writing = saving.Writing(
      self._handler,
      self._model_dir,
      request.step,
      self._attempts,
      to_tree(request.state),
      {
        _DATASET: json.dumps(request.data_state),
        METRICS: json.dumps(request.metrics),
      },
      self._obsolete(request),
      self._config.save_timeout_seconds,
    )
    if not self._writing.copied():
      # Raises: the state must not be donated while it may yet be read.
      self._finish()

  def _finish(self, next_step: int | None = None) -> None:
    """Waits for the save under way, and takes note of how it went."""
    writing = self._writing
    if writing is None:
      return
    asked = time.monotonic()
    if not writing.join() or writing.hangs:
      self._stuck = True
      storage.end_when_done(StorageError.exit_code)
      raise StorageError(self._hangs_message(writing))
    self._writing = None
    for note in writing.notes:
      self._say(note)
    assert writing.ended is not None
    if next_step is not None and writing.ended > asked + _SLOW_SECONDS:
      self._say_slow(
        writing.step, writing.ended - writing.began, next_step, writing.ended - asked
      )
    if writing.failure is not None:
      raise writing.failure
    if writing.errors:
      self._note_failure(writing)
    else:
      assert self._request is not None
      for step in self._obsolete(self._request):
        del self._metrics[step]
      self._metrics[writing.step] = self._request.metrics
      self._request = None
      self._failures = 0

  def _hangs_message(self, writing: saving.Writing) -> str:
    seconds = time.monotonic() - writing.began
    who = "".join(f"; {error}" for error in writing.errors)
    return (
      f"checkpoint {writing.step} is not in {self._model_dir} after {seconds:.0f} s"
      " (CheckpointConfig.save_timeout_seconds ="
      f" {self._config.save_timeout_seconds:g}{who}): the storage hangs;"
      f" {self._last_good()}: mend the storage and start again"
    )

  def _say_slow(self, step: int, took: float, next_step: int, waited: float) -> None:
    if self._said_slow:
      return
    self._said_slow = True
    self._say(
      f"checkpoint {step} took {took:.1f} s, longer than the time to the next,"
      f" {next_step}: training waited {waited:.1f} s; a longer CheckpointConfig.period"
      f" (now {self._config.period}) saves that"
    )

  def _note_failure(self, writing: saving.Writing) -> None:
    self._failures += 1
    what = "; ".join(writing.errors)
    attempts = self._config.save_attempts
    if self._failures >= attempts:
      self._request = None
      raise StorageError(
        f"checkpoint {writing.step} cannot be saved in {self._model_dir} ({what};"
        f" {attempts} saves failed in a row); {self._last_good()}: mend the storage and"
        " start again"
      )
    self._say(
      f"checkpoint {writing.step} was not saved ({what}): removed what was written;"
      f" trying again (failure {self._failures} of at most {attempts})"
    )

  def _obsolete(self, request: _Request) -> list[int]:
    """Returns the steps that the settings do not keep once a request is saved."""
    metrics = {**self._metrics, request.step: request.metrics}
    by_quality = {
      step: quality(m, self._config.best_metric) for step, m in metrics.items()
    }
    evaluated = [step for step in sorted(metrics) if by_quality[step] > -math.inf]
    best = sorted(evaluated, key=by_quality.__getitem__, reverse=True)
    kept = {*sorted(metrics)[-self._config.keep :], *best[: self._config.keep_best]}
    return sorted(metrics.keys() - kept - {request.step})

  def _read(
    self, step: int, like: TrainState, damaged: dict[int, str]
  ) -> Restored | None:
    """Returns the state of a step, or None and why not in `damaged`."""
    path = path_of(self._model_dir, step)
    attempts = self._config.save_attempts
    tree = to_tree(like)

    def inspect() -> dict[str, Any]:
      checksums.check_files(path)
      # Before arrays are read, so that what does not fit is not taken for damage.
      saved = self._handler.metadata(path / "state").tree
      check_tree(path, saved, tree)
      return {"data": data_state(), "whole": with_empty(saved, tree) == saved}

    def data_state() -> dict[str, Any]:
      if not (path / _DATASET).exists() and (path / _OF_MANAGER).exists():
        # T5X saves no place in our data: they begin at their beginning.
        return {}
      return json.loads((path / _DATASET).read_text())

    def read() -> PyTree:
      checksums.check_share(path)
      assert found is not None
      # T5X saves no dictionaries that are empty, as parts of optax's state are.
      there = tree if found["whole"] else without_empty(tree)
      args = ocp.args.StandardRestore(there)
      return with_empty(self._handler.restore(path / "state", args=args), tree)

    found, reason = hosts.run_on_host0(
      f"look at {path.name}",
      lambda: why_unreadable(path, inspect, attempts, self._say),
    )
    if reason is None:
      items, reason = read_together(path, read, attempts, self._say)
    if reason is not None:
      damaged[step] = reason
      return None
    assert found is not None
    assert items is not None
    return Restored(from_tree(items, like), found["data"], path)

  def _put_aside(self, step: int, reason: str) -> None:
    path = path_of(self._model_dir, step)

    def put_aside() -> str:
      what = f"{path} is damaged and cannot be put aside"
      return storage.retried(
        what,
        lambda: saving.put_aside(self._model_dir, step),
        self._config.save_attempts,
        self._say,
      )

    outcome = hosts.run_on_host0("put aside", put_aside)
    del self._metrics[step]
    self._say(f"{path.name} cannot be read ({reason}): {outcome}")


def restore_params(path: str | epath.Path, like: PyTree) -> PyTree:
  """Reads the parameters of a checkpoint, and nothing else of it.

  Args:
    path: a `checkpoint_<step>` folder, ours or T5X's.
    like: the abstract parameters, with the shardings to read them to.

  Raises:
    UserError: naming what is missing or of another shape.
  """
  return read_params(storage.as_path(path), like)


def _gathered(step: int, data_state: Mapping[str, Any]) -> dict[str, Any]:
  """Returns on host 0 what all hosts gave, on the others nothing."""
  said = hosts.gather_to_host0(
    f"data of checkpoint {step}", json.dumps(dict(data_state))
  )
  together: dict[str, Any] = {}
  for text in said or []:
    together |= json.loads(text)
  return together


def is_deleted(state: TrainState) -> bool:
  """Whether a part of a state was donated to a step, so that it cannot be saved."""
  return any(
    isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state)
  )
