"""Files of a dataset: whole or not there; one line for the user if a disk refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from commentree import local_files
from commentree.errors import StorageError, UserError, is_disk_full, refused_write


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
    if is_disk_full(error):
      raise StorageError(
        f"{folder}: the disk is full; free some room or move the folder to a larger"
        " disk, and start again: finished work is kept"
      ) from error
    raise refused_write(
      error,
      f"{folder}: cannot be written ({error.strerror or error}); finished work is kept",
    ) from error


@contextlib.contextmanager
def draft(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """As `local_files.draft`, with errors as of `storage_errors`."""
  with storage_errors(path.parent), local_files.draft(path) as written:
    yield written


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as JSON, whole or not at all."""
  with draft(path) as name:
    name.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


@contextlib.contextmanager
def locked(path: pathlib.Path, refusal: str) -> Iterator[None]:
  """Keeps a file locked, where the file system knows locks.

  Raises:
    UserError: with `refusal`, if another process has it.
  """
  with contextlib.ExitStack() as stack:
    with storage_errors(path.parent):
      try:
        stack.enter_context(local_files.lock(path, wait=False))
      except BlockingIOError as error:
        raise UserError(refusal) from error
    yield
