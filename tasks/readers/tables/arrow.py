"""The columns of Parquet and Arrow as plain values of Python.

Values are what CSV would have, or better: times are seconds since 1970, whole decimals
are integers, and bytes are text. What no comment has (lists, structures, durations) is
None.
"""

from __future__ import annotations

import decimal
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from commentree.tasks.readers.parsing import files
from commentree.tasks.trees.comment_tree import ReadCounts

Kind = Literal["parquet", "arrow"]

FILE_MARK, STREAM_MARK = b"ARROW1", b"\xff\xff\xff\xff"
MISSING_ROWS = "rows in damaged parts of tables"
_ROWS_AT_ONCE = 1_024
_DAMAGE = (OSError, ValueError)  # also what Arrow raises

_log = logging.getLogger(__name__)


def names(path: str, kind: Kind) -> list[str]:
  """The names of columns, and of fields of structures with a dot; [] if damaged."""
  try:
    if kind == "parquet":
      import pyarrow.parquet as pq

      schema = pq.read_schema(path)
    else:
      with _open_arrow(path) as (reader, _):
        schema = reader.schema
  except _DAMAGE:
    return []
  listed: list[str] = []
  for field in schema:
    listed.append(field.name)
    listed += [f"{field.name}.{inner.name}" for inner in _fields_of(field.type)]
  return listed


def records(
  path: str, kind: Kind, columns: Sequence[str], read_counts: ReadCounts
) -> Iterator[tuple[Any, ...]]:
  """Yields the values of some columns, a record at a time; counts the file's fate.

  Args:
    path: the table.
    kind: of the file.
    columns: names, as in `names`; of equal names the first counts.
    read_counts: counts what became of the file.
  """
  read = lost = 0
  damage: list[Exception] = []
  try:
    for part, rows in _parts(path, kind, columns):
      before = read
      try:
        for batch in part:
          values = [_values(_column(batch, column)) for column in columns]
          read += batch.num_rows
          yield from zip(*values)
      except _DAMAGE as error:
        damage.append(error)
        lost += max(0, rows - (read - before))
  except _DAMAGE as error:
    damage.append(error)
  if damage:
    line = (str(damage[0]) or type(damage[0]).__name__).splitlines()[0]
    if lost:
      read_counts.missing[MISSING_ROWS] += lost
      kept = f"{lost:,} rows of it were not read, the others were"
    elif read:
      kept = "what comes before was read"
    elif _is_packed(path):
      kept = "nothing of it was read: it is packed as a whole; unpack it"
    else:
      kept = "nothing of it was read; was it copied to its end?"
    _log.warning("%s: is damaged (%s); %s", path, line, kept)
  read_counts.files[files.DAMAGED if damage else files.READ] += 1


def _is_packed(path: str) -> bool:
  with open(path, "rb") as file:
    return not file.read(len(FILE_MARK)).startswith((b"PAR1", FILE_MARK, STREAM_MARK))


def _column(batch: Any, column: str) -> Any:
  import pyarrow.compute as pc

  names = batch.schema.names
  if column in names:
    return batch.column(names.index(column))
  top, _, inner = column.partition(".")
  return pc.struct_field(batch.column(names.index(top)), inner)


def _values(array: Any) -> list[Any]:
  import pyarrow as pa

  if isinstance(array, pa.ExtensionArray):
    array = array.storage
  if pa.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  kind = array.type
  if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
    # Python's times have no nanoseconds, and no year 10,000.
    return array.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).to_pylist()
  if pa.types.is_temporal(kind) or pa.types.is_nested(kind):
    return [None] * len(array)
  if pa.types.is_decimal(kind):
    return [_number(value) for value in array.to_pylist()]
  if pa.types.is_fixed_size_binary(kind):  # of a UUID
    return [None if value is None else value.hex() for value in array.to_pylist()]
  try:
    values = array.to_pylist()
  except UnicodeDecodeError:
    values = array.cast(pa.large_binary()).to_pylist()
  if any(isinstance(value, bytes) for value in values):
    return [
      # Lone surrogates, which `rows.text` counts.
      None if value is None else value.decode("utf-8", "surrogateescape")
      for value in values
    ]
  return values


def _number(value: decimal.Decimal | None) -> int | float | None:
  if value is None:
    return None
  return int(value) if value == value.to_integral_value() else float(value)


def _parts(
  path: str, kind: Kind, columns: Sequence[str]
) -> Iterator[tuple[Iterator[Any], int]]:
  """Yields parts of a table that can be read without the others, and their rows.

  A part is an iterator over batches of rows. Of Arrow the number of rows in a part is
  not known, and given as 0.
  """
  if kind == "parquet":
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
      # Asked for all groups of rows at once, Arrow keeps those that were read.
      for group in range(file.num_row_groups):
        batches = file.iter_batches(
          _ROWS_AT_ONCE, row_groups=[group], columns=list(columns)
        )
        yield batches, file.metadata.row_group(group).num_rows
    return
  with _open_arrow(path) as (reader, whole):
    if whole:
      for number in range(reader.num_record_batches):
        yield _slices(map(reader.get_batch, (number,))), 0
    else:
      yield _slices(reader), 0


def _slices(batches: Iterable[Any]) -> Iterator[Any]:
  for batch in batches:
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
      yield batch.slice(start, _ROWS_AT_ONCE)


class _open_arrow:
  """Opens a file of Arrow, as a stream (as Hugging Face saves) or as a whole."""

  def __init__(self, path: str):
    self._path = path

  def __enter__(self) -> tuple[Any, bool]:
    import pyarrow as pa

    self._file = pa.memory_map(self._path)
    whole = self._file.read(len(FILE_MARK)) == FILE_MARK
    self._file.seek(0)
    open_ = pa.ipc.open_file if whole else pa.ipc.open_stream
    return open_(self._file), whole

  def __exit__(self, *raised: object) -> None:
    self._file.close()


def _fields_of(kind: Any) -> list[Any]:
  import pyarrow as pa

  return list(kind) if pa.types.is_struct(kind) else []
