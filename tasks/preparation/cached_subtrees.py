"""Subtrees in a cache that SeqIO's job wrote, by index, in the order of their source.

SeqIO's job tokenises on many machines and writes subtrees in the order in which Beam
has them in. An *index*, made once, brings them back into the order of the trees in
their source and of the subtrees in their tree, which is the order of prepared subtrees:
  training
sees the same examples, cached or not.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from etils import epath
from google.protobuf.message import DecodeError

from commentree.errors import StorageError, UserError
from commentree.tasks.dataset_files import tfrecord
from commentree.tasks.dataset_files.tree_record import Example
from commentree.tasks.preparation import records
from commentree.tasks.subtrees.subtree_builder import (
  ANNOTATIONS,
  NODE_ANNOTATIONS,
  NODE_FEATURES,
  PLACE_FEATURES,
  SUBTREE_FEATURES,
  Subtree,
)

# What our job notes of the settings, beside SeqIO's COMPLETED.
NOTE = "COMMENTREE.json"

_ORDER, _META = "ORDER", "META.json"
_FRAME_BYTES = 16  # what `tfrecord.frame` adds to a record
# An index is sorted in memory so many trees at a time.
_TREES_IN_BUCKET = 2**20
_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u4"), ("shard", "<u4")])
_UNSORTED = np.dtype([("tree", "<i8"), ("subtree", "<i8"), *_ENTRY.descr])
_pack = struct.Struct("<qqQII").pack
_MEND = "make the cache again with `commentree cache --overwrite`"

Say = Callable[[str], None]


def _key(files: Sequence[epath.Path]) -> str:
  """Tells these files from others."""
  return records.fingerprint({"files": [(f.name, f.stat().length) for f in files]})


def cached_files(folder: epath.Path, split: str) -> list[epath.Path]:
  """The files of a split that SeqIO's job wrote into a task's cache folder.

  Raises:
    UserError: naming what is missing.
  """
  import seqio

  info = epath.Path(seqio.get_cached_info_path(os.fspath(folder), split))
  try:
    num_shards = int(json.loads(info.read_text())["num_shards"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{info}: tells nothing of the cached split ({error!r}); {_MEND}"
    ) from error
  prefix = seqio.get_cached_tfrecord_prefix(os.fspath(folder), split)
  files = [
    epath.Path(f"{prefix}-{shard:05d}-of-{num_shards:05d}")
    for shard in range(num_shards)
  ]
  for file in files:
    if not file.exists():
      raise UserError(f"{file}: is missing; {_MEND}")
  return files


def _num_examples(folder: epath.Path, split: str) -> int:
  import seqio

  path = epath.Path(seqio.get_cached_stats_path(os.fspath(folder), split))
  try:
    return int(json.loads(path.read_text())["examples"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path}: counts no examples ({error!r}); {_MEND}") from error


class CachedSubtrees(Sequence[Subtree]):
  """The subtrees of a cached split.

  Attributes:
    totals: their number and digest.
  """

  def __init__(
    self, folder: epath.Path, split: str, index_root: pathlib.Path, say: Say
  ):
    """Opens a cached split; makes its index if it is missing.

    Args:
      folder: the task's folder in a SeqIO cache.
      split: which.
      index_root: where an index goes that does not lie beside the cache.
      say: receives messages about slow work.

    Raises:
      UserError: naming a file that is missing or damaged.
    """
    self._split = split
    self._files = cached_files(folder, split)
    key = _key(self._files)
    index = folder / f"index-{split}"
    if _meta(index).get("key") != key:
      index = epath.Path(index_root / f"{folder.name}-{split}-{key}")
      with records.locked(pathlib.Path(index)):
        if not index.exists():
          say(f"indexing the cached split {split!r} in {folder}")
          expected = _num_examples(folder, split)
          write_index(pathlib.Path(index), self._files, key, expected)
    self._index = index
    meta = _meta(index)
    if meta.get("key") != key:
      raise UserError(f"{index / _META}: is damaged; delete the folder {index}")
    self.totals = records.Totals(meta["subtrees"], int(meta["digest"], 16))
    self._order = _read_order(index / _ORDER, len(self))
    self._open = functools.lru_cache(maxsize=128)(lambda s: self._files[s].open("rb"))
    self._lock = threading.Lock()

  def copy_index(self) -> None:
    """Lays the index beside the cached split, where every host finds it."""
    there = self._files[0].parent / f"index-{self._split}"
    if there != self._index:
      there.mkdir(parents=True, exist_ok=True)
      for name in (_ORDER, _META):
        (self._index / name).copy(there / name, overwrite=True)

  def __len__(self) -> int:
    return self.totals.subtrees

  def __getitem__(self, index):
    """Reads a subtree.

    Raises:
      UserError: naming file and place, if it is not what was written.
      StorageError: if the disk refuses.
    """
    if isinstance(index, slice):
      raise TypeError("CachedSubtrees takes one index at a time")
    offset, length, shard = self._order[index].tolist()
    try:
      with self._lock:
        file = self._open(shard)
        file.seek(offset)
        record = _unframe(file.read(length + _FRAME_BYTES), length)
      return decode(record)
    except tfrecord.DamagedError as error:
      raise UserError(
        f"{self._files[shard]}: the subtree at byte {offset:,} is damaged ({error});"
        f" {_MEND}"
      ) from error
    except OSError as error:
      raise StorageError(f"{self._files[shard]}: cannot be read ({error})") from error


def _unframe(framed: bytes, length: int) -> bytes:
  for record in tfrecord.read(io.BytesIO(framed)):
    if len(record) == length:
      return record
  raise tfrecord.DamagedError("another record is there")


def decode(record: bytes) -> Subtree:
  """A subtree from its serialised example.

  Raises:
    tfrecord.DamagedError: if the record holds no subtree, regardless of its checksum.
  """
  try:
    features = Example.FromString(record).features.feature
    names = (*SUBTREE_FEATURES, *(name for name in ANNOTATIONS if name in features))
    subtree: Subtree = {
      name: np.array(features[name].int64_list.value, np.int32) for name in names
    }
    subtree["tree_id"] = features["tree_id"].bytes_list.value[0]
  except (DecodeError, LookupError, OverflowError) as error:
    raise tfrecord.DamagedError(f"it holds no subtree: {error}") from error
  _check_shape(subtree)
  return subtree


def _check_shape(subtree: Subtree) -> None:
  """Makes sure that arrays fit each other, and parents come before their children."""
  lengths, parents = subtree["lengths"], subtree["parents"]
  nodes, tokens = len(lengths), len(subtree["tokens"])
  for name in subtree.keys() - {"tree_id"}:
    expected = nodes if name in (*NODE_FEATURES, *NODE_ANNOTATIONS) else tokens
    if len(subtree[name]) != expected:
      raise tfrecord.DamagedError(
        f"it holds no subtree: {len(subtree[name])} {name}, not {expected}"
      )
  if (lengths < 0).any() or lengths.sum(dtype=np.int64) != tokens:
    raise tfrecord.DamagedError(
      "it holds no subtree: lengths are not those of its tokens"
    )
  if (parents < -1).any() or (parents >= np.arange(nodes)).any():
    raise tfrecord.DamagedError("it holds no subtree: a parent does not come first")


def _meta(index: epath.Path) -> dict[str, Any]:
  try:
    return json.loads((index / _META).read_text())
  except (OSError, ValueError):
    return {}


def _read_order(path: epath.Path, entries: int) -> np.ndarray:
  """The index's entries; mapped into memory where the file system can."""
  try:
    if "://" in os.fspath(path):
      order = np.frombuffer(path.read_bytes(), _ENTRY)
    else:
      order = np.memmap(path, _ENTRY, mode="r")
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path}: cannot be read ({error}); delete the folder {path.parent}"
    ) from error
  if len(order) != entries:
    raise UserError(
      f"{path}: holds {len(order):,} entries, not {entries:,}; delete the folder"
      f" {path.parent}"
    )
  return order


def write_index(
  index: pathlib.Path, files: Sequence[epath.Path], key: str, expected: int
) -> None:
  """Reads all cached subtrees once and notes where each of them lies.

  Args:
    index: the folder to make.
    files: of the cached split.
    key: tells these files from others.
    expected: subtrees there must be.

  Raises:
    UserError: if a record is damaged, or subtrees are missing or there twice.
  """
  totals = records.Totals()
  with records.draft(index) as place:
    with contextlib.ExitStack() as stack:
      buckets: dict[int, IO[bytes]] = {}
      for shard, file in enumerate(files):
        for tree, subtree, offset, record in _scan(file):
          number = tree // _TREES_IN_BUCKET
          if number not in buckets:
            bucket = open(place / f"bucket-{number}", "wb")  # noqa: SIM115
            buckets[number] = stack.enter_context(bucket)
          buckets[number].write(_pack(tree, subtree, offset, len(record), shard))
          totals.add(records.encode(decode(record)))
    if totals.subtrees != expected:
      raise UserError(
        f"{files[0].parent}: holds {totals.subtrees:,} subtrees, its statistics count"
        f" {expected:,}; {_MEND}"
      )
    with open(place / _ORDER, "wb") as out:
      for number in sorted(buckets):
        path = place / f"bucket-{number}"
        entries = np.fromfile(path, _UNSORTED)
        entries = entries[np.lexsort((entries["subtree"], entries["tree"]))]
        _check_subtrees(entries, files[0].parent)
        entries[list(_ENTRY.names or ())].astype(_ENTRY).tofile(out)
        path.unlink()
    meta = {"key": key, "subtrees": totals.subtrees, "digest": f"{totals.digest:016x}"}
    (place / _META).write_text(json.dumps(meta, indent=2))


def _check_subtrees(entries: np.ndarray, folder: epath.Path) -> None:
  """Makes sure that each tree's subtrees are there, once, by their numbers."""
  same_tree = np.append(False, entries["tree"][1:] == entries["tree"][:-1])
  before = np.append(0, entries["subtree"][:-1])
  wrong = entries["subtree"] != np.where(same_tree, before + 1, 0)
  if wrong.any():
    tree = entries["tree"][np.argmax(wrong)]
    raise UserError(
      f"{folder}: subtrees of tree {tree:,} of its source are missing or there twice;"
      f" {_MEND}"
    )


def _scan(file: epath.Path) -> Iterator[tuple[int, int, int, bytes]]:
  """Yields each record with its tree's place, its place in the tree and its offset."""
  offset = 0
  try:
    with file.open("rb") as stream:
      for record in tfrecord.read(stream):  # type: ignore[arg-type]
        try:
          features = Example.FromString(record).features.feature
        except DecodeError as error:
          raise tfrecord.DamagedError(
            f"holds no subtree at {offset:,} ({error})"
          ) from error
        places = [features[name].int64_list.value for name in PLACE_FEATURES]
        if any(len(values) != 1 for values in places):
          raise UserError(
            f"{file}: its subtrees do not say where in their source they lay: they come"
            f" of another version, or of a task that is not ours; {_MEND}"
          )
        (tree,), (subtree,) = places
        yield tree, subtree, offset, record
        offset += len(record) + _FRAME_BYTES
  except tfrecord.DamagedError as error:
    raise UserError(f"{file}: {error}; {_MEND}") from error
  except OSError as error:
    raise StorageError(f"{file}: cannot be read ({error})") from error
