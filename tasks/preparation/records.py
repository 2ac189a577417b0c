"""Prepared pieces on disk: random access, so that any order can be read and resumed.

A split of a task is prepared once, into ArrayRecord files beside a `META.json`, in a
folder named after a fingerprint of all that shaped it: a file for each shard of the
task's source, which as many processes can write at once. A folder appears under its
final name only when whole, so a killed preparation is never read. ArrayRecord keeps
hashes of what it holds and checks them at every read.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module

from commentree.errors import UserError
from commentree.tasks.subtrees.subtree_builder import ANNOTATIONS, PIECE_FEATURES, Piece

# Raise when the bytes of a record, or what a fingerprint leaves out, change.
FORMAT_VERSION = 2

_META = "META.json"


def encode(piece: Piece) -> bytes:
  """Serialises the features of `PIECE_FEATURES`, annotations and the tree's id."""
  names = (*PIECE_FEATURES, *(name for name in ANNOTATIONS if name in piece))
  fields: dict[str, bytes] = {
    name: piece[name].astype("<i4").tobytes() for name in names
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


@dataclasses.dataclass
class Totals:
  """How many pieces, and a sum by which other pieces are told from these.

  Attributes:
    pieces: their number.
    digest: the sum of their hashes, in 64 bits: it does not depend on their order.
  """

  pieces: int = 0
  digest: int = 0

  def add(self, record: bytes) -> None:
    """Counts a piece, as `encode` makes it."""
    hashed = hashlib.blake2b(record, digest_size=8).digest()
    self.pieces += 1
    self.digest = (self.digest + int.from_bytes(hashed, "little")) % 2**64

  def __iadd__(self, other: Totals) -> Totals:
    """Adds another's pieces to these."""
    self.pieces += other.pieces
    self.digest = (self.digest + other.digest) % 2**64
    return self


class PieceRecords(Sequence[Piece]):
  """Pieces of a prepared split, by index.

  Attributes:
    meta: what `write` was told of them.
    totals: their number and digest.
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
      parts: list[int] = self.meta["parts"]
      self.totals = Totals(self.meta["pieces"], int(self.meta["digest"], 16))
      if sum(parts) != len(self):
        raise ValueError(f"{_META} counts {sum(parts)} and {len(self)} pieces")
    except (OSError, ValueError, KeyError) as error:
      raise UserError(
        f"{self._folder}: prepared data is damaged ({error}); {_MEND}"
      ) from error
    self._ends = list(itertools.accumulate(parts))
    self._readers = [
      _open_part(part_path(self._folder, part), pieces)
      for part, pieces in enumerate(parts)
    ]

  def __len__(self) -> int:
    return self.totals.pieces

  def __getitem__(self, index):
    """Reads a piece.

    Raises:
      UserError: naming file and record, if it is not what was written.
    """
    if isinstance(index, slice):
      raise TypeError("PieceRecords takes one index at a time")
    part = bisect.bisect_right(self._ends, index)
    place = int(index) - (self._ends[part - 1] if part else 0)
    try:
      record = self._readers[part].read([place])[0]
    except RuntimeError as error:
      raise UserError(
        f"{part_path(self._folder, part)}: record {place} is damaged"
        f" ({' '.join(str(error).split())}); {_MEND}"
      ) from error
    return decode(record)


_MEND = "delete the folder and start again"


def part_path(folder: pathlib.Path, part: int) -> pathlib.Path:
  """The file of a prepared split's part."""
  return folder / f"pieces-{part:05d}.array_record"


def _open_part(path: pathlib.Path, pieces: int) -> Any:
  """Opens an ArrayRecord file that is to hold so many records."""
  if not path.exists():
    raise UserError(f"{path}: is missing; {_MEND}")
  try:
    reader = array_record_module.ArrayRecordReader(
      str(path), options="readahead_buffer_size:0"
    )
    found = reader.num_records()
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(
      f"{path}: is damaged ({' '.join(str(error).split())}); {_MEND}"
    ) from error
  if found != pieces:
    raise UserError(
      f"{path}: holds {found} pieces where its {_META} says {pieces}; {_MEND}"
    )
  return reader


def write_part(path: pathlib.Path, pieces: Iterable[Piece]) -> Totals:
  """Writes pieces to a file.

  Args:
    path: the file.
    pieces: consumed once, never held.
  """
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:1")
  totals = Totals()
  for piece in pieces:
    record = encode(piece)
    writer.write(record)
    totals.add(record)
  writer.close()
  return totals


def write(
  folder: pathlib.Path, pieces: Iterable[Piece], meta: Mapping[str, Any]
) -> PieceRecords:
  """Writes pieces as one part and opens them; see `write_parts`."""

  def fill(draft: pathlib.Path) -> list[Totals]:
    return [write_part(part_path(draft, 0), pieces)]

  return write_parts(folder, fill, meta)


def write_parts(
  folder: pathlib.Path,
  fill: Callable[[pathlib.Path], list[Totals]],
  meta: Mapping[str, Any],
) -> PieceRecords:
  """Writes pieces and opens them; keeps what is there if another process was faster.

  Args:
    folder: final place; its parent is made if need be.
    fill: writes the files of `part_path` into a folder; returns what each holds.
    meta: JSON-able facts, read when all pieces are written; 'pieces', 'digest' and
      'parts' are added.

  Raises:
    UserError: if there are no pieces, or the disk refuses them.
  """
  with draft(folder) as place:
    parts = fill(place)
    totals = Totals()
    for part in parts:
      totals += part
    if not totals.pieces:
      raise UserError("no comment trees were found in the files given")
    facts = {
      **meta,
      "pieces": totals.pieces,
      "digest": f"{totals.digest:016x}",
      "parts": [part.pieces for part in parts],
    }
    (place / _META).write_text(json.dumps(facts, indent=2))
  return PieceRecords(folder)


@contextlib.contextmanager
def draft(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write in, which becomes `folder` on leaving, unless that is there.

  Raises:
    UserError: if the disk refuses.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
  except OSError as error:
    raise UserError(
      f"{folder.parent}: cannot write prepared data ({error.strerror}); set CACHE_DIR"
      " to a folder with room"
    ) from error
  try:
    yield place
    if not folder.exists():
      os.rename(place, folder)
  except OSError as error:
    if not folder.exists():
      raise UserError(
        f"{folder}: cannot write prepared data ({error.strerror}); set CACHE_DIR to a"
        " folder with room"
      ) from error
  finally:
    shutil.rmtree(place, ignore_errors=True)


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
