"""JSON values, fast, and all that Python's own parser takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import deep_json, files, json_records
from commentree.tasks.trees.comment_tree import DROPPED_NOT_OBJECT, ReadCounts

BAD_JSON = "skipped: bad JSON"
DROPPED_BAD_JSON = "dropped: bad JSON"
REPAIRED_UTF8 = "invalid UTF-8 replaced"
REPAIRED_LINES = "lines of JSON with more on them than a record taken apart"

# What `parse` returns for a line that is no JSON; None is a value.
BAD = object()

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def objects(
  path: str, kind: type[_Struct], config: TreeConfig, read_counts: ReadCounts
) -> Iterator[_Struct]:
  """Yields the objects of a file; a record that is none is a comment dropped.

  Args:
    path: the file; its mistakes are counted, not raised.
    kind: the fields to read, of type `Any` and with defaults; others are passed over
      without being decoded.
    config: how long a record may be.
    read_counts: counts what became of the file, and of records that are no object.
  """
  decode = msgspec.json.Decoder(kind).decode
  fields = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__))
  for line, _ in json_records.records(path, config, read_counts, "comments"):
    try:
      found = decode(line)
    except (ValueError, RecursionError):
      if not line or line.isspace():
        continue
      for record, _ in values(line, read_counts):
        if record is BAD:
          read_counts.comments[DROPPED_BAD_JSON] += 1
        elif not isinstance(record, Mapping):
          read_counts.comments[DROPPED_NOT_OBJECT] += 1
        else:
          own = fields.keys() & record.keys()
          yield kind(**{fields[key]: record[key] for key in own})
    else:
      yield found


def values(line: bytes, read_counts: ReadCounts) -> Iterator[tuple[Any, int]]:
  """Yields what is on a line, and where it ends there.

  That is a value, or `BAD`; of a line that `json_records.on_line` takes apart, several.

  Args:
    line: not empty.
    read_counts: gets `REPAIRED_LINES`, and what `parse` counts.
  """
  counted = ReadCounts()
  value = parse(line, counted)
  if value is BAD and (parts := json_records.on_line(line)) != [(line, len(line))]:
    read_counts.repaired[REPAIRED_LINES] += 1
    for part, end in parts:
      yield parse(part, read_counts), end
    return
  read_counts.repaired.update(counted.repaired)
  yield value, len(line)


def parse(line: bytes, read_counts: ReadCounts) -> Any:
  """Returns the value on a line, or `BAD`; counts what it repaired.

  Args:
    line: not empty.
    read_counts: gets `REPAIRED_UTF8`.
  """
  try:
    return _decode(line)
  except ValueError:
    return _parse_leniently(line, read_counts, is_deep=False)
  except RecursionError:
    return _parse_leniently(line, read_counts, is_deep=True)


def _parse_leniently(line: bytes, read_counts: ReadCounts, *, is_deep: bool) -> Any:
  """Takes NaN, lone surrogates and control characters in strings, too."""
  if files.is_heavy(line, copies=2):
    return BAD
  line = line.removeprefix(_BYTE_ORDER_MARK)
  try:
    content = line.decode("utf-8")
  except UnicodeDecodeError:
    content = line.decode("utf-8", "replace")
    read_counts.repaired[REPAIRED_UTF8] += 1
  try:
    if not is_deep:
      return json.loads(content, strict=False)
  except ValueError:  # also for numbers of too many digits
    return BAD
  except RecursionError:
    pass
  try:
    return deep_json.parse(content)
  except ValueError:
    return BAD
