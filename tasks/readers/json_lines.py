"""JSON values, fast, and whatever Python's own parser takes."""

from __future__ import annotations

import dataclasses
import json
import math
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
_NO_BRACKET = re.compile(r'(?:[^"\[\]{}N]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_OPENERS, _CLOSERS = re.compile(r"[\[{]++"), re.compile(r"[\]}]++")
_LEVELS = 100  # parsed at once, of JSON that is nested more deeply than Python's stack
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
  except ValueError:
    return _parse_leniently(line, fates, is_deep=False)
  except RecursionError:
    return _parse_leniently(line, fates, is_deep=True)


def _parse_leniently(line: bytes, fates: Fates, is_deep: bool) -> Any:
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
    if not is_deep:
      return json.loads(content, strict=False)
  except ValueError:  # also for numbers of too many digits
    return BAD
  except RecursionError:
    pass
  try:
    return _parse_deep(content)
  except ValueError:
    return BAD


@dataclasses.dataclass
class _Container:
  """A container that is open, with what is known of it so far.

  Attributes:
    start: where its bracket stands.
    at: from where on its text is not in `text` yet.
    text: with `NaN` in place of containers that were parsed by themselves.
    values: those containers' values, and those of what is written as NaN, in order.
    is_deep: whether `levels` more are open in it, or were.
  """

  start: int
  at: int
  text: list[str] = dataclasses.field(default_factory=list)
  values: list[Any] = dataclasses.field(default_factory=list)
  is_deep: bool = False

  def parse(self, content: str, end: int) -> Any:
    """The value, of the container's text up to a place."""
    values = iter(self.values)
    decoder = json.JSONDecoder(
      strict=False,
      parse_constant=lambda name: next(values) if name == "NaN" else float(name),
    )
    return decoder.decode("".join([*self.text, content[self.at : end]]))

  def take(self, inner: _Container, content: str, end: int) -> None:
    """Takes the value of a container in this one that ends before a place."""
    if not inner.is_deep:  # parsed with this one
      self.values += inner.values
      return
    self.text += [content[self.at : inner.start], "NaN"]
    self.values.append(inner.parse(content, end))
    self.at = end


def _parse_deep(content: str, levels: int = _LEVELS) -> Any:
  """Parses what is nested more deeply than Python's stack, some levels at a time.

  Args:
    content: JSON or not.
    levels: so many levels are parsed at once, or up to twice as many.

  Raises:
    ValueError: if it is no JSON.
  """
  # The whole, and what is open at each level that is a multiple of `levels`.
  containers = [_Container(0, 0)]
  depth = at = 0
  while (at := _match_end(_NO_BRACKET, content, at)) < len(content):
    end = _match_end(_OPENERS, content, at)
    if end > at:
      for place in range(at + levels - 1 - depth % levels, end, levels):
        containers[-1].is_deep = True
        containers.append(_Container(place, place))
      depth += end - at
    elif (end := _match_end(_CLOSERS, content, at)) > at:
      if end - at > depth:
        raise ValueError("a bracket that closes none")
      for place in range(at + depth % levels, end, levels):
        inner = containers.pop()
        containers[-1].take(inner, content, place + 1)
      depth -= end - at
    elif content.startswith("NaN", at):
      containers[-1].values.append(math.nan)
      end = at + len("NaN")
    else:
      raise ValueError("a string without an end, or a word that is none")
    at = end
  if depth:
    raise ValueError("a bracket that is not closed")
  return containers[0].parse(content, len(content))


def _match_end(pattern: re.Pattern[str], content: str, at: int) -> int:
  match = pattern.match(content, at)
  return at if match is None else match.end()
