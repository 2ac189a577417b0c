"""Prepared pieces on disk: random access, so that any order can be read and resumed.

A split of a task is prepared once, into an ArrayRecord file beside a `META.json`, in
a folder named after a fingerprint of all that shaped it. A folder appears under its
final name only when whole, so a killed preparation is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module

from ..errors import UserError
from .pieces import PIECE_FEATURES, Piece

# Raise when the bytes of a record, or what a fingerprint leaves out, change.
FORMAT_VERSION = 1

_RECORDS = "pieces.array_record"
_META = "META.json"


def encode(piece: Piece) -> bytes:
  """Serialises the features of `PIECE_FEATURES` and the tree's id."""
  fields: dict[str, bytes] = {
    name: piece[name].astype("<i4").tobytes() for name in PIECE_FEATURES
  }
  return msgpack.packb({**fields, "tree_id": piece["tree_id"]})


def decode(record: bytes) -> Piece:
  """The inverse of `encode`; arrays are read-only views."""
  fields = msgpack.unpackb(record)
  tree_id = fields.pop("tree_id")
  piece: Piece = {name: np.frombuffer(raw, "<i4") for name, raw in fields.items()}
  return {**piece, "tree_id": tree_id}


def fingerprint(settings: Mapping[str, Any]) -> str:
  """A name for prepared records: equal settings, equal name."""
  text = json.dumps({**settings, "format": FORMAT_VERSION}, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class PieceRecords(Sequence[Piece]):
  """Pieces of a prepared split, by index.

  Attributes:
    meta: what `write` was told of them.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Opens a prepared split.

    Args:
      folder: where `write` put it.

    Raises:
      UserError: if the folder is damaged.
    """
    self._folder = pathlib.Path(folder)
    try:
      self.meta: dict[str, Any] = json.loads((self._folder / _META).read_text())
      self._reader = array_record_module.ArrayRecordReader(
        str(self._folder / _RECORDS), options="readahead_buffer_size:0"
      )
      whole = self._reader.num_records() == self.meta["pieces"]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
      raise UserError(
        f"{self._folder}: prepared data is damaged ({error}); delete the folder and"
        " start again"
      ) from error
    if not whole:
      raise UserError(
        f"{self._folder}: holds {self._reader.num_records()} pieces where its"
        f" {_META} says {self.meta['pieces']}; delete the folder and start again"
      )

  def __len__(self) -> int:
    return self.meta["pieces"]

  def __getitem__(self, index):
    if isinstance(index, slice):
      raise TypeError("PieceRecords takes one index at a time")
    return decode(self._reader.read([int(index)])[0])


def write(
  folder: pathlib.Path, pieces: Iterable[Piece], meta: Mapping[str, Any]
) -> PieceRecords:
  """Writes pieces and opens them; keeps what is there if another process was faster.

  Args:
    folder: final place; its parent is made if need be.
    pieces: consumed once, never held.
    meta: JSON-able facts; 'pieces' is added. Read when the pieces are exhausted.

  Raises:
    UserError: if there are no pieces, or the disk refuses them.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
  except OSError as error:
    raise UserError(
      f"{folder.parent}: cannot write prepared data ({error.strerror}); set CACHE_DIR"
      " to a folder with room"
    ) from error
  try:
    writer = array_record_module.ArrayRecordWriter(
      str(draft / _RECORDS), "group_size:1,zstd:1"
    )
    count = 0
    for piece in pieces:
      writer.write(encode(piece))
      count += 1
    writer.close()
    if not count:
      raise UserError("no comment trees were found in the files given")
    (draft / _META).write_text(json.dumps({**meta, "pieces": count}, indent=2))
    if not folder.exists():
      os.rename(draft, folder)
  except OSError as error:
    if not folder.exists():
      raise UserError(
        f"{folder}: cannot write prepared data ({error.strerror}); set CACHE_DIR to a"
        " folder with room"
      ) from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return PieceRecords(folder)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes of this machine from preparing the same while entered.

  Where the file system knows no locks, or refuses, they prepare side by side: `write`
  keeps what is there first.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = open(folder.with_name(f"{folder.name}.lock"), "w")  # noqa: SIM115
  except OSError:
    yield  # `write` says what is wrong with the folder
    return
  with file:
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def file_signature(paths: Sequence[str]) -> list[tuple[str, int, int]]:
  """Name, bytes and modification time (ns) of each file: what a fingerprint takes."""
  stats = [(path, os.stat(path)) for path in paths]
  return [(os.path.abspath(p), s.st_size, s.st_mtime_ns) for p, s in stats]


def jsonable(config: Any) -> dict[str, Any]:
  """A settings dataclass as JSON-able data."""
  return dataclasses.asdict(config)
