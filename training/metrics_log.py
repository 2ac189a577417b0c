"""`metrics.jsonl`: one JSON object a line, every step's loss in it once, in order.

Rows have a `kind`: `train` (one a step), `speed` (one a logging period) or `eval`.
Numbers are written in full, so that two runs can be compared bit by bit; one that is
not finite is written as a string, which JSON has no number for.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any


class MetricsLog:
  """The file, open for appending."""

  def __init__(self, file: pathlib.Path, last_step: int):
    """Opens the file, and drops what a restart is about to write again.

    Args:
      file: the file; made if it is not there.
      last_step: rows of later steps are dropped, and a line cut off by a kill.
    """
    self._file = file
    if file.exists():
      self._truncate(last_step)
    self._stream = file.open("a")

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends a row; it reaches the disk with the next `sync`, or before."""
    self._stream.write(json.dumps(_finite(row), separators=(",", ":")) + "\n")

  def sync(self) -> None:
    """Returns once every row is on disk."""
    self._stream.flush()
    os.fsync(self._stream.fileno())

  def close(self) -> None:
    """Writes what is left."""
    self._stream.close()

  def _truncate(self, last_step: int) -> None:
    kept = self._file.with_name(self._file.name + ".new")
    with self._file.open("rb") as old, kept.open("wb") as new:
      for line in old:
        if line.endswith(b"\n") and json.loads(line)["step"] <= last_step:
          new.write(line)
    kept.replace(self._file)


def read(file: str | pathlib.Path, kind: str | None = None) -> list[dict[str, Any]]:
  """Returns the rows of a metrics file, of one kind if given."""
  with open(file) as stream:
    rows = [json.loads(line) for line in stream]
  return [row for row in rows if kind in (None, row["kind"])]


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _finite(child) for name, child in value.items()}
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value
