"""TensorBoard and Weights & Biases: loaded only when asked for."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from etils import epath

from commentree.errors import UserError
from commentree.training.checkpointing import storage
from commentree.training.config import TrainConfig

Say = Callable[[str], None]


class Writer(Protocol):
  """Takes scalars by name."""

  def write(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Takes the scalars of a step.

    Args:
      step: the step.
      scalars: by name.
      condition: the ancestor condition or baseline that they are of, if of one; the
        same names are drawn in one chart, a curve for each condition.
    """

  def close(self) -> None:
    """Writes what is left."""


class TensorBoardWriter:
  """Event files in MODEL_DIR/tensorboard; given up if the storage refuses them.

  What is of a condition goes to a folder of its own there, which TensorBoard takes for
  a run: it draws equal names of several runs in one chart.
  """

  def __init__(self, folder: epath.Path, say: Say = storage.print_line):
    """Opens the files.

    Args:
      folder: where they go.
      say: tells the user a line.

    Raises:
      UserError: if TensorFlow is not there.
    """
    try:
      from clu import metric_writers
    except ImportError as error:
      raise UserError(
        f"TrainConfig.tensorboard = True needs TensorFlow ({error}): install it, or"
        " set it to False"
      ) from error
    self._folder = folder
    self._say = say
    self._writers: dict[str, Any] | None = None
    if str(folder).startswith("s3://"):
      self._say(f"no TensorBoard files: TensorFlow cannot write to {folder}")
    else:
      self._writers = {}
      self._metric_writers = metric_writers
      self._try(lambda: self._open(""))

  def write(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Takes the scalars of a step."""

    def write() -> None:
      writer = self._open(condition or "")
      writer.write_scalars(step, scalars)
      writer.flush()

    self._try(write)

  def close(self) -> None:
    """Writes what is left."""
    for writer in (self._writers or {}).values():
      self._try(writer.close)

  def _open(self, condition: str) -> Any:
    assert self._writers is not None
    if condition not in self._writers:
      folder = str(self._folder / condition)
      self._writers[condition] = self._metric_writers.SummaryWriter(folder)
    return self._writers[condition]

  def _try(self, act: Callable[[], Any]) -> None:
    if self._writers is None:
      return
    try:
      act()
    except Exception as error:
      if not storage.refused(error):
        raise
      self._writers = None
      self._say(
        f"TensorBoard files cannot be written to {self._folder}"
        f" ({storage.reason(error)}): training goes on without them"
      )


class WandbWriter:
  """A Weights & Biases run, the same one after every restart."""

  def __init__(self, project: str, model_dir: epath.Path, settings: Mapping[str, Any]):
    """Opens the run.

    Raises:
      UserError: if wandb is not installed.
    """
    try:
      import wandb
    except ImportError as error:
      raise UserError(
        f"TrainConfig.wandb_project = {project!r} needs wandb: install"
        " commentree[wandb], or set it to None"
      ) from error
    self._run = wandb.init(
      project=project,
      name=model_dir.name,
      id=hashlib.sha256(str(model_dir).encode()).hexdigest()[:16],
      resume="allow",
      dir=tempfile.gettempdir() if storage.is_remote(model_dir) else str(model_dir),
      config=dict(settings),
    )

  def write(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Takes the scalars of a step."""
    ending = f"/{condition}" if condition else ""
    self._run.log({f"{name}{ending}": v for name, v in scalars.items()}, step=step)

  def close(self) -> None:
    """Writes what is left."""
    self._run.finish()


def open_writers(
  config: TrainConfig,
  model_dir: epath.Path,
  settings: Mapping[str, Any],
  say: Say = storage.print_line,
) -> list[Writer]:
  """Opens what the configuration asks for.

  Args:
    config: says which.
    model_dir: the run's folder, absolute.
    settings: what decides the run's results, for W&B's tables.
    say: tells the user a line.
  """
  writers: list[Writer] = []
  if config.tensorboard:
    writers.append(TensorBoardWriter(model_dir / "tensorboard", say))
  if config.wandb_project:
    writers.append(WandbWriter(config.wandb_project, model_dir, settings))
  return writers
