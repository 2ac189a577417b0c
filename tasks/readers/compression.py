"""Compressed files as blocks of bytes: gzip, bzip2, xz and zstd, past what is damaged.

Each is a sequence of frames (a member, a stream) that can be told by how they begin.
Where one is damaged, reading goes on at the next that is none of its contents.
"""

from __future__ import annotations

import bz2
import dataclasses
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

# Compressed bytes are fed in small bites: a bite's output comes all at once, 128 KiB
# for every 4 bytes of zstd at worst, and is lost if there is damage in it.
_BITE_BYTES = 2**12
_PLAIN_BLOCK_BYTES = 2**18
_MAX_WINDOW_BYTES = 2**31  # zstd dumps are made with `--long=31`
# Damage is noticed so many bytes behind it at most (a block of bzip2 is the longest),
# or by the checksum at the frame's end.
_NOTICED_WITHIN_BYTES = 2**20
_SEARCHED_BYTES = 2**16
_GZIP_MAGIC = b"\x1f\x8b\x08"
_HEADER_BYTES = 64  # enough to tell whether a frame begins somewhere


class CutOffError(Exception):
  """Compressed data ends before it should."""


class _DamagedError(Exception):
  """A frame is not what it should be.

  Attributes:
    block: what was read of it last.
  """

  def __init__(self, why: object, block: bytes = b""):
    super().__init__(str(why))
    self.block = block


class _Decoder(Protocol):
  """Of one frame; what the decompressors of `bz2`, `lzma` and `zstandard` are."""

  @property
  def eof(self) -> bool: ...

  @property
  def unused_data(self) -> bytes: ...

  def decompress(self, data: bytes, /) -> bytes: ...


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

  What holds them is told by their beginning; by the file's name where that is damaged.

  Args:
    file: at its beginning; can seek.
    damage: gets what is wrong with the file. In place of what is lost, a line feed is
      yielded.

  Raises:
    CutOffError: if the last frame is not whole.
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
  return iter(lambda: file.read(_PLAIN_BLOCK_BYTES), b"")


def _frames(
  file: IO[bytes], compression: Compression, damage: list[str]
) -> Iterator[bytes]:
  errors = compression.errors()
  decoder = compression.decoder()
  begun = False  # whether the decoder has been fed
  bite, at = b"", 0  # bytes to feed, and where in the file they end
  frame = 0  # where the decoder's frame begins
  while True:
    if not bite:
      bite = file.read(_BITE_BYTES)
      at += len(bite)
      if not bite and not begun:
        return
    if not begun:
      bite = bite.lstrip(b"\0")  # padding between frames
      frame = at - len(bite)
      if not bite:
        continue
    try:
      if not bite:
        raise _DamagedError("a frame goes on where the file ends")
      try:
        block = decoder.decompress(bite)
      except errors as error:
        raise _DamagedError(error) from error
    except _DamagedError as error:
      found = _find(file, compression, max(frame + 1, at - _NOTICED_WITHIN_BYTES))
      if found is None and not bite:
        raise CutOffError("the last frame is not whole") from None
      damage.append(str(error))
      yield error.block + b"\n"
      if found is None:
        return
      file.seek(found)
      bite, at, begun = b"", found, False
      decoder = compression.decoder()
      continue
    if block:
      yield block
    begun = not decoder.eof
    if begun:
      bite = b""
    else:
      bite = decoder.unused_data
      decoder = compression.decoder()


def _find(file: IO[bytes], compression: Compression, start: int) -> int | None:
  """Where a frame begins, at `start` or behind it; None if there is none."""
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
  """Decodes a member; unlike `zlib`, gives its data though the checksum be wrong."""

  _FLAG_HEADER_CRC, _FLAG_EXTRA, _FLAG_NAME, _FLAG_COMMENT = 2, 4, 8, 16

  def __init__(self) -> None:
    self.eof = False
    self.unused_data = b""
    self._waiting: bytes | None = b""  # of the header, until that is whole
    self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    self._trailer = b""
    self._crc = self._size = 0

  def decompress(self, data: bytes, /) -> bytes:
    if self._waiting is not None:
      self._waiting += data
      end = self._header_end(self._waiting)
      if end is None:
        return b""
      data, self._waiting = self._waiting[end:], None
    block = b""
    if self._inflate.eof:
      self._trailer += data
    else:
      block = self._inflate.decompress(data)
      self._crc = zlib.crc32(block, self._crc)
      self._size += len(block)
      if self._inflate.eof:
        self._trailer = self._inflate.unused_data
    if self._inflate.eof and len(self._trailer) >= 8:
      self.eof, self.unused_data = True, self._trailer[8:]
      if struct.unpack("<II", self._trailer[:8]) != (self._crc, self._size % 2**32):
        raise _DamagedError("a checksum does not fit", block)
    return block

  def _header_end(self, header: bytes) -> int | None:
    """Where the header ends; None if it goes on.

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


def _zstd_decoder() -> _Decoder:
  import zstandard  # here, because settings are checked without it

  return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()


def _zstd_errors() -> tuple[type[Exception], ...]:
  import zstandard

  return (zstandard.ZstdError, MemoryError)


COMPRESSIONS = (
  Compression(
    ".gz", _GZIP_MAGIC, _GzipMember, lambda: (zlib.error, MemoryError), _plausible_gzip
  ),
  Compression(
    ".zst",
    b"\x28\xb5\x2f\xfd",
    _zstd_decoder,
    _zstd_errors,
    _plausible_zstd,
    skippable=b"\x2a\x4d\x18",
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
    lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW_BYTES),
    lambda: (lzma.LZMAError, MemoryError),
    _plausible_xz,
  ),
)
SUFFIXES = tuple(compression.suffix for compression in COMPRESSIONS)
