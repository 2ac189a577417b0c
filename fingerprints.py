"""What decides results, as JSON that can be compared and hashed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any


def file_signature(paths: Sequence[str]) -> list[tuple[str, int, int]]:
  """Name, bytes and modification time (ns) of each file: what a fingerprint takes."""
  stats = [(path, os.stat(path)) for path in paths]
  return [(os.path.abspath(p), s.st_size, s.st_mtime_ns) for p, s in stats]


def jsonable(config: Any) -> dict[str, Any]:
  """A settings dataclass as JSON-able data."""
  return dataclasses.asdict(config)
