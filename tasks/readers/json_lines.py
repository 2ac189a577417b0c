"""JSON values, fast, and whatever Python's own parser takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from ..config import TreeConfig
from ..trees import DROPPED_NOT_OBJECT, Fates
from . import files, json_records

BAD_JSON = "skipped: bad JSON"
DROPPED_BAD_JSON = "dropped: bad JSON"
MENDED_UTF8 = "invalid UTF-8 replaced"

# What `parse` returns for a line that is no JSON; None is a value.
BAD = object()

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = " \t\r\n"
_DEEP_TOKEN = re.compile(
  r'[ \t\r\n]*("(?:[^"\\]|\\.)*"|[^\s\[\]{},:"]+|[\[\]{},:])', re.DOTALL
)
_decode = msgspec.json.Decoder().decode

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def objects(
  path: str, kind: type[_Struct], config: TreeConfig, fates: Fates
) -> Iterator[_Struct]:
  """Yields the objects of a file; a record that is none is a comment dropped.

  Args:
    path: the file; whatever is wrong with it, nothing is raised.
    kind: the fields to read, of type `Any` and with defaults; others are passed over
      without being decoded.
    config: how long a record may be.
    fates: counts what became of the file, and of records that are no object.
  """
  decode = msgspec.json.Decoder(kind).decode
  fields = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__))
  for line, _ in json_records.records(path, config, fates, "comments"):
    try:
      found = decode(line)
    except (ValueError, RecursionError):
      if not line or line.isspace():
        continue
      record = parse(line, fates)
      if record is BAD:
        fates.comments[DROPPED_BAD_JSON] += 1
        continue
      if not isinstance(record, Mapping):
        fates.comments[DROPPED_NOT_OBJECT] += 1
        continue
      found = kind(
        **{fields[key]: record[key] for key in fields.keys() & record.keys()}
      )
    yield found


def parse(line: bytes, fates: Fates) -> Any:
  """Returns the value on a line, or `BAD`; counts what it mended.

  Args:
    line: not empty.
    fates: gets `MENDED_UTF8`.
  """
  try:
    return _decode(line)
  except (ValueError, RecursionError):
    return _parse_leniently(line, fates)


def _parse_leniently(line: bytes, fates: Fates) -> Any:
  """Takes NaN, lone surrogates and control characters in strings, too."""
  if files.is_heavy(line, copies=2):
    return BAD
  line = line.removeprefix(_BYTE_ORDER_MARK)
  try:
    content = line.decode("utf-8")
  except UnicodeDecodeError:
    content = line.decode("utf-8", "replace")
    fates.mended[MENDED_UTF8] += 1
  try:
    return json.loads(content, strict=False)
  except ValueError:  # also for numbers of too many digits
    return BAD
  except RecursionError:
    try:
      return _parse_deep(content)
    except (ValueError, IndexError):
      return BAD


def _parse_deep(content: str) -> Any:
  """Parses what is nested more deeply than Python's stack, a value at a time.

  Raises:
    ValueError, IndexError: if it is no JSON.
  """
  top: list[Any] = []
  containers: list[Any] = [top]  # that are open, outer first
  keys: list[Any] = [None]  # of each, the key that a value is to come for
  before = ","  # the token before; a value may stand behind `,`, `:`, `[` and `{`
  place = 0
  for match in _DEEP_TOKEN.finditer(content):
    token, start = match[1], match.start()
    if start != place or (len(containers) == 1 and top):
      raise ValueError("something that is no token, or behind the end")
    place = match.end()
    into = containers[-1]
    in_object = isinstance(into, dict)
    if token in ("}", "]"):
      if len(containers) == 1 or in_object != (token == "}") or keys[-1] is not None:
        raise ValueError("a bracket that closes none")
      if before == ",":
        raise ValueError("a comma without a value")
      containers.pop()
      keys.pop()
    elif token in (",", ":"):
      after_key = in_object and keys[-1] is not None and before == "key"
      if (token == ":") != after_key or before in (",", ":", "[", "{"):
        raise ValueError("a sign where a value should be")
    elif in_object and keys[-1] is None:
      if before not in (",", "{"):
        raise ValueError("a key without a comma")
      key = json.loads(token, strict=False) if token[0] == '"' else None
      if not isinstance(key, str):
        raise ValueError("a key that is no string")
      keys[-1], token = key, "key"
    else:
      if before not in (",", ":", "["):
        raise ValueError("a value without a comma")
      value: Any = {"{": {}, "[": []}.get(token)
      if value is None:
        value = json.loads(token, strict=False)
      if in_object:
        into[keys[-1]], keys[-1] = value, None
      else:
        into.append(value)
      if token in ("{", "["):
        containers.append(value)
        keys.append(None)
      else:
        token = "value"
    before = token
  if place != len(content.rstrip(_WHITE_SPACE)) or len(containers) > 1:
    raise ValueError("not whole")
  return top[0]
