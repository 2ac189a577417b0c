"""Files as streams of lines: globs and folders, plain, gzip and zstd.

What a file holds is told from its first bytes, not its name. A file that is cut off
or damaged yields what comes before; `Fates` and the log say so.
"""

from __future__ import annotations

import glob
import gzip
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Literal

from ...errors import UserError
from ..trees import Fates

READ = "read"
EMPTY = "read: empty"
TRUNCATED = "read in part: cut off"
DAMAGED = "read in part: damaged"
UNREADABLE = "not read: cannot be opened"
LINE_TOO_LONG = "skipped: line too long"
DROPPED_LINE_TOO_LONG = "dropped: line too long"

COMPRESSIONS = (".gz", ".zst")

_BLOCK_BYTES = 2**18
# Compressed zstd is fed in small bites: a bite's output comes all at once, 128 KiB
# for every 4 bytes of it at worst.
_ZSTD_BITE_BYTES = 2**12
_ZSTD_MAX_WINDOW_BYTES = 2**31  # dumps are made with `--long=31`
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # behind a byte from 0x50 to 0x5f

_log = logging.getLogger(__name__)


class _CutOffError(Exception):
  """Compressed data ends before it should."""


class _DamagedError(Exception):
  """Compressed data is not what it should be."""


def expand(patterns: str | Sequence[str], suffixes: Sequence[str]) -> list[str]:
  """Lists the files that patterns stand for, each once, in order of name.

  Args:
    patterns: files, globs (`**` for any depth) and folders.
    suffixes: of a folder, files with one of these, compressed or not, are taken; a
      file named, or matched by a glob, is taken whatever its name.

  Raises:
    UserError: if a pattern matches nothing that can be read.
  """
  if isinstance(patterns, (str, os.PathLike)):
    patterns = [patterns]
  endings = tuple(
    suffix + compression for suffix in suffixes for compression in ("", *COMPRESSIONS)
  )
  found: set[str] = set()
  for pattern in map(os.fspath, patterns):
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
      names = {
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(endings) and not name.startswith(".")
      }
      wanted = f"no file ending in {', '.join(suffixes)} (.gz, .zst) in this folder"
    else:
      # A name may hold characters that a glob would read otherwise.
      matches = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
      names = {match for match in matches if not os.path.isdir(match)}
      wanted = "no such file, and no file matches it; check the path"
    if not names:
      raise UserError(f"{pattern}: {wanted}")
    for name in sorted(names):
      if not os.access(name, os.R_OK):
        raise UserError(f"{name}: cannot be read; check its permissions")
    found |= names
  return sorted(found)


def lines(
  path: str,
  max_line_bytes: int,
  fates: Fates,
  holds: Literal["trees", "comments"] = "trees",
) -> Iterator[bytes]:
  """Yields a file's lines, in memory that does not grow with it.

  Args:
    path: the file, whose lines end in a line feed (not passed on); whatever is wrong
      with it, nothing is raised.
    max_line_bytes: lines longer than this are skipped.
    fates: the file's fate, and that of lines too long, are counted here.
    holds: what a line too long counts as.
  """
  fate = READ
  too_long = (
    (fates.trees, LINE_TOO_LONG)
    if holds == "trees"
    else (fates.comments, DROPPED_LINE_TOO_LONG)
  )
  try:
    with open(path, "rb") as file:
      blocks = _blocks(file)
      yield from _split(blocks, max_line_bytes, too_long)
      if file.tell() == 0:
        fate = EMPTY
  except _CutOffError as error:
    fate = TRUNCATED
    _log.warning("%s: is cut off (%s); what comes before was read", path, error)
  except _DamagedError as error:
    fate = DAMAGED
    _log.warning("%s: is damaged (%s); what comes before was read", path, error)
  except OSError as error:
    fate = UNREADABLE
    _log.warning("%s: cannot be read (%s)", path, error)
  fates.files[fate] += 1


def _split(
  blocks: Iterator[bytes], max_line_bytes: int, too_long: tuple[Counter[str], str]
) -> Iterator[bytes]:
  """Cuts blocks at line ends; yields the last line even if an error follows."""
  parts: list[bytes] = []  # of the line begun
  held = 0  # bytes in them; more than `max_line_bytes` once the line is given up

  def take() -> bytes | None:
    nonlocal held
    line = b"".join(parts)
    parts.clear()
    gave_up, held = held > max_line_bytes, 0
    if gave_up:
      counter, fate = too_long
      counter[fate] += 1
      return None
    return line

  failure: Exception | None = None
  try:
    for block in blocks:
      *ended, rest = block.split(b"\n")
      for piece in ended:
        held += len(piece)
        if held <= max_line_bytes:
          parts.append(piece)
        else:
          parts.clear()
        if (line := take()) is not None:
          yield line
      held += len(rest)
      if held <= max_line_bytes:
        parts.append(rest)
      else:
        parts.clear()
  except (_CutOffError, _DamagedError, OSError) as error:
    failure = error
  if held and (line := take()) is not None:
    yield line
  if failure is not None:
    raise failure


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
  """The file's contents, uncompressed, a block at a time."""
  start = file.read(4)
  file.seek(0)
  if start.startswith(_GZIP_MAGIC):
    return _gzip_blocks(file)
  if start == _ZSTD_MAGIC or start[1:] == _ZSTD_SKIPPABLE_MAGIC:
    return _zstd_blocks(file)
  return iter(lambda: file.read(_BLOCK_BYTES), b"")


def _gzip_blocks(file: IO[bytes]) -> Iterator[bytes]:
  with gzip.GzipFile(fileobj=file) as stream:
    while True:
      try:
        block = stream.read1(_BLOCK_BYTES)
      except EOFError as error:
        raise _CutOffError(error) from error
      except (gzip.BadGzipFile, zlib.error) as error:
        raise _DamagedError(error) from error
      if not block:
        return
      yield block


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
  import zstandard  # here, because settings are checked without it

  decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
  frame = decompressor.decompressobj()
  bite = file.read(_ZSTD_BITE_BYTES)
  fed = False  # whether the frame has begun
  while bite:
    try:
      block = frame.decompress(bite)
    except zstandard.ZstdError as error:
      raise _DamagedError(error) from error
    if block:
      yield block
    if frame.eof:
      bite, fed = frame.unused_data, False
      frame = decompressor.decompressobj()
    else:
      bite, fed = b"", True
    bite = bite or file.read(_ZSTD_BITE_BYTES)
  if fed:
    raise _CutOffError("the last zstd frame is not whole")


def head(path: str, size: int = 2**16) -> bytes:
  """The first bytes of a file, uncompressed; empty if there are none to be had."""
  found = b""
  try:
    with open(path, "rb") as file:
      for block in _blocks(file):
        found += block
        if len(found) >= size:
          break
  except (_CutOffError, _DamagedError, OSError):
    pass  # whoever reads the file counts and tells that
  return found[:size]
