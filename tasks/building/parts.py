"""From source files to parts: Parquet files of their rows, sorted by the shuffle key.

Small files that follow each other are read as one, a *bundle*; a large one is a bundle
of its own. A part appears under its name when it is whole, and its name says which of
the bundle's rows it holds; `<number>.json` appears when the whole bundle is in parts.
What is missing after a kill is read again: the rows of finished parts are read, but not
written, again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.building import filters, label_file
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.order import shuffle_key
from commentree.tasks.dataset_files import folder_commit
from commentree.tasks.readers.parsing import compression
from commentree.tasks.trees.comment_tree import ReadCounts, Span
from commentree.tasks.trees.row import Row

# Columns of `Row`, in its order, and of them those that hold no text.
_KINDS = {"is_post": pa.bool_(), "created_utc": pa.int64(), "score": pa.int32()}
COLUMNS = Row._fields
ROW_BYTES = "row_bytes"
SCHEMA = pa.schema(
  [
    ("key", pa.uint64()),
    ("file", pa.int32()),
    ("place", pa.int64()),
    (ROW_BYTES, pa.int64()),  # of all its texts, in UTF-8
    *((name, _KINDS.get(name, pa.string())) for name in COLUMNS),
  ]
)

# Rows of Python objects are many times as large as in Arrow's columns, so that few are
# held: so many at most, and of so many characters.
_ROWS_AT_ONCE = 1_024
_CHARS_AT_ONCE = 2**20
ROW_GROUP_BYTES = 2**20
# Files are small that take less time to be read than a part takes to be synced.
_SMALL_FILE_BYTES = 2**20
_BUNDLE_BYTES = 2**24
_BUNDLE_FILES = 1_000
_SECONDS_BETWEEN_REPORTS = 0.5
_TEXT_BYTES = b"text_bytes"
_ROW_OVERHEAD_BYTES = 48  # of a row in Arrow's columns, beside its texts

ReportBytes = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class SourceFile:
  """A file to read.

  Attributes:
    number: its place among all files, which orders rows.
    path: the file.
    format: its format's name.
    prepared: a file with what the format's `prepare` returned for all files; None if
      it has none.
    labels: an index that `label_file.make_index` wrote, of the labels that its rows
      get; None if they keep their own.
    labels_by_post: whether the index goes by posts and ids.
  """

  number: int
  path: str
  format: str
  prepared: str | None = None
  labels: str | None = None
  labels_by_post: bool = False


# Files that are read as one, numbered as the first of them.
Bundle = tuple[SourceFile, ...]


@dataclasses.dataclass(frozen=True)
class RowPart:
  """A part on disk: rows `first` to `end` - 1 of the bundle of a number."""

  path: pathlib.Path
  bundle: int
  first: int
  end: int


def bundles(sources: Sequence[SourceFile]) -> list[Bundle]:
  """Puts small files that follow each other together; depends on files alone."""
  found: list[Bundle] = []
  size = _BUNDLE_BYTES  # of the last bundle
  for source in sources:
    own = os.path.getsize(source.path)
    small = own < _SMALL_FILE_BYTES
    if small and size + own < _BUNDLE_BYTES and len(found[-1]) < _BUNDLE_FILES:
      found[-1] += (source,)
      size += own
    else:
      found.append((source,))
      size = own if small else _BUNDLE_BYTES
  return found


def with_prepared(
  sources: Sequence[SourceFile], folder: pathlib.Path
) -> tuple[list[SourceFile], list[tuple[pathlib.Path, str, list[str]]]]:
  """Says which formats must be made ready, since a file's rows depend on other files.

  Args:
    sources: all files.
    folder: where such a format goes.

  Returns:
    The sources, which know where their formats will be; and for each that is not there
    yet, the first arguments of `prepare_format`.
  """
  ready: list[SourceFile] = []
  tasks: list[tuple[pathlib.Path, str, list[str]]] = []
  for source in sources:
    if readers.format_of(source.path, source.format).prepare is None:
      ready.append(source)
      continue
    path = folder / f"{source.format}.format"
    if not path.exists() and all(path != task[0] for task in tasks):
      paths = [other.path for other in sources if other.format == source.format]
      tasks.append((path, source.format, paths))
    ready.append(dataclasses.replace(source, prepared=str(path)))
  return ready, tasks


def prepare_format(
  path: pathlib.Path,
  name: str,
  files: Sequence[str],
  config: BuildConfig,
  report: ReportBytes,
) -> None:
  """Writes what a format's `prepare` returns for files to `path`."""
  format_ = readers.format_of(files[0], name)
  assert format_.prepare is not None
  prepared = format_.prepare(files, config.trees)
  with folder_commit.draft(path) as draft:
    draft.write_bytes(prepared)
  report(0, 0)


@functools.lru_cache(1)
def _load_format(name: str, path: str) -> readers.Format:
  format_ = readers.check_name(name)
  assert format_.prepared is not None
  try:
    return format_.prepared(pathlib.Path(path).read_bytes())
  except ValueError as error:
    raise UserError(
      f"{path}: is damaged ({error}); delete it and build again"
    ) from None


def encode_spans(spans: Sequence[Span]) -> str | None:
  """Spans as a row's column has them, or None."""
  return json.dumps(spans) if spans else None


def decode_spans(column: str | None) -> tuple[Span, ...]:
  """The inverse of `encode_spans`."""
  return tuple(Span(*span) for span in json.loads(column)) if column else ()


def row_bytes(row: Row) -> int:
  """Bytes of text in a row: what its column `ROW_BYTES` holds."""
  texts = [value for value in row if isinstance(value, str)]
  texts.append(encode_spans(row.spans) or "")
  return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def list_parts(folder: pathlib.Path, bundle: int | None = None) -> list[RowPart]:
  """The parts in a folder, of one bundle or all, in order."""
  found = []
  for path in folder.glob("*.parquet" if bundle is None else f"{bundle:06}-*.parquet"):
    number, first, end = map(int, path.stem.split("-"))
    found.append(RowPart(path, number, first, end))
  return sorted(found, key=lambda part: (part.bundle, part.first))


def text_bytes(part: RowPart) -> int:
  """Bytes of text in a part."""
  return int(pq.read_metadata(part.path).metadata[_TEXT_BYTES])


def is_done(folder: pathlib.Path, bundle: Bundle) -> bool:
  """Whether a bundle is in parts already."""
  return _done_path(folder, bundle).exists()


def is_begun(folder: pathlib.Path) -> bool:
  """Whether a folder holds anything that need not be done again."""
  return any(folder.glob("*.parquet")) or any(folder.glob("*.json"))


def read_facts(folder: pathlib.Path) -> tuple[ReadCounts, dict[int, str]]:
  """What is known of the files of finished bundles, in all.

  Returns:
    What became of that of them which made no row; and by number, the SHA-256 of each.
  """
  read_counts, digests = ReadCounts(), {}
  for path in sorted(folder.glob("*.json")):
    facts = json.loads(path.read_text("utf-8"))
    read_counts += ReadCounts(
      **{k: collections.Counter(v) for k, v in facts["read_counts"].items()}
    )
    digests.update({int(number): digest for number, digest in facts["sha256"].items()})
  return read_counts, digests


def _done_path(folder: pathlib.Path, bundle: Bundle) -> pathlib.Path:
  return folder / f"{bundle[0].number:06}.json"


def all_files(source: SourceFile) -> list[str]:
  """A file, and what is read along with it."""
  format_ = readers.format_of(source.path, source.format)
  return [source.path, *format_.beside(source.path)]


def digest(source: SourceFile) -> str:
  """SHA-256 of all that is read for a file."""
  together = hashlib.sha256()
  for path in all_files(source):
    with contextlib.suppress(OSError), open(path, "rb") as file:
      together.update(hashlib.file_digest(file, "sha256").digest())
  return together.hexdigest()


def write_parts(
  bundle: Bundle,
  folder: pathlib.Path,
  config: BuildConfig,
  part_bytes: int,
  window_bytes: int,
  report: ReportBytes,
) -> None:
  """Reads files and writes what is not in parts yet.

  Args:
    bundle: the files.
    folder: where the parts go.
    config: which rows are wanted; the seed of the key.
    part_bytes: rows of about so many bytes are sorted at once.
    window_bytes: memory for what unpacking looks back at.
    report: gets the number of rows and of the files' bytes read since the last call.
  """
  read_counts = ReadCounts()
  digests: dict[int, str] = {}
  writer = _PartsWriter(folder, bundle[0].number, config.seed, part_bytes)
  labeller = labeller_of(bundle)
  progress = _Progress(report)
  with compression.window_limit(window_bytes):
    for source in bundle:
      rows = wanted_rows(source, config, read_counts, labeller)
      for place, row in enumerate(progress.count(rows, source.path)):
        writer.add(row, source.number, place)
      digests[source.number] = digest(source)
  writer.flush()
  progress.tell()
  write_facts(folder, bundle, read_counts, digests, labeller)


def labeller_of(bundle: Bundle) -> label_file.Labeller | None:
  """What puts labels on a bundle's rows; None if they keep their own."""
  first = bundle[0]
  if first.labels is None:
    return None
  return label_file.Labeller(pathlib.Path(first.labels), by_post=first.labels_by_post)


def wanted_rows(
  source: SourceFile,
  config: BuildConfig,
  read_counts: ReadCounts,
  labeller: label_file.Labeller | None = None,
) -> Iterator[Row]:
  """The rows of a file, without those of subreddits that are not wanted.

  Args:
    source: the file.
    config: which rows are wanted.
    read_counts: counts what became of the others.
    labeller: of the file's bundle, if rows get other labels than their own.
  """
  if source.prepared is None:
    format_ = readers.format_of(source.path, source.format)
  else:
    format_ = _load_format(source.format, source.prepared)
  rows = format_.read(source.path, config.trees, read_counts)
  if labeller is not None:
    rows = labeller.label(rows)
  if config.subreddits or config.exclude_subreddits:
    return filters.of_wanted_subreddits(rows, config, read_counts)
  return rows


def write_facts(
  folder: pathlib.Path,
  bundle: Bundle,
  read_counts: ReadCounts,
  digests: Mapping[int, str],
  labeller: label_file.Labeller | None,
) -> None:
  """Notes that a whole bundle was read; see `read_facts` and `label_file.summary`."""
  if labeller is not None:
    labeller.note(folder, bundle[0].number)
  facts = {"read_counts": read_counts.as_dict(), "sha256": dict(digests)}
  folder_commit.write_json(_done_path(folder, bundle), facts)


class _PartsWriter:
  """Sorts rows and writes them; passes over those that are in finished parts."""

  def __init__(self, folder: pathlib.Path, number: int, seed: int, part_bytes: int):
    self._folder = folder
    self._number = number
    self._seed = seed
    self._part_bytes = part_bytes
    self._to_skip = _rows_in_parts(list_parts(folder, number))
    self._first = self._to_skip  # place in the bundle of the part's first row
    self._rows: list[Row] = []
    self._files: list[int] = []
    self._places: list[int] = []
    self._chars = 0
    self._batches: list[pa.RecordBatch] = []
    self._held = 0

  def add(self, row: Row, file: int, place: int) -> None:
    """Takes the bundle's next row."""
    if self._to_skip:
      self._to_skip -= 1
      return
    self._rows.append(row)
    self._files.append(file)
    self._places.append(place)
    self._chars += len(row.text or "") + len(row.selftext or "")
    self._chars += len(row.translation or "") + len(row.stub or "")
    if len(self._rows) >= _ROWS_AT_ONCE or self._chars >= _CHARS_AT_ONCE:
      self._pack()
      if self._held >= self._part_bytes:
        self.flush()

  def _pack(self) -> None:
    batch = _to_batch(self._rows, self._files, self._places, self._seed)
    self._batches.append(batch)
    self._held += batch.nbytes
    self._rows, self._files, self._places, self._chars = [], [], [], 0

  def flush(self) -> None:
    """Writes a part of all rows that are not written yet."""
    if self._rows:
      self._pack()
    if self._batches:
      end = self._first + sum(batch.num_rows for batch in self._batches)
      name = f"{self._number:06}-{self._first:012}-{end:012}.parquet"
      batches, self._batches, self._held, self._first = self._batches, [], 0, end
      _write_part(batches, self._folder / name)


def _rows_in_parts(finished: Sequence[RowPart]) -> int:
  """How many rows, from a bundle's first on, are in parts."""
  end = 0
  for part in finished:
    if part.first == end:
      end = part.end
    else:
      part.path.unlink()  # one before it was taken away
  return end


def _to_batch(
  rows: Sequence[Row], files: Sequence[int], places: Sequence[int], seed: int
) -> pa.RecordBatch:
  columns: dict[str, Any] = dict(zip(COLUMNS, zip(*rows)))
  columns["spans"] = list(map(encode_spans, columns["spans"]))
  keys = [shuffle_key(seed, tree_id) for tree_id in columns["tree_id"]]
  of_row = [pa.array(columns[name], SCHEMA.field(name).type) for name in COLUMNS]
  arrays = [
    pa.array(np.array(keys, np.uint64)),
    pa.array(np.array(files, np.int32)),
    pa.array(np.array(places, np.int64)),
    pa.array(_text_bytes(of_row)),
    *of_row,
  ]
  return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _text_bytes(columns: Sequence[pa.Array]) -> np.ndarray:
  """Bytes of text in each row."""
  total = np.zeros(len(columns[0]), np.int64)
  for column in columns:
    if pa.types.is_string(column.type) and column.null_count < len(column):
      total += pc.fill_null(pc.binary_length(column), 0).to_numpy()
  return total


def _write_part(batches: Sequence[pa.RecordBatch], path: pathlib.Path) -> None:
  """Sorts rows by key and writes them, whole or not at all."""
  table = pa.Table.from_batches(batches)
  order = np.argsort(table["key"].to_numpy(), kind="stable")
  table = table.take(pa.array(order))
  text = np.cumsum(table[ROW_BYTES].to_numpy())
  # A group is what DuckDB holds of a part at once, so none has many large rows.
  groups = (text + np.arange(len(text)) * _ROW_OVERHEAD_BYTES) // ROW_GROUP_BYTES
  starts = [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(text)]
  table = table.replace_schema_metadata({_TEXT_BYTES: str(text[-1]).encode()})
  with (
    folder_commit.draft(path) as draft,
    pq.ParquetWriter(
      draft,
      table.schema,
      compression="snappy",
      use_dictionary=["subreddit"],
      write_statistics=["key"],
    ) as writer,
  ):
    for start, end in itertools.pairwise([0, *starts]):
      writer.write_table(table.slice(start, end - start), row_group_size=end - start)


class _Progress:
  """Tells now and then how far reading has come."""

  def __init__(self, report: ReportBytes):
    self._report = report
    self._rows = self._bytes = 0
    self._told = time.monotonic()

  def count(self, rows: Iterator[Row], path: str) -> Iterator[Row]:
    """Passes a file's rows on."""
    position = 0
    for number, row in enumerate(rows, 1):
      self._rows += 1
      if not number % _ROWS_AT_ONCE and self._is_due():
        now = max(_position(path), position)
        self._bytes += now - position
        position = now
        self.tell()
      yield row
    with contextlib.suppress(OSError):
      self._bytes += max(os.path.getsize(path) - position, 0)
    if self._is_due():
      self.tell()

  def _is_due(self) -> bool:
    return time.monotonic() - self._told > _SECONDS_BETWEEN_REPORTS

  def tell(self) -> None:
    """Tells what was not told yet."""
    self._report(self._rows, self._bytes)
    self._rows = self._bytes = 0
    self._told = time.monotonic()


def _position(path: str) -> int:
  """How far this process has read a file, where the system tells (Linux); or 0."""
  with contextlib.suppress(OSError):
    real = os.path.realpath(path)
    for number in os.listdir("/proc/self/fd"):
      with contextlib.suppress(OSError):
        if os.readlink(f"/proc/self/fd/{number}") == real:
          info = pathlib.Path(f"/proc/self/fdinfo/{number}").read_text()
          return int(info.split()[1])
  return 0
