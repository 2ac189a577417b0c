"""Files that are whole or not there, and what to say when a disk is full."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from commentree.errors import StorageError, UserError

_DRAFT = ".draft"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# To start again changes nothing about these.
_MISTAKES = (
  *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL),
  *(errno.EACCES, errno.EPERM, errno.EROFS),
)


@contextlib.contextmanager
def storage_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Turns a disk's refusal to write under `folder` into one line.

  Raises:
    StorageError: if the disk refuses.
    UserError: if the folder is none that can be written.
  """
  try:
    yield
  except OSError as error:
    if error.errno in _FULL:
      raise StorageError(
        f"{folder}: the disk is full; free some room or move the folder to a larger"
        " disk, and start again: finished work is kept"
      ) from error
    kind = UserError if error.errno in _MISTAKES else StorageError
    raise kind(
      f"{folder}: cannot be written ({error.strerror or error}); finished work is kept"
    ) from error


@contextlib.contextmanager
def draft(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to; what is there becomes `path` at the end, at once.

  After an error, or a kill, `path` is what it was before.
  """
  name = path.with_name(path.name + _DRAFT)
  with storage_errors(path.parent):
    yield name
    sync(name)
    name.rename(path)


def sync(path: pathlib.Path) -> None:
  """Has the system write a file, or a folder's list of files, to the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as JSON, whole or not at all."""
  with draft(path) as name:
    name.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


@contextlib.contextmanager
def locked(path: pathlib.Path, refusal: str) -> Iterator[None]:
  """Keeps a file locked; the lock ends with the process, however that ends.

  Raises:
    UserError: with `refusal`, if another process has it.
  """
  with storage_errors(path.parent):
    file = open(path, "w")  # noqa: SIM115
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(refusal) from error
    except OSError:
      pass  # this file system knows no locks
    yield
