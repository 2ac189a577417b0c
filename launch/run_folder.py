"""The settings of a run by its MODEL_DIR, for verbs that take what `train` left."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from ..errors import StorageError, UserError
from . import gin_cli
from .configurables import RunConfig


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds `--model_dir` and `--step`."""
  parser.add_argument("--model_dir", required=True, help="folder of a training run")
  parser.add_argument(
    "--step", type=_step, help="checkpoint to take, or 'best'; default the newest"
  )


def _step(text: str) -> int | str:
  if text == "best":
    return text
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r}: give a step, or 'best', or nothing for the newest"
    ) from None


def load(model_dir: str, overrides: Sequence[str] = ()) -> RunConfig:
  """Returns the settings that a run was started with.

  Args:
    model_dir: the run's folder, local or in a bucket; it may have been moved since.
    overrides: `NAME = VALUE` of settings to change.

  Raises:
    UserError: if there is no run, or its settings are not sound.
  """
  where = f"MODEL_DIR = {model_dir!r}"
  with _config_of(model_dir) as config:
    return gin_cli.load([config], [where, *overrides])


@contextlib.contextmanager
def _config_of(model_dir: str) -> Iterator[str]:
  """Yields the path of a run's settings; of a run in a bucket, that of a copy."""
  missing = UserError(
    f"--model_dir={model_dir}: holds no config.gin; give the MODEL_DIR of a run made by"
    " `commentree train`"
  )
  if "://" not in model_dir:
    config = pathlib.Path(model_dir).expanduser() / "config.gin"
    if not config.is_file():
      raise missing
    yield str(config.absolute())
    return
  from ..training import storage

  remote = storage.as_path(model_dir) / "config.gin"
  try:
    text = remote.read_text() if remote.exists() else None
  except Exception as error:
    if not storage.refused(error):
      raise
    raise StorageError(
      f"--model_dir={model_dir} cannot be read ({storage.reason(error)})"
    ) from error
  if text is None:
    raise missing
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, "config.gin")
    copy.write_text(text)
    yield str(copy)
