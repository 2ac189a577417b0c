"""One JSON value a line, fast, and whatever Python's own parser takes."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ..trees import Fates

BAD_JSON = "skipped: bad JSON"
MENDED_UTF8 = "invalid UTF-8 replaced"

# What `parse` returns for a line that is no JSON; None is a value.
BAD = object()

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
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
