"""TensorBoard and Weights & Biases: loaded only when asked for."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import UserError
from .config import TrainConfig


class Writer(Protocol):
  """Takes scalars by name."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of a step."""

  def close(self) -> None:
    """Writes what is left."""


class TensorBoardWriter:
  """Event files in MODEL_DIR/tensorboard."""

  def __init__(self, folder: pathlib.Path):
    """Opens the files.

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
    self._writer = metric_writers.SummaryWriter(str(folder))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of a step."""
    self._writer.write_scalars(step, scalars)
    self._writer.flush()

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()


class WandbWriter:
  """A Weights & Biases run, the same one after every restart."""

  def __init__(
    self, project: str, model_dir: pathlib.Path, settings: Mapping[str, Any]
  ):
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
      dir=str(model_dir),
      config=dict(settings),
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of a step."""
    self._run.log(dict(scalars), step=step)

  def close(self) -> None:
    """Writes what is left."""
    self._run.finish()


def open_writers(
  config: TrainConfig, model_dir: pathlib.Path, settings: Mapping[str, Any]
) -> list[Writer]:
  """Opens what the configuration asks for.

  Args:
    config: says which.
    model_dir: the run's folder, absolute.
    settings: what decides the run's results, for W&B's tables.
  """
  writers: list[Writer] = []
  if config.tensorboard:
    writers.append(TensorBoardWriter(model_dir / "tensorboard"))
  if config.wandb_project:
    writers.append(WandbWriter(config.wandb_project, model_dir, settings))
  return writers
