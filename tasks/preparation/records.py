"""Prepared subtrees on disk: random access, so that any order can be read and resumed.

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
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module

from commentree import local_files
from commentree.errors import UserError, refused_write
from commentree.tasks.subtrees.subtree_builder import (
  ANNOTATIONS,
  SUBTREE_FEATURES,
  Subtree,
)

# Raise when the bytes of a record, or what a fingerprint leaves out, change.
FORMAT_VERSION = 3

_META = "META.json"


def encode(subtree: Subtree) -> bytes:
  """Serialises the features of `SUBTREE_FEATURES`, annotations and the tree's id."""
  names = (*SUBTREE_FEATURES, *(name for name in ANNOTATIONS if name in subtree))
  fields: dict[str, bytes] = {
    name: subtree[name].astype("<i4").tobytes() for name in names
  }
  return msgpack.packb({**fields, "tree_id": subtree["tree_id"]})


def decode(record: bytes) -> Subtree:
  """The inverse of `encode`; arrays are read-only views."""
  fields = msgpack.unpackb(record)
  tree_id = fields.pop("tree_id")
  subtree: Subtree = {name: np.frombuffer(raw, "<i4") for name, raw in fields.items()}
  return {**subtree, "tree_id": tree_id}


def fingerprint(settings: Mapping[str, Any]) -> str:
  """A name for prepared records: equal settings, equal name."""
  text = json.dumps({**settings, "format": FORMAT_VERSION}, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclasses.dataclass
class Totals:
  """How many subtrees, and a sum that differs for other subtrees.

  Attributes:
    subtrees: their number.
    digest: the sum of their hashes, in 64 bits: it does not depend on their order.
  """

  subtrees: int = 0
  digest: int = 0

  def add(self, record: bytes) -> None:
    """Counts a subtree, as `encode` makes it."""
    hashed = hashlib.blake2b(record, digest_size=8).digest()
    self.subtrees += 1
    self.digest = (self.digest + int.from_bytes(hashed, "little")) % 2**64

  def __iadd__(self, other: Totals) -> Totals:
    """Adds another's subtrees to these."""
    self.subtrees += other.subtrees
    self.digest = (self.digest + other.digest) % 2**64
    return self


class SubtreeRecords(Sequence[Subtree]):
  """Subtrees of a prepared split, by index.

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
      self.totals = Totals(self.meta["subtrees"], int(self.meta["digest"], 16))
      if sum(parts) != len(self):
        raise ValueError(f"{_META} counts {sum(parts)} and {len(self)} subtrees")
    except (OSError, ValueError, KeyError) as error:
      raise UserError(
        f"{self._folder}: prepared data is damaged ({error}); {_MEND}"
      ) from error
    self._ends = list(itertools.accumulate(parts))
    self._readers = [
      _open_part(part_path(self._folder, part), subtrees)
      for part, subtrees in enumerate(parts)
    ]

  def __len__(self) -> int:
    return self.totals.subtrees

  def __getitem__(self, index):
    """Reads a subtree.

    Raises:
      UserError: naming file and record, if it is not what was written.
    """
    if isinstance(index, slice):
      raise TypeError("SubtreeRecords takes one index at a time")
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
  return folder / f"subtrees-{part:05d}.array_record"


def _open_part(path: pathlib.Path, subtrees: int) -> Any:
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
  if found != subtrees:
    raise UserError(
      f"{path}: holds {found} subtrees where its {_META} says {subtrees}; {_MEND}"
    )
  return reader


def write_part(path: pathlib.Path, subtrees: Iterable[Subtree]) -> Totals:
  """Writes subtrees to a file.

  Args:
    path: the file.
    subtrees: consumed once, never held.
  """
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:1")
  totals = Totals()
  for subtree in subtrees:
    record = encode(subtree)
    writer.write(record)
    totals.add(record)
  writer.close()
  return totals


def write(
  folder: pathlib.Path, subtrees: Iterable[Subtree], meta: Mapping[str, Any]
) -> SubtreeRecords:
  """Writes subtrees as one part and opens them; see `write_parts`."""

  def fill(draft: pathlib.Path) -> list[Totals]:
    return [write_part(part_path(draft, 0), subtrees)]

  return write_parts(folder, fill, meta)


def write_parts(
  folder: pathlib.Path,
  fill: Callable[[pathlib.Path], list[Totals]],
  meta: Mapping[str, Any],
) -> SubtreeRecords:
  """Writes subtrees and opens them; keeps what is there if another process was faster.

  Args:
    folder: final place; its parent is made if need be.
    fill: writes the files of `part_path` into a folder; returns what each holds.
    meta: JSON-able facts, read when all subtrees are written; 'subtrees', 'digest' and
      'parts' are added.

  Raises:
    UserError: if there are no subtrees, or the disk refuses them.
  """
  with draft(folder) as place:
    parts = fill(place)
    totals = Totals()
    for part in parts:
      totals += part
    if not totals.subtrees:
      raise UserError("no comment trees were found in the files given")
    facts = {
      **meta,
      "subtrees": totals.subtrees,
      "digest": f"{totals.digest:016x}",
      "parts": [part.subtrees for part in parts],
    }
    (place / _META).write_text(json.dumps(facts, indent=2))
  return SubtreeRecords(folder)


@contextlib.contextmanager
def draft(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write in, which becomes `folder` on leaving, unless that is there.

  Raises:
    UserError: if the disk refuses.
  """
  try:
    with local_files.draft_folder(folder) as place:
      yield place
  except OSError as error:
    if not folder.exists():
      raise refused_write(
        error,
        f"{folder}: cannot write prepared data ({error.strerror}); set CACHE_DIR to a"
        " folder with room",
      ) from error


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes of this machine from preparing the same while entered.

  Where the file system knows no locks, or refuses, they prepare side by side: `write`
  keeps what is there first.
  """
  with contextlib.ExitStack() as stack:
    with contextlib.suppress(OSError):  # `write` says what is wrong with the folder
      folder.parent.mkdir(parents=True, exist_ok=True)
      path = folder.with_name(f"{folder.name}.lock")
      stack.enter_context(local_files.lock(path, wait=True))
    yield
