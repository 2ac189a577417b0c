"""From a source file to parts: Parquet files of its rows, sorted by the shuffle key.

A part appears under its name when it is whole, and its name says which of the file's
rows it holds; `<number>.json` appears when the whole file is in parts. What is missing
after a kill is read again: the rows of finished parts are read, but not written, again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import UserError
from .. import readers
from ..readers.rows import Row
from ..trees import Fates, Span
from . import filters, storage
from .config import BuildConfig
from .order import shuffle_key

# Columns of `Row`, in its order, and of them those that hold no text.
_KINDS = {"is_post": pa.bool_(), "created_utc": pa.int64(), "score": pa.int32()}
COLUMNS = Row._fields
SCHEMA = pa.schema(
  [
    ("key", pa.uint64()),
    ("file", pa.int32()),
    ("place", pa.int64()),
    *((name, _KINDS.get(name, pa.string())) for name in COLUMNS),
  ]
)

# Rows of Python objects are many times as large as in Arrow's columns.
_ROWS_AT_ONCE = 1_024
ROW_GROUP_BYTES = 2**20
_SECONDS_BETWEEN_REPORTS = 0.5
_TEXT_BYTES = b"text_bytes"

Report = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Source:
  """A file to read.

  Attributes:
    number: its place among all files, by which earlier rows are told from later ones.
    path: the file.
    format: its format's name.
    prepared: a file with what the format's `prepare` returned for all files; None if
      it has none.
  """

  number: int
  path: str
  format: str
  prepared: str | None = None


@dataclasses.dataclass(frozen=True)
class Part:
  """A part on disk: rows `first` to `end` - 1 of file number `file`."""

  path: pathlib.Path
  file: int
  first: int
  end: int


def with_prepared(
  sources: Sequence[Source], folder: pathlib.Path
) -> tuple[list[Source], list[tuple[pathlib.Path, str, list[str]]]]:
  """Says which formats must be made ready, since a file's rows depend on other files.

  Args:
    sources: all files.
    folder: where such a format goes.

  Returns:
    The sources, which know where their formats will be; and for each that is not there
    yet, the first arguments of `prepare_format`.
  """
  ready: list[Source] = []
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
  report: Report,
) -> None:
  """Writes what a format's `prepare` returns for files to `path`."""
  format_ = readers.format_of(files[0], name)
  assert format_.prepare is not None
  prepared = format_.prepare(files, config.trees)
  with storage.draft(path) as draft:
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
  """Spans as a row's column has them; None if there are none."""
  return json.dumps(spans) if spans else None


def decode_spans(column: str | None) -> tuple[Span, ...]:
  """The inverse of `encode_spans`."""
  return tuple(Span(*span) for span in json.loads(column)) if column else ()


def list_parts(folder: pathlib.Path, file: int | None = None) -> list[Part]:
  """The parts in a folder, of one file or all, in order."""
  found = []
  for path in folder.glob("*.parquet" if file is None else f"{file:06}-*.parquet"):
    number, first, end = map(int, path.stem.split("-"))
    found.append(Part(path, number, first, end))
  return sorted(found, key=lambda part: (part.file, part.first))


def text_bytes(part: Part) -> int:
  """Bytes of text in a part."""
  return int(pq.read_metadata(part.path).metadata[_TEXT_BYTES])


def is_done(folder: pathlib.Path, source: Source) -> bool:
  """Whether a file is in parts already."""
  return _done_path(folder, source.number).exists()


def read_fates(folder: pathlib.Path, source: Source) -> Fates:
  """What became of that of a file which made no row."""
  facts = json.loads(_done_path(folder, source.number).read_text())
  return Fates(**{k: collections.Counter(v) for k, v in facts["fates"].items()})


def _done_path(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / f"{number:06}.json"


def write_parts(
  source: Source,
  folder: pathlib.Path,
  config: BuildConfig,
  part_bytes: int,
  report: Report,
) -> None:
  """Reads a file and writes what is not in parts yet.

  Args:
    source: the file.
    folder: where the parts go.
    config: which rows are wanted; the seed of the key.
    part_bytes: rows of about so many bytes are sorted at once.
    report: gets the number of rows and of the file's bytes read since the last call.
  """
  fates = Fates()
  rows = wanted_rows(source, config, fates)
  rows = _reported(rows, source.path, report)
  place = _skip_finished(rows, list_parts(folder, source.number))
  buffer: list[pa.RecordBatch] = []
  first, held = place, 0
  while chunk := list(itertools.islice(rows, _ROWS_AT_ONCE)):
    buffer.append(_to_batch(chunk, source.number, place, config.seed))
    place += len(chunk)
    held += buffer[-1].nbytes
    if held >= part_bytes:
      _write_part(buffer, folder, source.number, first, place)
      buffer, first, held = [], place, 0
  if buffer:
    _write_part(buffer, folder, source.number, first, place)
  write_fates(folder, source, fates, place)


def wanted_rows(source: Source, config: BuildConfig, fates: Fates) -> Iterator[Row]:
  """The rows of a file, without those of subreddits that are not wanted."""
  if source.prepared is None:
    format_ = readers.format_of(source.path, source.format)
  else:
    format_ = _load_format(source.format, source.prepared)
  rows = format_.rows(source.path, config.trees, fates)
  if config.subreddits or config.exclude_subreddits:
    return filters.of_wanted_subreddits(rows, config, fates)
  return rows


def write_fates(folder: pathlib.Path, source: Source, fates: Fates, rows: int) -> None:
  """Notes that a whole file was read: its rows' number, and what made no row."""
  facts = {"fates": fates.as_dict(), "rows": rows}
  storage.write_json(_done_path(folder, source.number), facts)


def _skip_finished(rows: Iterator[Row], finished: Sequence[Part]) -> int:
  """Passes over the rows of finished parts; returns how many those are."""
  end = 0
  for part in finished:
    if part.first == end:
      end = part.end
    else:
      part.path.unlink()  # one before it was taken away
  collections.deque(itertools.islice(rows, end), maxlen=0)
  return end


def _to_batch(rows: Sequence[Row], file: int, place: int, seed: int) -> pa.RecordBatch:
  columns: dict[str, Any] = dict(zip(COLUMNS, zip(*rows)))
  columns["spans"] = list(map(encode_spans, columns["spans"]))
  keys = [shuffle_key(seed, tree_id) for tree_id in columns["tree_id"]]
  arrays = [
    pa.array(np.array(keys, np.uint64)),
    pa.array(np.full(len(rows), file, np.int32)),
    pa.array(np.arange(place, place + len(rows))),
    *(pa.array(columns[name], SCHEMA.field(name).type) for name in COLUMNS),
  ]
  return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _write_part(
  batches: Sequence[pa.RecordBatch],
  folder: pathlib.Path,
  file: int,
  first: int,
  end: int,
) -> None:
  """Sorts rows by key and writes them, whole or not at all."""
  table = pa.Table.from_batches(batches)
  order = np.argsort(table["key"].to_numpy(), kind="stable")
  text = sum(
    pc.sum(pc.binary_length(table[field.name])).as_py() or 0
    for field in SCHEMA
    if pa.types.is_string(field.type)
  )
  table = table.take(pa.array(order)).replace_schema_metadata(
    {_TEXT_BYTES: str(text).encode()}
  )
  with storage.draft(folder / f"{file:06}-{first:012}-{end:012}.parquet") as draft:
    pq.write_table(
      table,
      draft,
      compression="snappy",
      use_dictionary=["subreddit"],
      write_statistics=["key"],
      row_group_size=max(1, len(order) * ROW_GROUP_BYTES // max(table.nbytes, 1)),
    )


def _reported(rows: Iterator[Row], path: str, report: Report) -> Iterator[Row]:
  """Passes rows on and tells now and then how far reading has come."""
  read, position, then = 0, 0, time.monotonic()
  for row in rows:
    read += 1
    if not read % _ROWS_AT_ONCE and time.monotonic() - then > _SECONDS_BETWEEN_REPORTS:
      now = max(_position(path), position)
      report(read, now - position)
      read, position, then = 0, now, time.monotonic()
    yield row
  with contextlib.suppress(OSError):
    report(read, max(os.path.getsize(path) - position, 0))


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
