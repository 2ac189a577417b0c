"""Labels from a file of their own, put on the rows of all others by their ids.

    id,label                  id,post,label
    c1,for                    1,p1,for
    c2,against                1,p2,against

The file is any table. Its labels go to an index on disk, sorted by hashes of ids, that
every worker maps: memory does not grow with it. Which labels a bundle of files met is
noted beside its parts, so that a build that was killed counts as one that was not.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from commentree.errors import StorageError, UserError
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.dataset_files import folder_commit
from commentree.tasks.readers import table
from commentree.tasks.readers.parsing import files
from commentree.tasks.readers.roots import key_of
from commentree.tasks.readers.rows import (
  COMMENT_PREFIX,
  MAX_NAME_CHARS,
  POST_PREFIX,
  label,
)
from commentree.tasks.readers.tables import columns, records
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

INDEX = "labels.arrow"

LEFT_OUT_NO_ID = "left out: no id"
LEFT_OUT_NO_LABEL = "left out: no label"
LEFT_OUT_LONG = "left out: longer than 1,000 characters"
LEFT_OUT_BAD_LINE = "left out: a line that is no record"
REPAIRED = "repaired: "

_ROLES = ("id", "post", "label")
_ROWS_AT_ONCE = 2**16
_UNSORTED = pa.schema(
  [("key", pa.uint64()), ("id", pa.string()), ("label", pa.string())]
)
_SORTED = pa.schema([("key", pa.uint64()), ("label", pa.string())])
_NOTES = ".labels.npz"

ReportBytes = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class LabelFile:
  """A file of labels.

  Attributes:
    path: the file.
    columns: which of its columns holds what.
  """

  path: str
  columns: columns.Columns

  @property
  def name(self) -> str:
    """The file's, without its folder."""
    return os.path.basename(self.path)

  def identity(self) -> dict[str, Any]:
    """What tells it from another: its contents, and how they are read."""
    with _errors_in_one_line(self.path), open(self.path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
      "name": self.name,
      "columns": str(self.columns),
      "bytes": os.path.getsize(self.path),
      "sha256": digest,
    }


def open_file(path: str, given: Sequence[str], config: TreeConfig) -> LabelFile:
  """Looks at a file of labels.

  Args:
    path: a table of any kind.
    given: which of its columns hold what, `role=column` each; the usual names are
      guessed.
    config: how long a line may be.

  Raises:
    UserError: if it is missing, empty, or no table, or it is not known which columns
      hold ids and labels.
  """
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    kind = "is a folder; give one file" if os.path.isdir(path) else "no such file"
    raise UserError(f"--labels={path}: {kind}")
  with _errors_in_one_line(path), open(path, "rb") as file:
    if not file.read(1):
      raise UserError(f"--labels={path}: is empty")
  names = records.names(path, config)
  named = columns.parse(given, _ROLES, "--label_columns")
  for role, several in named.items():
    if len(several) > 1:
      raise UserError(
        f"--label_columns: {role}= is given {len(several)} columns,"
        f" {' and '.join(several)}; keep one"
      )
  if not names:
    raise UserError(
      f"--labels={path}: no table is found in it: the first line of CSV must name two"
      " columns or more, JSON be objects, Parquet and Arrow be whole"
    )
  for column in (column for of_role in named.values() for column in of_role):
    if column not in names:
      raise UserError(
        f"--label_columns: {column!r} is no column of {path}; there are"
        f" {', '.join(names[:20])}"
      )
  found = columns.match(names, named, _ROLES)
  if not {"id", "label"} <= found.by_role.keys():
    raise UserError(
      f"--labels={path}: which columns hold ids and labels is not known; name them with"
      " --label_columns id=… label=… (its first line must name its columns; there are"
      f" {', '.join(names[:20])})"
    )
  columns.check_once(f"--labels={path}", names, found)
  return LabelFile(path, found)


def make_index(
  file: LabelFile,
  index: pathlib.Path,
  config: TreeConfig,
  memory_mb: int,
  report: ReportBytes,
) -> None:
  """Writes a file's labels sorted by their keys; `is_made` afterwards.

  Args:
    file: of labels.
    index: the file to write.
    config: how long a line may be.
    memory_mb: what the sort may take.
    report: gets the number of labels read since the last call, and bytes.

  Raises:
    UserError: if an id has labels that differ, or there is no label.
    StorageError: if there is no room to sort them.
  """
  facts: Counter[str] = Counter()
  unsorted = index.with_suffix(".unsorted")
  with (
    folder_commit.storage_errors(index.parent),
    pq.ParquetWriter(unsorted, _UNSORTED, compression="snappy") as writer,
  ):
    for batch in _read(file, config, facts):
      writer.write_batch(batch)
      report(batch.num_rows, 0)
  with (
    folder_commit.draft(index) as draft,
    pa.OSFile(str(draft), "wb") as sink,
    pa.ipc.new_file(sink, _SORTED) as sorted_writer,
  ):
    for batch in _without_copies(_sorted(unsorted, memory_mb), file, facts):
      facts["labels"] += batch.num_rows
      sorted_writer.write_batch(batch)
  unsorted.unlink()
  if not facts["labels"]:
    odd = "; ".join(f"{number:,} {fate}" for fate, number in sorted(facts.items()))
    raise UserError(
      f"--labels={file.path}: holds no label, read as {file.columns}"
      f"{f' ({odd})' if odd else ''}"
    )
  folder_commit.write_json(_facts_path(index), facts)
  report(0, os.path.getsize(file.path))


def is_made(index: pathlib.Path) -> bool:
  """Whether an index is whole."""
  return _facts_path(index).exists()


def _facts_path(index: pathlib.Path) -> pathlib.Path:
  return index.with_suffix(".json")


def _read(
  file: LabelFile, config: TreeConfig, facts: Counter[str]
) -> Iterator[pa.RecordBatch]:
  """Yields a file's labels in its order; counts those left out."""
  counts = ReadCounts()
  keys: list[int] = []
  ids: list[str] = []
  labels: list[str] = []
  roles = list(file.columns.by_role)
  for values in records.records(file.path, file.columns.names, config, counts):
    given = dict(zip(roles, values))
    ident = table.written_id(given["id"], counts)
    said = label(given["label"], counts)
    if ident is None or said is None:
      facts[LEFT_OUT_NO_ID if ident is None else LEFT_OUT_NO_LABEL] += 1
      continue
    if len(said) > MAX_NAME_CHARS or len(ident) > MAX_NAME_CHARS:
      facts[LEFT_OUT_LONG] += 1
      continue
    post = None
    if "post" in given:  # without one, it is the label of a post
      post = table.written_id(given["post"], counts) or ident
    kind = next((p for p in (POST_PREFIX, COMMENT_PREFIX) if ident.startswith(p)), "")
    keys.append(_key(kind, ident.removeprefix(kind), post))
    ids.append(ident)
    labels.append(said)
    if kind:
      facts[kind] = 1
    if len(keys) == _ROWS_AT_ONCE:
      yield _batch(keys, ids, labels)
      keys, ids, labels = [], [], []
  if keys:
    yield _batch(keys, ids, labels)
  if counts.files.keys() & {files.UNREADABLE, files.DAMAGED, files.TRUNCATED}:
    raise UserError(
      f"--labels={file.path}: cannot be read to its end; labels would be missing from"
      " there on: mend the file"
    )
  if counts.comments:
    facts[LEFT_OUT_BAD_LINE] += counts.comments.total()
  for what, number in counts.repaired.items():
    facts[f"{REPAIRED}{what}"] += number


def _batch(
  keys: Sequence[int], ids: Sequence[str], labels: Sequence[str]
) -> pa.RecordBatch:
  arrays = [
    pa.array(np.array(keys, np.uint64)),
    pa.array(ids, pa.string()),
    pa.array(labels, pa.string()),
  ]
  return pa.RecordBatch.from_arrays(arrays, schema=_UNSORTED)


def _key(kind: str, ident: str, post: str | None) -> int:
  """What stands for an id: of a comment, of a post or of either, by its prefix."""
  if post is None:
    return key_of(f"{kind}{ident}")
  return key_of(f"{kind}{post.removeprefix(POST_PREFIX)}\0{ident}")


def _sorted(unsorted: pathlib.Path, memory_mb: int) -> Iterator[pa.RecordBatch]:
  config: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": f"{memory_mb}MB",
    "threads": 1,
    "temp_directory": str(unsorted.with_suffix(".spill")),
  }
  try:
    with duckdb.connect(":memory:", config=config) as connection:
      source = connection.from_parquet(
        str(unsorted), file_row_number=True, hive_partitioning=False
      )
      ordered = source.order("key, file_row_number").project("key, id, label")
      yield from ordered.to_arrow_reader(_ROWS_AT_ONCE)
  except (duckdb.Error, pa.ArrowException, OSError) as error:
    raise StorageError(
      f"{unsorted}: labels cannot be sorted in {memory_mb} MB of memory"
      f" ({str(error).splitlines()[0]}); free some room on this disk, or give more to"
      " --memory"
    ) from error


def _without_copies(
  batches: Iterable[pa.RecordBatch], file: LabelFile, facts: Counter[str]
) -> Iterator[pa.RecordBatch]:
  """Passes sorted labels on, those of a key once.

  Raises:
    UserError: if two labels of a key differ.
  """
  last_key, last_label = None, None
  for batch in batches:
    if not batch.num_rows:
      continue
    keys, labels = batch.column("key").to_numpy(), batch.column("label")
    again = np.empty(len(keys), bool)
    again[0] = keys[0] == last_key
    again[1:] = keys[1:] == keys[:-1]
    for place in np.flatnonzero(again).tolist():
      before = labels[place - 1].as_py() if place else last_label
      if labels[place].as_py() != before:
        hint = ""
        if "post" not in file.columns.by_role:
          hint = ", or name the column of posts if an id counts only within one"
          hint += " (--label_columns post=…)"
        raise UserError(
          f"--labels={file.path}: {batch.column('id')[place].as_py()!r} has two labels,"
          f" {before!r} and {labels[place].as_py()!r}; keep one{hint}"
        )
    facts["repeated"] += int(again.sum())
    last_key, last_label = keys[-1], labels[-1].as_py()
    yield batch.select(["key", "label"]).filter(pa.array(~again)).cast(_SORTED)


class _Index:
  """Labels by keys, read from where `make_index` wrote them."""

  def __init__(self, path: pathlib.Path):
    self.facts: dict[str, int] = json.loads(_facts_path(path).read_text("utf-8"))
    self._firsts: list[int] = []  # of each batch, its first key
    self._starts: list[int] = []  # ... and how many labels are before it
    self._keys: list[memoryview] = []
    self._labels: list[pa.Array] = []
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    start = 0
    for batch in map(reader.get_batch, range(reader.num_record_batches)):
      if batch.num_rows:
        keys = memoryview(batch.column("key").to_numpy())
        self._keys.append(keys)
        self._labels.append(batch.column("label"))
        self._firsts.append(keys[0])
        self._starts.append(start)
        start += batch.num_rows

  def find(self, key: int) -> tuple[int, str] | None:
    """The place of a key's label among all, and the label; None if it has none."""
    batch = bisect.bisect_right(self._firsts, key) - 1
    if batch < 0:
      return None
    keys = self._keys[batch]
    place = bisect.bisect_left(keys, key)
    if place == len(keys) or keys[place] != key:
      return None
    return self._starts[batch] + place, self._labels[batch][place].as_py()


class Labeller:
  """Puts labels on a bundle's rows, and notes which it met."""

  def __init__(self, index: pathlib.Path, *, by_post: bool):
    self._index = _Index(index)
    self._by_post = by_post
    # Most files have ids without prefixes, and then none is looked for.
    self._kinds = {
      is_post: ("", prefix) if prefix in self._index.facts else ("",)
      for is_post, prefix in ((True, POST_PREFIX), (False, COMMENT_PREFIX))
    }
    self._met = np.zeros(-(-self._index.facts["labels"] // 8), np.uint8)
    self._with = self._without = 0

  def label(self, rows: Iterable[Row]) -> Iterator[Row]:
    """Passes rows on with the labels of the file, and no others."""
    met = self._met.data
    for row in rows:
      if row.stub is not None:
        yield row
        continue
      found = self._find(row)
      if found is None:
        self._without += not row.is_post
        said = None
      else:
        place, said = found
        met[place >> 3] |= 1 << (place & 7)
        self._with += 1
      yield row if said == row.label else row._replace(label=said)

  def _find(self, row: Row) -> tuple[int, str] | None:
    ident = row.tree_id if row.is_post and row.id is None else row.id
    if ident is None:
      return None
    ident = ident.removeprefix(POST_PREFIX if row.is_post else COMMENT_PREFIX)
    post = row.tree_id if self._by_post else None
    for kind in self._kinds[row.is_post]:
      if found := self._index.find(_key(kind, ident, post)):
        return found
    return None

  def note(self, folder: pathlib.Path, bundle: int) -> None:
    """Writes what was met, for `summary`."""
    with (
      folder_commit.draft(folder / f"{bundle:06}{_NOTES}") as draft,
      open(draft, "wb") as file,
    ):
      np.savez_compressed(
        file, met=self._met, rows=np.array([self._with, self._without], np.int64)
      )


def summary(folder: pathlib.Path, index: pathlib.Path) -> dict[str, int]:
  """What became of a file's labels, in all.

  Args:
    folder: the parts'.
    index: the labels'.

  Returns:
    `labels`, the number of ids that have one; of those, how many are `met` by a comment
    or post that was read, and how many are `unmet`; `repeated`, lines that say the same
    again; lines that are left out or repaired, by reason; `met_again`, comments and
    posts of an id that another had; and `comments_without` a label.
  """
  facts: dict[str, int] = json.loads(_facts_path(index).read_text("utf-8"))
  met = np.zeros(-(-facts["labels"] // 8), np.uint8)
  rows = np.zeros(2, np.int64)
  for path in sorted(folder.glob(f"*{_NOTES}")):
    with np.load(path) as notes:
      met |= notes["met"]
      rows += notes["rows"]
  number = int(np.unpackbits(met).sum())
  with_label, without = rows.tolist()
  return {
    **{name: n for name, n in facts.items() if name not in _PREFIXES},
    "met": number,
    "unmet": facts["labels"] - number,
    "met_again": with_label - number,
    "comments_without": without,
  }


_PREFIXES = (POST_PREFIX, COMMENT_PREFIX)


@contextlib.contextmanager
def _errors_in_one_line(path: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f"--labels={path}: cannot be read ({error.strerror or error})"
    ) from error
