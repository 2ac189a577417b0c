"""Flax's msgpack, read without trust: dictionaries, numbers, arrays, and no more.

Flax writes an array as an extension of (shape, name of the type, bytes), and one of
more than a gigabyte in pieces. Whatever lengths a file claims, no more memory is taken
than it has bytes, and a little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MOST_DIMENSIONS = 32
# Lists in checkpoints are shapes; tables of parameters are dictionaries.
_LONGEST_LIST = 1024
_DEEPEST = 64
_DTYPES = {
  **{
    name: np.dtype(name)
    for name in (
      *("bool", "int8", "int16", "int32", "int64"),
      *("uint8", "uint16", "uint32", "uint64"),
      *("float16", "float32", "float64", "complex64", "complex128"),
    )
  },
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def pack(tree: Any) -> bytes:
  """Returns a tree of dictionaries, lists, numbers, strings and arrays as Flax's."""
  return msgpack.packb(tree, default=_packed, strict_types=True)


def _packed(value: Any) -> msgpack.ExtType:
  kind = _SCALAR if isinstance(value, np.generic) else _ARRAY
  array = np.asarray(value)
  content = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(kind, msgpack.packb(content, use_bin_type=True))


def unpack(data: bytes) -> Any:
  """Returns what `pack`, or Flax, was given.

  Raises:
    ValueError: saying why it is not that.
  """
  try:
    tree = msgpack.unpackb(
      data, ext_hook=_unpacked, raw=False, max_array_len=_LONGEST_LIST
    )
  except ValueError:
    raise
  except Exception as error:
    raise ValueError(f"is no msgpack: {type(error).__name__}: {error}") from error
  return _joined(tree, 0)


def _unpacked(code: int, data: bytes) -> Any:
  if code not in (_ARRAY, _SCALAR):
    raise ValueError(f"has an extension {code}, which is no array")
  content = msgpack.unpackb(data, raw=True, max_array_len=_MOST_DIMENSIONS)
  if not isinstance(content, list) or len(content) != 3:
    raise ValueError("has an array that is not (shape, type, bytes)")
  shape, name, buffer = content
  dtype = _DTYPES.get(name.decode() if isinstance(name, bytes) else "")
  if dtype is None or not isinstance(buffer, bytes):
    raise ValueError(f"has an array of type {name!r}")
  if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f"has an array of shape {shape!r}")
  if math.prod(shape) * dtype.itemsize != len(buffer):
    raise ValueError(
      f"has an array of shape {tuple(shape)} {dtype} in {len(buffer)} bytes"
    )
  return np.frombuffer(buffer, dtype).reshape(shape)


def _joined(tree: Any, depth: int) -> Any:
  """Puts arrays together that Flax cut, and checks how deep the tree is."""
  if depth > _DEEPEST:
    raise ValueError(f"is nested more than {_DEEPEST} deep")
  if not isinstance(tree, Mapping):
    return tree
  if _CHUNKED not in tree:
    return {key: _joined(value, depth + 1) for key, value in tree.items()}
  try:
    shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
    chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
    return np.concatenate([chunk.reshape(-1) for chunk in chunks]).reshape(shape)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(f"has an array in pieces that do not fit ({error})") from error
