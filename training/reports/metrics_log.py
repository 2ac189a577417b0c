"""`metrics.jsonl`: one JSON object a line, every step's loss in it once, in order.

Rows have a `kind`: `train` (one a step), `speed` (one a logging period) or `eval`.
Numbers are written in full, so that two runs can be compared bit by bit; one that is
not finite is written as a string, which JSON has no number for.

A bucket has no appending: there the file is kept on this machine and written whole, now
and then and before every checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from etils import epath

from commentree.training.checkpointing import storage

Say = Callable[[str], None]

_ATTEMPTS = 3
_UPLOAD_SECONDS = 60.0


class MetricsLog:
  """The file, open for appending."""

  def __init__(
    self, file: epath.PathLike, last_step: int, say: Say = storage.print_line
  ):
    """Opens the file, and drops what a restart is about to write again.

    Args:
      file: the file; made if it is not there.
      last_step: rows of later steps are dropped, and a line cut off by a kill.
      say: tells the user a line.

    Raises:
      StorageError: if it cannot be read or written.
    """
    self._file = epath.Path(file)
    self._say = say
    self._rows: list[bytes] = []
    self._copy: IO[bytes] | None = None
    if storage.is_remote(self._file):
      self._copy = tempfile.NamedTemporaryFile(  # noqa: SIM115, closed by close()
        prefix="commentree_metrics_"
      )
    self._local = pathlib.Path(self._copy.name if self._copy else self._file)
    # Bytes known to be whole rows on disk, and of them those in the bucket.
    self._length = self._try("read", lambda: self._begin(last_step))
    self._uploaded = -1
    self._uploaded_at = time.monotonic()

  def write(self, row: Mapping[str, Any]) -> None:
    """Takes a row; it reaches the disk with the next `sync`."""
    line = json.dumps(_finite(row), separators=(",", ":")) + "\n"
    self._rows.append(line.encode())

  def sync(self, *, upload: bool = False) -> None:
    """Returns once every row is on disk.

    Args:
      upload: whether rows must be in the bucket too, if that is where the file lies;
        else they are there within about a minute.

    Raises:
      StorageError: if they cannot be written.
    """
    if self._rows:
      self._try("written", self._append)
    due = time.monotonic() - self._uploaded_at >= _UPLOAD_SECONDS
    if self._copy and (upload or due) and self._uploaded != self._length:
      self._try("written", self._upload)

  def close(self) -> None:
    """Writes what is left; says if that cannot be done."""
    try:
      self._append()
      if self._copy:
        self._upload()
    except Exception as error:
      if not storage.refused(error):
        raise
      self._say(f"{self._file} lacks its last rows ({storage.reason(error)})")
    finally:
      if self._copy:
        self._copy.close()

  def _try(self, done: str, act: Callable[[], Any]) -> Any:
    return storage.retried(f"{self._file} cannot be {done}", act, _ATTEMPTS, self._say)

  def _begin(self, last_step: int) -> int:
    """Writes the rows to be kept, whole; returns their length."""
    lines: list[bytes] = []
    if self._file.exists():
      lines = self._file.read_bytes().splitlines(keepends=True)
    kept = b"".join(
      line
      for line in lines
      if line.endswith(b"\n") and json.loads(line)["step"] <= last_step
    )
    # A new run begins its file at once, so that whoever follows it finds it.
    storage.write_bytes(epath.Path(self._local), kept)
    return len(kept)

  def _append(self) -> None:
    data = b"".join(self._rows)
    with open(self._local, "r+b") as stream:
      # Over what a write that failed may have left.
      stream.truncate(self._length)
      stream.seek(self._length)
      stream.write(data)
      stream.flush()
      os.fsync(stream.fileno())
    self._length += len(data)
    self._rows = []

  def _upload(self) -> None:
    self._file.write_bytes(self._local.read_bytes())
    self._uploaded = self._length
    self._uploaded_at = time.monotonic()


def read(file: epath.PathLike, kind: str | None = None) -> list[dict[str, Any]]:
  """Returns the rows of a metrics file, of one kind if given."""
  rows = [json.loads(line) for line in epath.Path(file).read_text().splitlines()]
  return [row for row in rows if kind in (None, row["kind"])]


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _finite(child) for name, child in value.items()}
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value
