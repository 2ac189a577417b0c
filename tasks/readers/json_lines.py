"""One JSON value a line, fast, and whatever Python's own parser takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from ..trees import Fates

BAD_JSON = "skipped: bad JSON"
DROPPED_BAD_JSON = "dropped: bad JSON"
MENDED_UTF8 = "invalid UTF-8 replaced"

# What `parse` returns for a line that is no JSON; None is a value.
BAD = object()

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINES_LOOKED_AT = 50
# A string, behind which a colon may stand, or a bracket.
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?|[\[\]{}]', re.DOTALL)
_decode = msgspec.json.Decoder().decode


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
  line = line.removeprefix(_BYTE_ORDER_MARK)
  try:
    content = line.decode("utf-8")
  except UnicodeDecodeError:
    content = line.decode("utf-8", "replace")
    fates.mended[MENDED_UTF8] += 1
  try:
    return json.loads(content, strict=False)
  except (ValueError, RecursionError):
    # ValueError: also for numbers of too many digits.
    return BAD


def keys_of_lines(head: bytes) -> Iterator[frozenset[str]]:
  """Yields the keys of the objects on the first lines, for telling formats apart.

  Args:
    head: what a file begins with; of an object that goes on behind its end, the keys
      are those before.
  """
  lines = head.removeprefix(_BYTE_ORDER_MARK).split(b"\n", _LINES_LOOKED_AT)
  for line in lines[:_LINES_LOOKED_AT]:
    if line.lstrip()[:1] == b"{":
      yield frozenset(_top_keys(line))


def _top_keys(line: bytes) -> Iterator[str]:
  depth = 0
  for match in _TOKEN.finditer(line):
    token = match[0]
    if token in (b"{", b"["):
      depth += 1
    elif token in (b"}", b"]"):
      depth -= 1
    elif match[2] and depth == 1:
      yield match[1].decode("utf-8", "replace")
