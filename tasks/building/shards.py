"""From the rows of trees to records, shard by shard.

A shard is a range of the shuffle key and holds a file of records for each split that it
has trees of. `<shard>.json` appears when those are whole; a shard that has it is never
made again.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from commentree import local_files
from commentree.errors import UserError
from commentree.tasks.building import filters, grouping
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.order import KEY_BITS, first_key, shard_of
from commentree.tasks.building.parts import ReportBytes, RowPart, text_bytes
from commentree.tasks.building.statistics import Counting, Statistics
from commentree.tasks.building.tree_builder import TreeBuilder
from commentree.tasks.dataset_files import folder_commit, tfrecord, tree_record
from commentree.tasks.trees.columns import to_columns
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

_WRITE_BYTES = 2**20
_ROWS_BETWEEN_REPORTS = 5_000
_BEHIND_ALL_KEYS = 1 << KEY_BITS
# Sorts that fail for lack of memory are made again, so often, each of fewer rows.
_MOST_TRIES = 6
_MORE_SLICES = 4

# What gives trees by the lowest and the highest key.
_Sort = Callable[
  [int, int],
  contextlib.AbstractContextManager[Iterator[tuple[int, str, grouping.TreeRows]]],
]


def is_done(folder: pathlib.Path, shard: int) -> bool:
  """Whether a shard is made."""
  return _done_path(folder, shard).exists()


def read_facts(folder: pathlib.Path, shard: int) -> dict[str, Any]:
  """What is known of a finished shard.

  Returns:
    'read_counts' and 'statistics'; 'splits': of each split that has records, their
    number 'records' and 'record_bytes', and the file's 'bytes' and 'sha256'.
  """
  facts = json.loads(_done_path(folder, shard).read_text("utf-8"))
  facts["read_counts"] = ReadCounts(
    **{k: collections.Counter(v) for k, v in facts["read_counts"].items()}
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
  parts: Sequence[RowPart],
  folder: pathlib.Path,
  config: BuildConfig,
  memory_mb: int,
  slices: int,
  report: ReportBytes,
) -> None:
  """Makes shards that follow each other, and are not made yet.

  Args:
    shards: which.
    num_shards: how many there are in all.
    parts: all rows.
    folder: where shards go.
    config: what is wanted of the trees.
    memory_mb: what a sort may take.
    slices: sorts to make, of a part of the shards' keys each; more where one turns out
      to take more memory.
    report: gets the number of rows done since the last call, and 0.
  """
  limits: grouping.Limits | None = grouping.Limits.of(config)
  rows = sum(part.end - part.first for part in parts)
  text = sum(map(text_bytes, parts))
  if rows <= config.max_tree_comments and text <= config.max_tree_mb * 2**20:
    limits = None
  spill = folder / f"{shards.start:06}.spill"
  sort = functools.partial(
    grouping.trees_of_rows, parts, memory_mb=memory_mb, spill=spill, limits=limits
  )
  failure: Exception | None = None
  for _ in range(_MOST_TRIES):
    try:
      return _make_shards(shards, num_shards, folder, config, sort, slices, report)
    except grouping.SortMemoryError as error:
      failure = error
    # In the middle of a sort: what is done stays, and the rest is cut more finely.
    shards = range(next(s for s in shards if not is_done(folder, s)), shards.stop)
    slices *= _MORE_SLICES
  raise UserError(
    f"--memory: to sort trees of up to {config.max_tree_mb} MB, {memory_mb} MB are too"
    f" little ({failure}); give more, or fewer --workers, and start again: finished"
    " work is kept"
  ) from failure


def _make_shards(
  shards: range,
  num_shards: int,
  folder: pathlib.Path,
  config: BuildConfig,
  sort: _Sort,
  slices: int,
  report: ReportBytes,
) -> None:
  keys = range(first_key(shards.start, num_shards), first_key(shards.stop, num_shards))
  grouped = itertools.chain.from_iterable(
    _sorted_trees(part, sort) for part in _cut(keys, slices)
  )
  builder = TreeBuilder(config)
  ahead = itertools.chain(grouped, [(_BEHIND_ALL_KEYS, "", iter(()))])
  key, tree_id, rows = next(ahead)
  for shard in shards:
    writer = ShardWriter(folder, shard)
    done = 0
    while key < _BEHIND_ALL_KEYS and shard_of(key, num_shards) == shard:
      tree, number = builder.build(rows)
      if tree is not None:
        writer.write(filters.split_of(tree_id, tree, config), tree)
        del tree
      done += number
      if done >= _ROWS_BETWEEN_REPORTS:
        report(done, 0)
        done = 0
      key, tree_id, rows = next(ahead)
    writer.finish(builder.take_fates())
    report(done, 0)


def _cut(keys: range, number: int) -> Iterator[range]:
  """Cuts keys into ranges of about the same length, in order."""
  length = keys.stop - keys.start
  bounds = [keys.start + length * place // number for place in range(number + 1)]
  return (range(start, stop) for start, stop in itertools.pairwise(bounds))


def _sorted_trees(
  keys: range, sort: _Sort
) -> Iterator[tuple[int, str, grouping.TreeRows]]:
  """Yields trees in order of the key; see `grouping.trees_of_rows`.

  Keys whose rows take too much memory to be sorted are cut into two halves.
  """
  waiting = [keys]  # ranges, the first last
  while waiting:
    part = waiting.pop()
    begun = False
    try:
      with sort(part.start, part.stop - 1) as grouped:
        for tree in grouped:
          begun = True
          yield tree
    except grouping.SortMemoryError:
      if begun or part.stop - part.start == 1:
        raise
      waiting += reversed(list(_cut(part, 2)))


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

  def finish(self, read_counts: ReadCounts) -> None:
    """Makes the shard appear."""
    facts = {
      "read_counts": read_counts.as_dict(),
      "statistics": self._counting.result().as_dict(),
      "splits": {split: file.finish() for split, file in self._files.items()},
    }
    folder_commit.write_json(_done_path(self._folder, self._shard), facts)


class _RecordsFile:
  """A file of framed records that is hashed as it is written."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._draft = path.with_name(path.name + ".draft")
    self._file: IO[bytes] | None = None
    self._waiting: list[bytes] = []
    self._held = 0
    self._hash = hashlib.sha256()
    self._facts = {"records": 0, "record_bytes": 0, "bytes": 0}

  def write(self, record: bytes) -> None:
    before, behind = tfrecord.around(record)
    self._waiting += (before, record, behind)
    self._held += len(before) + len(record) + len(behind)
    self._facts["records"] += 1
    self._facts["record_bytes"] += len(record)
    if self._held >= _WRITE_BYTES:
      self._flush()

  def _flush(self) -> None:
    with folder_commit.storage_errors(self._path.parent):
      if self._file is None:
        self._file = open(self._draft, "wb")  # noqa: SIM115
      self._file.writelines(self._waiting)
    for data in self._waiting:
      self._hash.update(data)
    self._facts["bytes"] += self._held
    self._waiting, self._held = [], 0

  def finish(self) -> dict[str, Any]:
    """Makes the file appear, and returns what is known of it."""
    self._flush()
    assert self._file is not None
    with folder_commit.storage_errors(self._path.parent):
      self._file.close()
      local_files.put_in_place(self._draft, self._path)
    return {**self._facts, "sha256": self._hash.hexdigest()}
