"""Checkpoints in T5X's layout, through Orbax.

    MODEL_DIR/checkpoint_<step>/state/     {'target': parameters, 'state': {'step',
                                           'param_states'}}, as T5X restores it
    MODEL_DIR/checkpoint_<step>/dataset/   where the data stands, JSON
    MODEL_DIR/checkpoint_<step>/metrics/   the evaluation at that step, if any

A checkpoint is written in the background under a temporary name and renamed when
whole, so what bears its final name can be trusted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ..errors import UserError
from . import partitioning, runtime
from .config import CheckpointConfig
from .state import PyTree, TrainState, from_tree, to_tree

Say = Callable[[str], None]
Metrics = Mapping[str, float]

_PREFIX = "checkpoint"
_FINISHED = re.compile(rf"{_PREFIX}_(\d+)")
_UNFINISHED = re.compile(rf"{_PREFIX}_(\d+)\.orbax-checkpoint-tmp.*")


def path_of(model_dir: pathlib.Path, step: int) -> pathlib.Path:
  """Returns the folder of a checkpoint."""
  return model_dir / f"{_PREFIX}_{step}"


def steps_in(model_dir: pathlib.Path) -> list[int]:
  """Returns the steps of the finished checkpoints in a folder, in order."""
  if not model_dir.is_dir():
    return []
  matches = (_FINISHED.fullmatch(entry.name) for entry in model_dir.iterdir())
  return sorted(int(match[1]) for match in matches if match)


def quality(metrics: Metrics | None, best_metric: str) -> float:
  """Returns how good metrics are, more being better; -inf if they do not tell."""
  value = math.nan if metrics is None else metrics.get(best_metric, math.nan)
  if not math.isfinite(value):
    return -math.inf
  return -value if best_metric.endswith("loss") else value


def metrics_of(model_dir: pathlib.Path, step: int) -> Metrics | None:
  """Returns what was saved as a checkpoint's metrics, if anything."""
  file = path_of(model_dir, step) / "metrics" / "metrics"
  return json.loads(file.read_text()) if file.exists() else None


def best_step(model_dir: pathlib.Path, best_metric: str) -> int | None:
  """Returns the best checkpoint's step, None if no checkpoint was evaluated."""
  by_quality = {
    step: quality(metrics_of(model_dir, step), best_metric)
    for step in steps_in(model_dir)
  }
  best = max(by_quality, key=by_quality.__getitem__, default=None)
  return None if best is None or by_quality[best] == -math.inf else best


def choose(
  model_dir: pathlib.Path, step: int | Literal["best"] | None, best_metric: str
) -> int:
  """Returns the step that the user means: a number, 'best', or None for the newest.

  Raises:
    UserError: if there is none.
  """
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


def restore_params(path: str | pathlib.Path, like: PyTree) -> PyTree:
  """Reads the parameters of a checkpoint, and nothing else of it.

  Args:
    path: a `checkpoint_<step>` folder, ours or T5X's.
    like: the abstract parameters, with the shardings to read them to.

  Raises:
    UserError: naming what is missing or of another shape.
  """
  folder = pathlib.Path(path).expanduser().absolute()
  if not (folder / "state").is_dir():
    raise UserError(f"{folder} is no checkpoint: name a checkpoint_<step> folder")
  with ocp.PyTreeCheckpointer() as checkpointer:
    saved = checkpointer.metadata(folder / "state").item_metadata.tree
    _check_shapes(folder, saved["target"], like)
    tree = {"target": like}
    restored = checkpointer.restore(
      folder / "state",
      args=ocp.args.PyTreeRestore(
        item=tree,
        restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
        partial_restore=True,
      ),
    )
  return restored["target"]


def _check_shapes(folder: pathlib.Path, saved: PyTree, like: PyTree) -> None:
  theirs = partitioning.flatten_names(saved)
  for name, leaf in partitioning.flatten_names(like).items():
    if name not in theirs:
      raise UserError(f"{folder} has no parameter {name}, which the model needs")
    shape = tuple(theirs[name].shape)
    if shape != tuple(leaf.shape):
      raise UserError(
        f"{folder}: parameter {name} has shape {shape}, in the model"
        f" {tuple(leaf.shape)}: use the same sizes and vocabulary"
      )


@dataclasses.dataclass(frozen=True)
class Restored:
  """A state read from disk.

  Attributes:
    state: the training state.
    data_state: where the data stood.
    path: folder it came from.
  """

  state: TrainState
  data_state: dict[str, Any]
  path: pathlib.Path


class Checkpoints:
  """The checkpoints of a run."""

  def __init__(self, model_dir: pathlib.Path, config: CheckpointConfig, say: Say):
    """Opens the folder, and clears away what an interrupted save left.

    Args:
      model_dir: the run's folder, absolute; made if it is not there.
      config: when to save and what to keep.
      say: tells the user a line.
    """
    self._model_dir = model_dir
    self._config = config
    self._say = say
    model_dir.mkdir(parents=True, exist_ok=True)
    if runtime.is_chief():
      self._clear_unfinished()

    def quality_of(metrics: Metrics) -> float:
      return quality(metrics, config.best_metric)

    self._manager = ocp.CheckpointManager(
      model_dir,
      item_names=("state", "dataset"),
      options=ocp.CheckpointManagerOptions(
        step_prefix=_PREFIX,
        # Without it metrics are not written; the policy decides what is kept.
        best_fn=quality_of,
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [
            preservation_policy.LatestN(config.keep),
            preservation_policy.BestN(
              get_metric_fn=quality_of,
              n=config.keep_best,
              keep_checkpoints_without_metrics=False,
            ),
          ]
        ),
      ),
    )

  def _clear_unfinished(self) -> None:
    for entry in sorted(self._model_dir.iterdir()):
      match = _UNFINISHED.fullmatch(entry.name)
      if match:
        shutil.rmtree(entry)
        self._say(
          f"checkpoint {match[1]} was still being written when the run was killed:"
          " removed; the ones before it are whole"
        )

  def best_quality(self) -> float:
    """Returns how good the best checkpoint is; -inf if none was evaluated."""
    best = best_step(self._model_dir, self._config.best_metric)
    if best is None:
      return -math.inf
    return quality(metrics_of(self._model_dir, best), self._config.best_metric)

  def save(
    self,
    state: TrainState,
    step: int,
    data_state: Mapping[str, Any],
    metrics: Metrics | None,
  ) -> None:
    """Begins to save; returns once the state is copied and may be donated.

    Does nothing if this step is saved already.

    Args:
      state: the training state.
      step: its step.
      data_state: where the data stands after this step.
      metrics: the evaluation at this step, if any.
    """
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(to_tree(state)),
        dataset=ocp.args.JsonSave(dict(data_state)),
      ),
      # Orbax warns of None at every save.
      metrics=dict(metrics or {}),
      force=True,
    )

  def wait(self) -> pathlib.Path | None:
    """Waits for saves under way; returns the newest checkpoint's folder, if any."""
    self._manager.wait_until_finished()
    steps = steps_in(self._model_dir)
    return path_of(self._model_dir, steps[-1]) if steps else None

  def restore(self, like: TrainState) -> Restored | None:
    """Reads the newest checkpoint that can be read; None if there is none.

    One that cannot is said, and put aside under another name if an older one can.

    Args:
      like: the abstract state, with the shardings to read it to.

    Raises:
      UserError: if there are checkpoints and none can be read.
    """
    broken: dict[int, Exception] = {}
    for step in reversed(steps_in(self._model_dir)):
      try:
        restored = self._restore_step(step, like)
      except Exception as error:  # Orbax names no exception for a damaged checkpoint
        broken[step] = error
        continue
      for unreadable, reason in broken.items():
        self._put_aside(unreadable, reason)
      return restored
    if broken:
      newest, reason = next(iter(broken.items()))
      raise UserError(
        f"{path_of(self._model_dir, newest)} cannot be read, nor can any before it"
        f" ({_first_line(reason)}): use another MODEL_DIR"
      )
    return None

  def _restore_step(self, step: int, like: TrainState) -> Restored:
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(to_tree(like)),
        dataset=ocp.args.JsonRestore(),
      ),
    )
    return Restored(
      state=from_tree(items["state"], like),
      data_state=items["dataset"],
      path=path_of(self._model_dir, step),
    )

  def _put_aside(self, step: int, error: Exception) -> None:
    path = path_of(self._model_dir, step)
    aside = path.with_name(f"unreadable_{path.name}")
    if runtime.is_chief():
      path.rename(aside)
    multihost_utils.sync_global_devices("put aside")
    self._manager.reload()
    self._say(f"{path.name} cannot be read ({_first_line(error)}): now {aside.name}")

  def close(self) -> None:
    """Waits for saves under way and lets go of the folder."""
    self._manager.close()


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:160]
