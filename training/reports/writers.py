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
from commentree.training.reports import event_file

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
    """Opens the first file.

    Args:
      folder: where they go.
      say: tells the user a line.
    """
    self._folder = folder
    self._say = say
    self._files: dict[str, event_file.EventFile] | None = {}
    self._try(lambda: self._open(""))

  def write(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Takes the scalars of a step."""
    self._try(lambda: self._open(condition or "").write(step, scalars))

  def close(self) -> None:
    """Writes what is left."""
    for file in (self._files or {}).values():
      self._try(file.close)

  def _open(self, condition: str) -> event_file.EventFile:
    assert self._files is not None
    if condition not in self._files:
      self._files[condition] = event_file.EventFile(self._folder / condition)
    return self._files[condition]

  def _try(self, act: Callable[[], Any]) -> None:
    if self._files is None:
      return
    try:
      act()
    except Exception as error:
      if not storage.refused(error):
        raise
      self._files = None
      self._say(
        f"TensorBoard files cannot be written to {self._folder}"
        f" ({storage.reason(error)}): training continues without them"
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
