"""Files of records as TensorFlow has them, without TensorFlow.

A record is framed by its length (8 bytes, little-endian), that length's checksum, its
bytes and their checksum: CRC-32C, masked as TensorFlow does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_MAX_RECORD_BYTES = 2**31  # what a protocol buffer may have


class DamagedError(Exception):
  """Records are not what was written; says where, in one line."""


def _masked_crc(data: bytes) -> int:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
  """The bytes that stand for a record in a file; files may be put end to end."""
  before, behind = around(record)
  return b"".join((before, record, behind))


def around(record: bytes) -> tuple[bytes, bytes]:
  """What stands before and behind a record in a file."""
  length = struct.pack("<Q", len(record))
  return (
    length + _CHECKSUM.pack(_masked_crc(length)),
    _CHECKSUM.pack(_masked_crc(record)),
  )


def read(file: IO[bytes]) -> Iterator[bytes]:
  """Yields the records of a file opened for reading.

  Raises:
    DamagedError: if a checksum does not match, or the last record is cut off.
  """
  number = 0
  while header := file.read(_HEADER.size):
    if len(header) < _HEADER.size:
      raise DamagedError(f"is cut off in the header of record {number:,}")
    length, crc = _HEADER.unpack(header)
    if crc != _masked_crc(header[:8]) or length > _MAX_RECORD_BYTES:
      raise DamagedError(f"the header of record {number:,} is damaged")
    record, checksum = file.read(length), file.read(_CHECKSUM.size)
    if len(record) < length or len(checksum) < _CHECKSUM.size:
      raise DamagedError(f"is cut off in record {number:,}")
    if checksum != _CHECKSUM.pack(_masked_crc(record)):
      raise DamagedError(f"record {number:,} is damaged: its checksum does not match")
    yield record
    number += 1
