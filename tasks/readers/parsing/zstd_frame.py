"""One frame of zstd, decoded a block at a time.

`zstandard` returns at once all that the bytes it is given hold, up to 128 KiB for every
4 of them. So it is given the bytes of one block, which holds 128 KiB at most.
"""

from __future__ import annotations

import dataclasses
from typing import Any

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x2a\x4d\x18"  # how a frame begins that holds no data, from byte 1 on

_MAX_BLOCK_BYTES = 2**17
_BLOCK_HEADER_BYTES = 3
_CHECKSUM_BYTES = 4
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)
_RAW, _ONE_BYTE, _RESERVED = 0, 1, 3  # types of blocks; 2 is compressed


@dataclasses.dataclass(frozen=True)
class Header:
  """What a frame's header says.

  Attributes:
    size: its own bytes.
    window_bytes: how far back blocks refer, and so what is held.
    content_bytes: what the frame holds; None if that is not said.
    has_checksum: whether there is a checksum behind the last block.
  """

  size: int
  window_bytes: int
  content_bytes: int | None
  has_checksum: bool


def read_header(start: bytes) -> Header | None:
  """Reads a header; None if `start` is no more than its beginning.

  Args:
    start: what a frame begins with, `MAGIC` first.
  """
  if len(start) < 5:
    return None
  flags = start[4]
  in_one_segment = bool(flags >> 5 & 1)
  content_size = 1 << (flags >> 6)
  if content_size == 1 and not in_one_segment:
    content_size = 0
  place = 5 + (not in_one_segment) + _DICTIONARY_ID_BYTES[flags & 3]
  size = place + content_size
  if len(start) < size:
    return None
  content = None
  if content_size:
    content = int.from_bytes(start[place:size], "little") + (content_size == 2) * 256
  if in_one_segment:
    window = content or 0
  else:
    base = 1 << (10 + (start[5] >> 3))
    window = base + base // 8 * (start[5] & 7)
  return Header(size, window, content, bool(flags >> 2 & 1))


class ZstdFrame:
  """Decodes a frame; as the decompressors of `bz2` and `lzma` do.

  Attributes:
    eof: whether the frame's end was reached.
    needs_input: whether nothing is returned without more bytes.
    unused_data: what was given and lies behind the frame.
  """

  def __init__(self, max_window_bytes: int, held_bytes: int):
    """Begins a frame.

    Args:
      max_window_bytes: frames that refer back farther are damaged.
      held_bytes: what may be held for it. A window takes memory as it fills.
    """
    import zstandard  # here, because settings are checked without it

    self.eof = False
    self.needs_input = True
    self.unused_data = b""
    self._held_bytes = held_bytes
    self._damaged = zstandard.ZstdError
    decompressor = zstandard.ZstdDecompressor(max_window_size=max_window_bytes)
    self._decoder: Any = decompressor.decompressobj()
    self._waiting = bytearray()
    self._header: Header | None = None
    self._skipped: int | None = None  # bytes to skip of a frame that holds no data
    self._is_last = False  # whether the last block was decoded
    self._returned = 0

  def decompress(self, data: bytes, /, max_length: int) -> bytes:
    """Returns what a block holds, or nothing.

    Args:
      data: the frame's next bytes.
      max_length: at least 128 KiB.

    Raises:
      zstandard.ZstdError: if the frame is damaged.
      MemoryError: if it takes more than `held_bytes`.
    """
    del max_length
    self._waiting += data
    block = b""
    wanted: int | None = 0
    while not block and not self.eof and wanted is not None:
      wanted = self._next_bytes()
      if wanted is not None:
        taken = bytes(self._waiting[:wanted])
        del self._waiting[:wanted]
        block = self._decode(taken)
    if self.eof:
      self.unused_data = bytes(self._waiting)
    self.needs_input = wanted is None and not self.eof
    return block

  def _next_bytes(self) -> int | None:
    """How many bytes to take at once; None if they are not all there."""
    waiting = self._waiting
    if self._skipped is not None:
      return min(len(waiting), self._skipped) or None
    if self._header is None:
      return self._first_bytes()
    if self._is_last:
      return _CHECKSUM_BYTES if len(waiting) >= _CHECKSUM_BYTES else None
    if len(waiting) < _BLOCK_HEADER_BYTES:
      return None
    size = _BLOCK_HEADER_BYTES + self._block_bytes()
    return size if len(waiting) >= size else None

  def _first_bytes(self) -> int | None:
    start = bytes(self._waiting[:18])
    if start[1:4] == SKIPPABLE and start[0] >> 4 == 5:
      return 8 if len(start) >= 8 else None
    if not MAGIC.startswith(start[:4]):
      raise self._damaged("no header of zstd where one should be")
    header = read_header(start)
    return None if header is None else header.size

  def _block_bytes(self) -> int:
    """Bytes of the next block behind its header."""
    header = int.from_bytes(self._waiting[:_BLOCK_HEADER_BYTES], "little")
    kind, size = header >> 1 & 3, header >> 3
    if kind == _RESERVED or size > _MAX_BLOCK_BYTES:
      raise self._damaged("a block of a kind or size that there is not")
    return 1 if kind == _ONE_BYTE else size

  def _decode(self, taken: bytes) -> bytes:
    if self._skipped is not None:
      self._skipped -= len(taken)
      self.eof = not self._skipped
      return b""
    if self._header is None and taken[1:4] == SKIPPABLE:
      self._skipped = int.from_bytes(taken[4:], "little")
      self.eof = not self._skipped
      return b""
    if self._header is None:
      self._header = read_header(taken)
    elif not self._is_last:
      self._is_last = bool(taken[0] & 1)
    block: bytes = self._decoder.decompress(taken)
    self._returned += len(block)
    self.eof = self._decoder.eof
    assert self._header is not None
    if min(self._header.window_bytes, self._returned) > self._held_bytes:
      raise MemoryError(f"{self._header.window_bytes / 2**20:,.0f} MB")
    return block
