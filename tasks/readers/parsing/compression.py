"""Compressed files as blocks of bytes: gzip, bzip2, xz and zstd, past what is damaged.

Each is a sequence of frames (a member, a stream) that can be told by how they begin.
Where one is damaged, reading continues at the next that is none of its contents.

Memory does not depend on how well a file is compressed: a call of a decoder returns
`_BLOCK_BYTES` at most, and what a decoder looks back at (a window, a dictionary) is
bounded by `window_limit`.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

from commentree.tasks.readers.parsing import zstd_frame
from commentree.tasks.readers.parsing.zstd_frame import ZstdFrame

_BITE_BYTES = 2**12  # read at once of compressed files
_BLOCK_BYTES = 2**18  # of contents that are held at once
_MAX_WINDOW_BYTES = 2**31  # zstd dumps are made with `--long=31`
_LEAST_WINDOW_BYTES = 72 * 2**20  # the dictionary of `xz -9`, and what goes with it
# How much may be read twice because a damaged frame may hold sound ones, so that the
# time for a file grows as its length does: this much, and four times what was read.
_READ_TWICE_BYTES = 2**26
# Damage is noticed so many bytes behind it at most (a block of bzip2 is the longest),
# or by the checksum at the frame's end.
_NOTICED_WITHIN_BYTES = 2**20
_SEARCHED_BYTES = 2**16
_GZIP_MAGIC = b"\x1f\x8b\x08"
_USUAL_RATIO = 20  # of what is in a file to its size
_HEADER_BYTES = 64  # enough to tell whether a frame begins somewhere


class CutOffError(Exception):
  """Compressed data ends before it should."""


class WindowError(Exception):
  """To unpack a file takes more memory than `window_limit` allows."""


_window_bytes = _MAX_WINDOW_BYTES


@contextlib.contextmanager
def window_limit(window_bytes: int) -> Iterator[None]:
  """Bounds what decoders in this process hold of what they have unpacked.

  Args:
    window_bytes: the bound; 72 MiB are allowed in any case.
  """
  global _window_bytes
  before = _window_bytes
  _window_bytes = min(max(window_bytes, _LEAST_WINDOW_BYTES), _MAX_WINDOW_BYTES)
  try:
    yield
  finally:
    _window_bytes = before


class _DamagedError(Exception):
  """A frame is not what it should be.

  Attributes:
    block: what was read of it last.
  """

  def __init__(self, why: object, block: bytes = b""):
    super().__init__(str(why))
    self.block = block


class _Decoder(Protocol):
  """Of one frame; what the decompressors of `bz2` and `lzma` are."""

  @property
  def eof(self) -> bool: ...

  @property
  def needs_input(self) -> bool: ...

  @property
  def unused_data(self) -> bytes: ...

  def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Compression:
  """A way to compress files.

  Attributes:
    suffix: of the names of such files.
    magic: how every frame begins.
    decoder: makes the decoder of a frame.
    errors: what that raises for damage.
    plausible: whether a frame begins with these bytes, which begin with `magic`.
    skippable: how frames begin that hold no data, behind their first byte.
  """

  suffix: str
  magic: bytes
  decoder: Callable[[], _Decoder]
  errors: Callable[[], tuple[type[Exception], ...]]
  plausible: Callable[[bytes], bool]
  skippable: bytes | None = None

  def begins(self, start: bytes) -> bool:
    """Whether a file that begins so is one."""
    if start.startswith(self.magic):
      return True
    skippable = self.skippable
    return skippable is not None and start[1:].startswith(skippable)


def blocks(file: IO[bytes], damage: list[str]) -> Iterator[bytes]:
  """Yields a file's contents, uncompressed if they are compressed.

  What holds them is recognized by their beginning; by the file's name where that is
  damaged.

  Args:
    file: at its beginning; can seek.
    damage: gets the first thing that is wrong with the file. In place of what is lost,
      a line feed is yielded.

  Yields:
    Blocks of 256 KiB at most.

  Raises:
    CutOffError: if the last frame is not whole.
    WindowError: if unpacking it takes more memory than this process may take.
    OSError: if the file cannot be read.
  """
  start = file.read(_HEADER_BYTES)
  file.seek(0)
  for compression in COMPRESSIONS:
    if compression.begins(start):
      return _frames(file, compression, damage)
  if start and not start.startswith((b"{", b"[", b"<", b"\xef\xbb\xbf")):
    for compression in COMPRESSIONS:
      named = str(file.name).lower().endswith(compression.suffix)
      if named and _find(file, compression, 0) is not None:
        file.seek(0)
        return _frames(file, compression, damage)
    file.seek(0)
  return iter(lambda: file.read(_BLOCK_BYTES), b"")


def window_bytes(path: str) -> int:
  """How much memory unpacking a file is likely to take, as its beginning says.

  A window takes memory as it fills: no more than what is in the file.
  """
  try:
    with open(path, "rb") as file:
      start = file.read(_HEADER_BYTES)
    if not start.startswith(zstd_frame.MAGIC):
      return 0
    header = zstd_frame.read_header(start)
    if header is None:
      return 0
    content = header.content_bytes
    if content is None:
      content = os.path.getsize(path) * _USUAL_RATIO
    return min(header.window_bytes, content, _MAX_WINDOW_BYTES)
  except OSError:
    return 0


def _frames(
  file: IO[bytes], compression: Compression, damage: list[str]
) -> Iterator[bytes]:
  errors = compression.errors()
  decoder = compression.decoder()
  begun = False  # whether the decoder has been fed
  bite, at = b"", 0  # bytes to feed, and where in the file they end
  frame = 0  # where the decoder's frame begins
  read_twice = 0
  while True:
    hungry = not begun or decoder.needs_input
    if not bite and hungry:
      bite = file.read(_BITE_BYTES)
      at += len(bite)
      if not bite and not begun:
        return
    if not begun:
      bite = bite.lstrip(b"\0")  # padding between frames
      frame = at - len(bite)
      if not bite:
        continue
    ends = hungry and not bite
    try:
      if ends:
        raise _DamagedError("a frame continues where the file ends")
      try:
        block = decoder.decompress(bite, max_length=_BLOCK_BYTES)
      except errors as error:
        _check_memory(error)
        raise _DamagedError(error) from error
    except _DamagedError as error:
      start = max(frame + 1, at - _NOTICED_WITHIN_BYTES)
      if read_twice + at - start > _READ_TWICE_BYTES + 4 * at:
        start = max(frame + 1, at - len(bite))
      found = _find(file, compression, start)
      if found is None and ends:
        raise CutOffError("the last frame is not whole") from None
      if not damage:
        damage.append(str(error))
      yield error.block + b"\n"
      if found is None:
        return
      file.seek(found)
      read_twice += max(0, at - found)
      bite, at, begun = b"", found, False
      decoder = compression.decoder()
      continue
    if block:
      yield block
    bite, begun = b"", not decoder.eof
    if not begun:
      bite = decoder.unused_data
      decoder = compression.decoder()


def _check_memory(error: Exception) -> None:
  """Raises WindowError if that is what an error of a decoder says."""
  if isinstance(error, MemoryError) or (
    "Memory usage limit" in str(error) and _window_bytes < _MAX_WINDOW_BYTES
  ):
    raise WindowError(str(error) or "there is no more memory") from error


def _find(file: IO[bytes], compression: Compression, start: int) -> int | None:
  """Where a frame begins, at `start` or behind it, or None."""
  file.seek(start)
  searched = b""
  while True:
    more = file.read(_SEARCHED_BYTES)
    searched += more
    # Of what may go on behind `searched`, the last bytes are looked at again.
    whole = len(searched) - (_HEADER_BYTES if more else 0)
    place = searched.find(compression.magic)
    while 0 <= place < whole:
      if compression.plausible(searched[place : place + _HEADER_BYTES]):
        return start + place
      place = searched.find(compression.magic, place + 1)
    if not more:
      return None
    kept = max(0, whole)
    searched = searched[kept:]
    start += kept


class _GzipMember:
  """Decodes a member; unlike `zlib`, returns the data even if the checksum is wrong."""

  _FLAG_HEADER_CRC, _FLAG_EXTRA, _FLAG_NAME, _FLAG_COMMENT = 2, 4, 8, 16
  _LONGEST_HEADER_BYTES = 2**17

  def __init__(self) -> None:
    self.eof = False
    self.needs_input = True
    self.unused_data = b""
    self._header: bytearray | None = bytearray()  # until it is whole
    self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    self._trailer = b""
    self._crc = self._size = 0

  def decompress(self, data: bytes, /, max_length: int) -> bytes:
    if self._header is not None:
      self._header += data
      end = self._header_end(self._header)
      if end is None:
        if len(self._header) > self._LONGEST_HEADER_BYTES:
          raise zlib.error("a header of gzip without an end")
        return b""
      data, self._header = bytes(self._header[end:]), None
    block = b""
    if self._inflate.eof:
      self._trailer += data
    else:
      block = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
      self._crc = zlib.crc32(block, self._crc)
      self._size += len(block)
      if self._inflate.eof:
        self._trailer = self._inflate.unused_data
    self.needs_input = self._inflate.eof or (
      len(block) < max_length and not self._inflate.unconsumed_tail
    )
    if self._inflate.eof and len(self._trailer) >= 8:
      self.eof, self.unused_data = True, self._trailer[8:]
      if struct.unpack("<II", self._trailer[:8]) != (self._crc, self._size % 2**32):
        raise _DamagedError("a checksum does not fit", block)
    return block

  def _header_end(self, header: bytearray) -> int | None:
    """Where the header ends; None if it continues.

    Raises:
      zlib.error: if it is none.
    """
    magic = _GZIP_MAGIC[: len(header)]
    if not header.startswith(magic) or (len(header) > 3 and header[3] & 0xE0):
      raise zlib.error("no header of gzip where one should be")
    end = 10
    if len(header) < end:
      return None
    flags = header[3]
    if flags & self._FLAG_EXTRA:
      if len(header) < end + 2:
        return None
      end += 2 + int.from_bytes(header[end : end + 2], "little")
    for flag in (self._FLAG_NAME, self._FLAG_COMMENT):
      if flags & flag:
        end = header.find(b"\0", end) + 1
        if not end:
          return None
    if flags & self._FLAG_HEADER_CRC:
      end += 2
    return end if len(header) >= end else None


def _plausible_gzip(start: bytes) -> bool:
  # No reserved flag, a level as compressors write it, and a known operating system.
  return (
    len(start) >= 10
    and not start[3] & 0xE0
    and start[8] in (0, 2, 4)
    and (start[9] <= 13 or start[9] == 255)
  )


def _plausible_bzip2(start: bytes) -> bool:
  return start[3:4] in b"123456789" and start[4:10] in (
    b"\x31\x41\x59\x26\x53\x59",
    b"\x17\x72\x45\x38\x50\x90",
  )


def _plausible_xz(start: bytes) -> bool:
  return len(start) >= 12 and zlib.crc32(start[6:8]) == int.from_bytes(
    start[8:12], "little"
  )


def _plausible_zstd(start: bytes) -> bool:
  import zstandard

  try:
    parameters = zstandard.get_frame_parameters(start)
  except zstandard.ZstdError:
    return False
  return parameters.window_size <= _MAX_WINDOW_BYTES and not parameters.dict_id


def _zstd_errors() -> tuple[type[Exception], ...]:
  import zstandard

  return (zstandard.ZstdError, MemoryError)


COMPRESSIONS = (
  Compression(
    ".gz", _GZIP_MAGIC, _GzipMember, lambda: (zlib.error, MemoryError), _plausible_gzip
  ),
  Compression(
    ".zst",
    zstd_frame.MAGIC,
    lambda: ZstdFrame(_MAX_WINDOW_BYTES, _window_bytes),
    _zstd_errors,
    _plausible_zstd,
    skippable=zstd_frame.SKIPPABLE,
  ),
  Compression(
    ".bz2",
    b"BZh",
    bz2.BZ2Decompressor,
    lambda: (OSError, ValueError, MemoryError),
    _plausible_bzip2,
  ),
  Compression(
    ".xz",
    b"\xfd7zXZ\0",
    lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_window_bytes),
    lambda: (lzma.LZMAError, MemoryError),
    _plausible_xz,
  ),
)
SUFFIXES = tuple(compression.suffix for compression in COMPRESSIONS)
