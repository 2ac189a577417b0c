"""Local files and folders: whole or not there, and locked between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

_DRAFT = "draft"


@contextlib.contextmanager
def draft(
  path: str | os.PathLike[str], *, sole_writer: bool = True
) -> Iterator[pathlib.Path]:
  """Gives a path to write a file to; what is there becomes `path` at the end, at once.

  After an error, or a kill, `path` is what it was before.

  Args:
    path: the file.
    sole_writer: whether no other process writes the file at the same time. All its
      drafts then have one name, so that the next replaces what a kill left behind.
  """
  path = pathlib.Path(path)
  written = path.with_name(f"{path.name}.{_DRAFT}")
  if not sole_writer:
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{_DRAFT}")
  try:
    yield written
    put_in_place(written, path)
  except BaseException:
    with contextlib.suppress(OSError):
      written.unlink()
    raise


def put_in_place(written: pathlib.Path, path: pathlib.Path) -> None:
  """Makes a file that is written, in the folder of `path`, be `path`."""
  sync(written)
  os.replace(written, path)


def write_bytes(
  path: str | os.PathLike[str], data: bytes, *, sole_writer: bool = True
) -> None:
  """Writes a file whole or not at all; see `draft`."""
  with draft(path, sole_writer=sole_writer) as written:
    written.write_bytes(data)


@contextlib.contextmanager
def draft_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a folder to write in, which becomes `path` at the end, at once.

  After an error nothing is left of it.

  Raises:
    OSError: if the disk refuses, or `path` is there by then.
  """
  path = pathlib.Path(path)
  written = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{_DRAFT}")
  try:
    written.mkdir(parents=True)
    yield written
    os.rename(written, path)
    sync(path.parent)
  except BaseException:
    shutil.rmtree(written, ignore_errors=True)
    raise


def sync(path: str | os.PathLike[str]) -> None:
  """Has the system write a file, or a folder's list of files, to the disk."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], *, wait: bool) -> Iterator[bool]:
  """Keeps a file locked; the lock ends with the process, however that ends.

  Args:
    path: the file, which is made.
    wait: whether to wait for another process that has it.

  Yields:
    Whether it is locked: some file systems know no locks.

  Raises:
    BlockingIOError: if another process has it, and `wait` is false.
    OSError: if the file cannot be made.
  """
  with open(path, "w") as file:
    is_locked = True
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      raise
    except OSError:
      is_locked = False
    yield is_locked
