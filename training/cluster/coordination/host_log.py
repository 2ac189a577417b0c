"""Each host's own log file: what was said, warned of and went wrong, over restarts.

Only host 0 prints to the console; every host keeps `<folder>/host_<index>.log`, lines
with the time in front. The process's stdout and stderr are left as they are: what C++
libraries write there belongs to whoever started the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pathlib
import platform
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from typing import Any

from commentree.console import Console
from commentree.errors import UserError

logger = logging.getLogger("commentree")
# Without a file it says nothing: whoever raises an error prints it as well.
logger.addHandler(logging.NullHandler())
logger.propagate = False

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_WIDTH = 120

_handler: logging.FileHandler | None = None


class HostConsole(Console):
  """A console that prints on host 0 alone, and adds all to this host's log."""

  def __init__(self, *, chief: bool, **options: Any):
    """Makes the console.

    Args:
      chief: whether it prints.
      **options: rich's.
    """
    super().__init__(quiet=not chief, **options)
    self._plain = Console(width=_WIDTH, color_system=None, force_terminal=False)

  def print(self, *objects: Any, **options: Any) -> None:
    """Prints and logs; as rich's."""
    super().print(*objects, **options)
    if _handler is not None:
      with self._plain.capture() as capture:
        self._plain.print(*objects, **options)
      logger.info("%s", capture.get().rstrip("\n"))


def folder(log_dir: str | None, model_dir: str) -> pathlib.Path:
  """The folder of logs: what the user names, else one in MODEL_DIR or, if that is
  remote, `logs` in the current folder.
  """
  if log_dir is not None:
    return pathlib.Path(log_dir).expanduser().absolute()
  if re.match(r"\w+://", model_dir):
    return pathlib.Path("logs").absolute()
  return pathlib.Path(model_dir).expanduser().absolute() / "logs"


def open_log(where: pathlib.Path, index: int) -> pathlib.Path:
  """Opens this host's log, to be added to; from now on all of Python logs there.

  Args:
    where: local folder of the logs.
    index: which host this is.

  Returns:
    The file.

  Raises:
    UserError: if it cannot be written.
  """
  global _handler
  close_log()
  path = where / f"host_{index}.log"
  try:
    where.mkdir(parents=True, exist_ok=True)
    _handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
  except OSError as error:
    raise UserError(
      f"--log_dir={where}: cannot write {path.name} ({error.strerror}); name a local"
      " folder that can be written to"
    ) from error
  _handler.setFormatter(logging.Formatter(_FORMAT))
  logger.setLevel(logging.INFO)
  logger.addHandler(_handler)
  root = logging.getLogger()
  if not root.handlers and index == 0 and logging.lastResort is not None:
    root.addHandler(logging.lastResort)  # a first handler would take its place
  root.addHandler(_handler)
  # On a crash in C++, what Python was doing.
  assert _handler.stream is not None
  faulthandler.enable(_handler.stream)
  logger.info(
    "start: %s (process %d on %s, Python %s)",
    shlex.join(sys.argv),
    os.getpid(),
    socket.gethostname(),
    platform.python_version(),
  )
  return path


@contextlib.contextmanager
def kept(
  log_dir: str | None, model_dir: str, index: int, console: Console
) -> Iterator[None]:
  """Keeps this host's log while entered, with how it ended.

  A folder that was not asked for and cannot be written to, as that of a MODEL_DIR that
  is there to be read, is no reason to fail.

  Raises:
    UserError: if the folder that the user names cannot be written to.
  """
  where = folder(log_dir, model_dir)
  try:
    open_log(where, index)
  except UserError as error:
    if log_dir is not None:
      raise
    console.print(f"no log is kept: {error}")
  try:
    yield
    logger.info("end")
  except SystemExit as error:
    logger.info("end: exit code %s", error.code)
    raise
  except UserError as error:
    logger.error("%s", error)
    logger.info("end: exit code %d", error.exit_code)
    raise
  except BaseException:
    logger.exception("end: exit code 1")
    raise
  finally:
    close_log()


def close_log() -> None:
  """Closes the log, if one is open."""
  global _handler
  if _handler is None:
    return
  faulthandler.cancel_dump_traceback_later()
  faulthandler.disable()
  for owner in (logger, logging.getLogger()):
    owner.removeHandler(_handler)
  _handler.close()
  _handler = None


def dump_stacks() -> None:
  """Writes the stacks of all threads to the log, if one is open."""
  if _handler is not None:
    assert _handler.stream is not None
    faulthandler.dump_traceback(_handler.stream)


def dump_stacks_unless_called_again(seconds: float) -> None:
  """Writes the stacks to the log after so long without another call of this.

  That works even where a library holds Python's lock and no Python code runs.
  """
  if _handler is not None:
    assert _handler.stream is not None
    faulthandler.dump_traceback_later(seconds, file=_handler.stream)
