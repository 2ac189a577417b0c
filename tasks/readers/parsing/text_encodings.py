"""Contents of files as UTF-8, from any Unicode encoding.

UTF-16 and UTF-32 are recognized by their byte order mark or, where a file begins as
JSON, XML or a table does, by the NUL bytes beside its first characters. What is
neither is taken for UTF-8: readers replace what is invalid there, and count it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator

_BYTES_LOOKED_AT = 4
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FIRST_CHARACTERS = frozenset(b'{["<' + b" \t\r\n")


def encoding(start: bytes) -> str | None:
  """The encoding of contents that begin so; None for plain UTF-8."""
  start = start[:_BYTES_LOOKED_AT]
  marked = start.startswith(_MARKS) or start == codecs.BOM_UTF32_BE
  begins = start.replace(b"\0", b"")[:1]
  begins_so = begins and _FIRST_CHARACTERS.issuperset(begins)
  if not marked and not (b"\0" in start and begins_so):  # NULs alone are a crash's
    return None
  found = json.detect_encoding(start)
  return None if found == "utf-8" else found


def to_utf8(blocks: Iterable[bytes]) -> Iterator[bytes]:
  """Passes blocks of a file on, in UTF-8 and without a byte order mark."""
  blocks = iter(blocks)
  start = b""
  for block in blocks:
    start += block
    if len(start) >= _BYTES_LOOKED_AT:
      break
  name = encoding(start)
  if name is None:
    if start:
      yield start
    yield from blocks
    return
  decoder = codecs.getincrementaldecoder(name)("replace")
  yield decoder.decode(start).encode()
  for block in blocks:
    yield decoder.decode(block).encode()
  if rest := decoder.decode(b"", final=True):
    yield rest.encode()
