"""The records of a JSON file: lines, elements of arrays, or documents of many lines.

Most files hold an object a line. Others are one array, an API's answer (an object whose
`data` is an array: each element of that is a record), or values that go on over many
lines, one behind the other. Those are cut at their brackets, in time that grows with
their length and memory that one record takes. Libraries that parse JSON as a stream
(ijson) stop at the first thing that is wrong; here, a broken record costs no other one
where each begins a line: one that is still open where a line begins like its own first
line, and of which it is known that something is wrong, ends there.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import deep_json, files
from commentree.tasks.readers.parsing.json_cutter import (
  Cutter,
  Record,
  breaks_off,
  top_keys,
)
from commentree.tasks.trees.comment_tree import ReadCounts

REPAIRED_NOT_CLOSED = "arrays of JSON without an end"

_LINES_LOOKED_AT = 50
# A file is looked at as far as this to tell its records, and farther for a first line.
_HEAD_BYTES = 2**16
LONGEST_HEAD_BYTES = 2**18

# Up to the first key, of an object on a line.
_BEGINNING = re.compile(rb'[\s\0\x1e]*+(\{\s*+"[^"\\]*+"\s*+:)')
_BEGINNINGS_TRIED = 8

_OPENERS = frozenset(b"[{")
# Beside white space, NULs that a crash leaves and what begins texts of RFC 7464.
_AROUND = b" \t\r\v\f\0\x1e"
_decode = msgspec.json.Decoder().decode


def records(
  path: str,
  config: TreeConfig,
  read_counts: ReadCounts,
  holds: Literal["trees", "comments"] = "trees",
) -> Iterator[Record]:
  """Returns an iterator over the records of a file, broken ones as well.

  Args:
    path: the file; its mistakes are counted, not raised.
    config: how long a record may be.
    read_counts: the file's fate, and that of records too long, are counted here.
    holds: what a record too long counts as.
  """
  return of_blocks(files.blocks(path, read_counts), config, read_counts, holds)


def of_blocks(
  blocks: Iterable[bytes],
  config: TreeConfig,
  read_counts: ReadCounts,
  holds: Literal["trees", "comments"] = "trees",
) -> Iterator[Record]:
  """Returns an iterator over the records in blocks of bytes; see `records`."""
  head, blocks = _peek(iter(blocks))
  limit = config.max_line_bytes
  too_long = files.too_long(read_counts, holds)
  lines = is_lines(head)
  del head
  if lines:
    return map(Record, files.split(blocks, limit, too_long), itertools.count())

  def unclosed() -> None:
    read_counts.repaired[REPAIRED_NOT_CLOSED] += 1

  return _cut(blocks, Cutter(limit, too_long, unclosed, is_whole=_is_whole))


def _pass() -> None:
  """Counts nothing."""


def _cut(blocks: Iterable[bytes], cutter: Cutter) -> Iterator[Record]:
  for block in blocks:
    yield from cutter.feed(block)
  yield from cutter.finish()


def _peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
  """As much of blocks as it takes to tell their records; and all blocks."""
  head = bytearray()
  taken: list[bytes] = []
  for block in blocks:
    taken.append(block)
    head += block
    if len(head) >= LONGEST_HEAD_BYTES or _is_enough(head):
      break
  return bytes(head[:LONGEST_HEAD_BYTES]), itertools.chain(_drain(taken), blocks)


def _drain(taken: list[bytes]) -> Iterator[bytes]:
  """Yields blocks in order, and lets them go."""
  taken.reverse()
  while taken:
    yield taken.pop()


def _is_enough(head: bytearray) -> bool:
  start = re.match(rb"\s*+", head)
  assert start is not None
  end = head.find(b"\n", start.end())
  if end < 0:
    return False
  if len(head) >= _HEAD_BYTES:
    return True
  # Of an array on a line, what follows tells whether it holds the records.
  return head[start.end()] != ord("[") and _is_whole(bytes(head[start.end() : end]))


def is_lines(head: bytes) -> bool:
  """Whether the records of a file are its lines.

  Args:
    head: what the file begins with.
  """
  lines = [line.strip(_AROUND) for line in head.split(b"\n", _LINES_LOOKED_AT)]
  while lines and not lines[0]:
    del lines[0]
  if not lines or lines[0][0] not in _OPENERS:
    return True
  first, *others = lines
  if first[0] == ord("["):
    # An array of records; or of values, a stray line among objects?
    values = _value(first)
    stray = values and not any(isinstance(value, (dict, list)) for value in values)
    others = [line for line in others if line]
    objects = sum(line[:1] == b"{" and _is_whole(line) for line in others)
    return bool(stray) and 2 * objects > len(others)
  if _is_answer(first):
    return False
  if len(head) >= LONGEST_HEAD_BYTES and not others:
    # A record as long as that, or many without a line between?
    return next(Cutter(len(first), (Counter(), ""), _pass).feed(first), None) is None
  # Of an object or a broken line: among others, or before or in a document?
  whole = sum(map(_is_whole, lines))
  inside = sum(line.endswith((b",", b"{", b"[")) for line in others)
  return whole >= inside if whole or not others else breaks_off(first)


def on_line(line: bytes) -> list[tuple[bytes, int]]:
  """The records on a line that is no JSON as a whole, each with where it ends there.

  Files of lines that were put together may lack a line end between two of them, and a
  dump that was killed and begun again has a part of a record before a whole one.

  Args:
    line: any bytes.

  Returns:
    Objects and arrays, and what is broken between them; or the line alone.
  """
  nothing = [(line, len(line))]
  if files.is_heavy(line, copies=3):
    return nothing
  own = _BEGINNING.match(line)
  begun = re.compile(re.escape(own[1]) if own else rb"(?!)")  # none begins so
  cutter = Cutter(len(line), (Counter(), ""), _pass, opens=False)
  found: list[tuple[bytes, int]] = []
  some = last = False  # whether some record is found, and whether the last part is one
  at = 0
  for part, _ in itertools.chain(cutter.feed(line), cutter.finish()):
    at = line.index(part, at) + len(part)
    whole = _is_whole(part)
    if whole or last or not found:
      found.append((part, at))
    some = some or (whole and (len(found) == 1 or begun.match(part) is not None))
    last = whole
  if some:
    return [*found[:-1], (found[-1][0], len(line))]
  # Behind a part of a record, where no value may begin.
  for other in itertools.islice(begun.finditer(line), 1, _BEGINNINGS_TRIED):
    part, rest = line[: other.start()], line[other.start() :].rstrip(_AROUND + b",;")
    inside = part.rstrip().endswith((b":", b",", b"[")) and not breaks_off(part)
    if not inside and _is_whole(rest):
      return [(part, len(part)), (rest, len(line))]
  return nothing


def first_keys(head: bytes) -> tuple[frozenset[str], ...]:
  """The keys of the first records that are objects, for telling formats apart.

  Args:
    head: what a file begins with. If no record in it is whole, the keys are those of
      the first one, as far as they go.
  """
  whole, begun = _first_keys(head)
  return whole or begun


def has_whole_record(head: bytes) -> bool:
  """Whether what a file begins with holds a whole record of JSON, or is no JSON."""
  return bool(_first_keys(head)[0]) or head.lstrip()[:1] not in (b"{", b"[")


@functools.lru_cache(maxsize=1)
def _first_keys(
  head: bytes,
) -> tuple[tuple[frozenset[str], ...], tuple[frozenset[str], ...]]:
  """Keys of the first objects, and of one that the head's end cuts off."""
  if is_lines(head):
    *found, begun = head.split(b"\n", _LINES_LOOKED_AT)
    if len(found) < _LINES_LOOKED_AT and _is_whole(begun.strip()):
      found.append(begun)
  else:
    cutter = Cutter(len(head), (Counter(), ""), _pass)
    cut = itertools.islice(cutter.feed(head), _LINES_LOOKED_AT)
    found = [record.content for record in cut]
    begun = cutter.begun()

  def keys(starts: Iterable[bytes]) -> tuple[frozenset[str], ...]:
    objects = (start for start in starts if start.lstrip()[:1] == b"{")
    return tuple(frozenset(top_keys(start)) for start in objects)

  return keys(found), keys([begun])


def _value(line: bytes) -> Any:
  """The object or array on a line, if it is whole; or None."""
  if line[:1] not in (b"{", b"["):
    return None
  try:
    return _decode(line)
  except (ValueError, RecursionError):
    pass
  content = line.decode("utf-8", "replace")
  try:  # what strict JSON does not have: NaN, lone surrogates
    try:
      return json.loads(content, strict=False)
    except RecursionError:
      return deep_json.parse(content)
  except ValueError:
    return None


def _is_whole(line: bytes) -> bool:
  return _value(line) is not None


def _is_answer(start: bytes) -> bool:
  """Whether an object that begins so is an API's answer: `{"data": [...]}`."""
  cutter = Cutter(len(start), (Counter(), ""), _pass)
  for _ in cutter.feed(start):
    pass
  return cutter.found_answer
