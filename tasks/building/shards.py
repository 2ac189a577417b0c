"""From the rows of trees to records, shard by shard.

A shard is a range of the shuffle key and holds a file of records for each split that it
has trees of. `<shard>.json` appears when those are whole; a shard that has it is never
made again.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ..columns import to_columns
from ..readers.rows import Row
from ..trees import CommentTree, Fates
from . import filters, grouping, storage, tfrecord, tree_record
from .config import BuildConfig
from .order import first_key, shard_of, shuffle_key
from .parts import Part, Report
from .statistics import Counting, Statistics
from .tree_builder import TreeBuilder

_WRITE_BYTES = 2**20
_ROWS_BETWEEN_REPORTS = 5_000


def is_done(folder: pathlib.Path, shard: int) -> bool:
  """Whether a shard is made."""
  return _done_path(folder, shard).exists()


def read_facts(folder: pathlib.Path, shard: int) -> dict[str, Any]:
  """What is known of a finished shard.

  Returns:
    'fates' and 'statistics'; 'splits': of each split that has records, their number
    'records' and 'record_bytes', and the file's 'bytes' and 'sha256'.
  """
  facts = json.loads(_done_path(folder, shard).read_text("utf-8"))
  facts["fates"] = Fates(
    **{k: collections.Counter(v) for k, v in facts["fates"].items()}
  )
  facts["statistics"] = Statistics.from_dict(facts["statistics"])
  return facts


def records_path(folder: pathlib.Path, shard: int, split: str) -> pathlib.Path:
  """The file of a finished shard's records of a split."""
  return folder / f"{shard:06}-{split}.tfrecord"


def _done_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
  return folder / f"{shard:06}.json"


def make_shards(
  shards: range,
  num_shards: int,
  parts: Sequence[Part],
  folder: pathlib.Path,
  config: BuildConfig,
  memory_mb: int,
  slices: int,
  report: Report,
) -> None:
  """Makes shards that follow each other, and are not made yet.

  Args:
    shards: which.
    num_shards: how many there are in all.
    parts: all rows.
    folder: where shards go.
    config: what is wanted of the trees.
    memory_mb: what a sort may take.
    slices: sorts to make, of a part of the shards' keys each.
    report: gets the number of rows done since the last call, and 0.
  """
  keys = range(first_key(shards.start, num_shards), first_key(shards.stop, num_shards))
  spill = folder / f"{shards.start:06}.spill"
  builder = TreeBuilder(config)
  grouped = _sorted_trees(parts, keys, slices, memory_mb, spill)
  ahead = itertools.chain(grouped, [(None, iter(()))])
  tree_id, rows = next(ahead)
  for shard in shards:
    writer = ShardWriter(folder, shard)
    done = 0
    while (
      tree_id is not None
      and shard_of(shuffle_key(config.seed, tree_id), num_shards) == shard
    ):
      tree, number = builder.build(rows)
      if tree is not None:
        writer.write(filters.split_of(tree_id, tree, config), tree)
      done += number
      if done >= _ROWS_BETWEEN_REPORTS:
        report(done, 0)
        done = 0
      tree_id, rows = next(ahead)
    writer.finish(builder.take_fates())
    report(done, 0)


def _sorted_trees(
  parts: Sequence[Part],
  keys: range,
  slices: int,
  memory_mb: int,
  spill: pathlib.Path,
) -> Iterator[tuple[str, Iterator[Row]]]:
  """Yields trees' ids and rows in order of the key, with a sort for each slice."""
  start, length = keys.start, keys.stop - keys.start
  for number in range(slices):
    first = start + length * number // slices
    last = start + length * (number + 1) // slices - 1
    with grouping.trees_of_rows(parts, first, last, memory_mb, spill) as grouped:
      yield from grouped


class ShardWriter:
  """Writes a shard: drafts until `finish`."""

  def __init__(self, folder: pathlib.Path, shard: int):
    self._folder = folder
    self._shard = shard
    self._files: dict[str, _RecordsFile] = {}
    self._counting = Counting()

  def write(self, split: str, tree: CommentTree) -> None:
    """Writes a tree."""
    columns = to_columns(tree)
    self._counting.add(tree, columns)
    if split not in self._files:
      path = records_path(self._folder, self._shard, split)
      self._files[split] = _RecordsFile(path)
    self._files[split].write(tree_record.encode_columns(columns))

  def finish(self, fates: Fates) -> None:
    """Makes the shard appear."""
    facts = {
      "fates": fates.as_dict(),
      "statistics": self._counting.result().as_dict(),
      "splits": {split: file.finish() for split, file in self._files.items()},
    }
    storage.write_json(_done_path(self._folder, self._shard), facts)


class _RecordsFile:
  """A file of framed records that is hashed as it is written."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._draft = path.with_name(path.name + ".draft")
    self._file: IO[bytes] | None = None
    self._frames: list[bytes] = []
    self._held = 0
    self._hash = hashlib.sha256()
    self._facts = {"records": 0, "record_bytes": 0, "bytes": 0}

  def write(self, record: bytes) -> None:
    framed = tfrecord.frame(record)
    self._frames.append(framed)
    self._held += len(framed)
    self._facts["records"] += 1
    self._facts["record_bytes"] += len(record)
    if self._held >= _WRITE_BYTES:
      self._flush()

  def _flush(self) -> None:
    data = b"".join(self._frames)
    with storage.storage_errors(self._path.parent):
      if self._file is None:
        self._file = open(self._draft, "wb")  # noqa: SIM115
      self._file.write(data)
    self._hash.update(data)
    self._facts["bytes"] += len(data)
    self._frames, self._held = [], 0

  def finish(self) -> dict[str, Any]:
    """Makes the file appear, and returns what is known of it."""
    self._flush()
    assert self._file is not None
    with storage.storage_errors(self._path.parent):
      self._file.close()
      storage.sync(self._draft)
      self._draft.rename(self._path)
    return {**self._facts, "sha256": self._hash.hexdigest()}
