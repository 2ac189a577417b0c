"""The records of a table: CSV and TSV, Parquet, Arrow, and objects of JSON.

Memory does not grow with a file. Of CSV, a record whose number of fields is not the
header's costs no other one: where a quotation mark without its partner has swallowed
the lines after it, these are read again as records of their own.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files, json_lines, json_records
from commentree.tasks.readers.tables import arrow
from commentree.tasks.trees.comment_tree import ReadCounts

DROPPED_BAD_RECORD = "dropped: a line of a table with another number of fields"
REPAIRED_QUOTES = "lines of a table with quotation marks out of place"

Kind = Literal["csv", "parquet", "arrow", "json"]

_PARQUET = b"PAR1"
_DELIMITERS = ",\t;|"
_RECORDS_LOOKED_AT = 50
_LINE_END = re.compile(r"\r\n|\r|\n")
# What may come before the header: blank lines, and a line for Excel alone.
_NO_HEADER = re.compile(r"\ufeff?(?:[ \t]*|sep=.)(?:\r\n|\r|\n)")
# A record of CSV that goes over many lines may be as long as this.
_MAX_RECORD_CHARS = 4 * 2**20


def kind_of(head: bytes) -> Kind:
  """The kind of table that begins so."""
  if head.startswith(_PARQUET):
    return "parquet"
  if head.startswith((arrow.FILE_MARK, arrow.STREAM_MARK)):
    return "arrow"
  return "json" if head.lstrip()[:1] in (b"{", b"[") else "csv"


def names_in(head: bytes) -> list[str]:
  """The names of columns of CSV or JSON that begins so; no fields of structures."""
  if kind_of(head) == "json":
    return sorted(frozenset().union(*json_records.first_keys(head)))
  return _header(head)[0]


def names(path: str, config: TreeConfig) -> list[str]:
  """The names of a table's columns; of JSON, those of its first records.

  Fields of structures are named with a dot, one level deep. Of a file that cannot be
  read there are none.
  """
  head = files.head(path)
  kind = kind_of(head)
  if kind == "json":
    found: dict[str, None] = {}
    ignored = ReadCounts()  # whoever reads the records counts
    records = json_records.records(path, config, ignored, "comments")
    for record in itertools.islice(records, _RECORDS_LOOKED_AT):
      for value, _ in json_lines.values(record.content or b"0", ignored):
        for key, inner in value.items() if isinstance(value, Mapping) else ():
          found[key] = None
          if isinstance(inner, Mapping):
            found.update((f"{key}.{field}", None) for field in inner)
    return list(found)
  if kind == "csv":
    return _header(head)[0]
  return arrow.names(path, kind)


def records(
  path: str, columns: Sequence[str], config: TreeConfig, read_counts: ReadCounts
) -> Iterator[tuple[Any, ...]]:
  """Yields the values of some columns, a record at a time.

  Args:
    path: the table; its mistakes are counted, not raised.
    columns: names, as in `names`.
    config: how long a line may be.
    read_counts: counts what became of the file, and of records that are none.
  """
  kind = kind_of(files.head(path, 2**12))
  if kind == "json":
    return _of_json(path, columns, config, read_counts)
  if kind == "csv":
    return _of_csv(path, columns, config, read_counts)
  return arrow.records(path, kind, columns, read_counts)


def count_file(path: str, read_counts: ReadCounts) -> None:
  """Counts the fate of a file of which no column is read."""
  kind = kind_of(files.head(path, 2**12))
  contents: Iterator[Any]
  if kind == "json" or kind == "csv":
    contents = files.blocks(path, read_counts)
  else:
    contents = arrow.records(path, kind, (), read_counts)
  for _ in contents:
    pass


def _of_json(
  path: str, columns: Sequence[str], config: TreeConfig, read_counts: ReadCounts
) -> Iterator[tuple[Any, ...]]:
  tops = list(dict.fromkeys(_top(column) for column in columns))
  fields = {top: f"field_{number}" for number, top in enumerate(tops)}
  kind = msgspec.defstruct(
    "Record",
    [(name, Any, None) for name in fields.values()],
    rename={name: top for top, name in fields.items()},
    gc=False,
  )
  getters = [_getter(column, fields) for column in columns]
  for record in json_lines.objects(path, kind, config, read_counts):
    yield tuple(get(record) for get in getters)


def _top(column: str) -> str:
  return column.partition(".")[0]


def _getter(column: str, fields: Mapping[str, str]) -> Callable[[Any], Any]:
  top, dot, inner = column.partition(".")
  name = fields[top]
  if not dot:
    return lambda record: getattr(record, name)

  def get(record: Any) -> Any:
    value = getattr(record, name)
    return value.get(inner) if isinstance(value, Mapping) else None

  return get


def _of_csv(
  path: str, columns: Sequence[str], config: TreeConfig, read_counts: ReadCounts
) -> Iterator[tuple[Any, ...]]:
  header, dialect = _header(files.head(path))
  width = len(header)
  places = [header.index(column) for column in columns]
  lines = _lines(files.blocks(path, read_counts), config, read_counts)
  lines = itertools.dropwhile(lambda line: _NO_HEADER.fullmatch(line), lines)
  if "escapechar" in dialect:
    nothing = _null_of_mysql(dialect["delimiter"])
    lines = (nothing.sub("", line) for line in lines)
  found = csv_records(lines, width, dialect, read_counts)
  next(found, None)  # the header
  for record in found:
    yield tuple([record[place] for place in places])


def csv_records(
  lines: Iterator[str], width: int, dialect: Mapping[str, Any], read_counts: ReadCounts
) -> Iterator[list[str]]:
  """Yields records of CSV of `width` fields; counts the others.

  Args:
    lines: with their ends.
    width: fields of a record.
    dialect: arguments of `csv.reader`.
    read_counts: counts records of another number of fields.
  """
  again: deque[str] = deque()  # lines to be read a second time
  taken: list[str] = []  # lines of the record that is read
  size = 0  # of these

  def feed() -> Iterator[str]:
    nonlocal size
    while size <= _MAX_RECORD_CHARS:
      line = again.popleft() if again else next(lines, None)
      if line is None:
        return
      taken.append(line)
      size += len(line)
      yield line

  csv.field_size_limit(2**31 - 1)  # lines are bounded here
  while True:
    taken.clear()
    size = 0
    # One reader as long as its records are good: it takes no line before it needs it.
    with contextlib.suppress(csv.Error):
      for record in csv.reader(feed(), strict=True, **dialect):
        if len(record) != width:
          break
        yield record
        taken.clear()
        size = 0
    if not taken:
      return
    first, *others = taken
    again.extendleft(reversed(others))
    if not first.strip():
      continue
    alone = _record(first, dialect)
    if alone is not None and len(alone) == width:
      read_counts.repaired[REPAIRED_QUOTES] += 1
      yield alone
    else:
      read_counts.comments[DROPPED_BAD_RECORD] += 1


def _record(line: str, dialect: Mapping[str, Any]) -> list[str] | None:
  """The record of a line, whatever its quotation marks; None if it is no CSV."""
  try:
    return next(csv.reader((line,), **dialect), None)
  except csv.Error:
    return None


def _lines(
  blocks: Iterable[bytes], config: TreeConfig, read_counts: ReadCounts
) -> Iterator[str]:
  """Lines of text with their ends; those too long are counted and left out.

  Bytes that are not UTF-8 become lone surrogates, which `rows.text` counts.
  """
  limit = config.max_line_bytes
  counter, fate = files.too_long(read_counts, "comments")
  decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
  begun: list[str] = []  # pieces of a line
  size, held = 0, ""
  for block in itertools.chain(blocks, (None,)):
    content = held + decoder.decode(block or b"", final=block is None)
    ended = content if block is None else content.removesuffix("\r")  # of \r\n, perhaps
    held = content[len(ended) :]
    for piece in io.StringIO(ended, newline=""):
      size += len(piece)
      if size <= limit:
        begun.append(piece)
      else:
        begun.clear()
      if piece.endswith(("\n", "\r")):
        if size <= limit:
          yield "".join(begun)
        else:
          counter[fate] += 1
        begun.clear()
        size = 0
  if size > limit:
    counter[fate] += 1
  elif begun:
    yield "".join(begun)


def _doubled(delimiter: str) -> re.Pattern[str]:
  """Finds two quotation marks that stand for one: no empty field, and not escaped."""
  other = f"[^{re.escape(delimiter)}\\r\\n]"
  return re.compile(rf'(?<={other})(?<!\\)""|(?<!\\)""(?={other})')


def _null_of_mysql(delimiter: str) -> re.Pattern[str]:
  """Finds fields that hold MySQL's NULL, a backslash and an N."""
  ends = re.escape(delimiter)
  return re.compile(rf"(?:^|(?<={ends}))\\N(?=[{ends}\r\n]|$)")


def _header(head: bytes) -> tuple[list[str], dict[str, Any]]:
  """The names of columns of CSV, and the dialect; no name if it is no table."""
  content = head.decode("utf-8", "replace")
  if "\n" in content and len(head) >= 2**16:
    content = content[: content.rindex("\n") + 1]
  start = 0
  while blank := _NO_HEADER.match(content, start):
    start = blank.end()
  content = content[start:]
  line = _LINE_END.split(content, maxsplit=1)[0]
  delimiter = max(_DELIMITERS, key=line.count)
  dialect: dict[str, Any] = {"delimiter": delimiter}
  if re.search(r'[^\\]\\"', content) and not _doubled(delimiter).search(content):
    dialect |= {"escapechar": "\\", "doublequote": False}
  if delimiter != "\t" and line.count(delimiter) == line.count(delimiter + " "):
    dialect["skipinitialspace"] = True
  if delimiter not in line:
    return [], dialect
  try:
    first = next(csv.reader(io.StringIO(content, newline=""), **dialect))
  except (csv.Error, StopIteration):
    return [], dialect
  return [name.strip() for name in first], dialect
