"""Files in safetensors format, as Hugging Face has them, read in parts.

    8 bytes       length of the header, little-endian
    header        JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, and
                  "__metadata__": {text: text}}
    data          the arrays in C order, from `begin` to `end` of this part

A model is `model.safetensors`, or several files that `model.safetensors.index.json`
tells the arrays of.

The library of that name is not used: it reads no buckets, takes the memory of a whole
array for a part of it, and accepts a header that names an array twice.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_dtypes
import msgspec
import numpy as np
from etils import epath

from commentree.errors import UserError
from commentree.training.checkpointing import storage
from commentree.training.warm_starts.formats.array_source import (
  ArraySpec,
  Index,
  extent,
)

KIND = "safetensors"
MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

METADATA = "__metadata__"
LENGTH_BYTES = 8
DTYPES = {
  "BOOL": np.dtype(np.bool_),
  **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
  **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
  **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}

T = TypeVar("T")
# A hundred thousand arrays take a third of it.
_LONGEST_HEADER = 2**25
_MOST_DIMENSIONS = 32
_LONGEST_AXIS = 2**40
_BLOCK_BYTES = 2**24
_ATTEMPTS = 3

# Files that run code when they are loaded, or may, in a folder without safetensors.
_UNSAFE_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt")
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class _Entry(msgspec.Struct):
  """What a header says of an array."""

  dtype: str
  shape: list[int]
  data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
  """What `model.safetensors.index.json` says."""

  weight_map: dict[str, str]


def is_there(path: epath.Path) -> bool:
  """Whether a path is such a file, or a folder with a model of such files."""
  return path.name.endswith(".safetensors") or any(
    (path / name).is_file() for name in (MODEL_FILE, INDEX_FILE)
  )


def refuse_pickles(path: epath.Path) -> None:
  """Says what to do about PyTorch's own files, which are never opened.

  Raises:
    UserError: if a path is one, or a folder that holds one.
  """
  unsafe = [path] if path.name.endswith(_UNSAFE_SUFFIXES) and path.is_file() else []
  unsafe += [path / name for name in _UNSAFE_NAMES if (path / name).is_file()]
  if unsafe:
    raise UserError(
      f"{unsafe[0]} is a pickle, which may run any code when it is read, and is never"
      " loaded: get the model's safetensors, or convert it where you trust it, with"
      " transformers: AutoModelForMaskedLM.from_pretrained(FOLDER)"
      ".save_pretrained(NEW_FOLDER)"
    )


def open_safetensors(path: epath.Path) -> Safetensors:
  """Opens a file, or a folder with a model.

  Args:
    path: see `is_there`.

  Raises:
    UserError: if it is damaged.
  """
  if path.name.endswith(".safetensors"):
    if not path.is_file():
      raise UserError(f"{path}: there is no such file")
    return Safetensors(path, {path: None})
  # As Hugging Face: a single file counts first.
  if (path / MODEL_FILE).is_file():
    return Safetensors(path, {path / MODEL_FILE: None})
  return Safetensors(path, _files_of_index(path / INDEX_FILE))


class Safetensors:
  """Arrays of one or more files.

  Attributes:
    path: the file, or the folder.
    kind: what it is.
    arrays: all arrays, by their names.
  """

  def __init__(self, path: epath.Path, files: Mapping[epath.Path, set[str] | None]):
    """Reads the headers.

    Args:
      path: the file or the folder, to be named.
      files: the files, and the arrays that each must hold; None for any.

    Raises:
      UserError: if one is damaged.
    """
    self.path, self.kind = path, KIND
    arrays: dict[str, ArraySpec] = {}
    self.arrays: Mapping[str, ArraySpec] = arrays
    self._places: dict[str, tuple[epath.Path, int]] = {}
    for file, wanted in files.items():
      found = _storage_read(file, lambda file=file: _header(file))  # type: ignore[misc]
      if missing := sorted((wanted or set()) - found.keys()):
        raise UserError(
          f"{file} lacks {missing[0]}, which {INDEX_FILE} says is there: a part of"
          " another model, or damaged"
        )
      for name, (spec, offset) in found.items():
        if name in arrays:
          raise UserError(
            f"{path} has two arrays named {name}, in {self._places[name][0].name} and"
            f" {file.name}: keep the files of one model"
          )
        arrays[name] = spec
        self._places[name] = (file, offset)

  def check(self) -> list[str]:
    """As `ArraySource.check`: sizes are checked on opening, and there are no sums."""
    return []

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    file, offset = self._places[name]
    spec = self.arrays[name]
    part = np.empty(extent(index), spec.dtype)

    def fill() -> None:
      with file.open("rb") as stream:
        _fill(_Reader(stream, file, name), offset, spec.shape, index, part)

    if part.size:
      _storage_read(file, fill)
    return part


class _Reader:
  """Reads an array's bytes, and says if they are not there."""

  def __init__(self, stream: Any, file: epath.Path, name: str):
    self._stream, self._file, self._name = stream, file, name

  def __call__(self, offset: int, length: int) -> bytes:
    self._stream.seek(offset)
    data = self._stream.read(length)
    if len(data) != length:
      raise UserError(
        f"{self._file} ends within {self._name}, and did not when it was opened: it is"
        " being written or is damaged; get it again"
      )
    return data


def _fill(
  read: _Reader, offset: int, shape: tuple[int, ...], index: Index, part: np.ndarray
) -> None:
  """Reads a part of the array at `offset` into `part`, some megabytes at a time."""
  if not shape:
    part[...] = np.frombuffer(read(offset, part.itemsize), part.dtype)[0]
    return
  row_bytes = math.prod(shape[1:]) * part.itemsize
  if row_bytes > _BLOCK_BYTES and len(shape) > 1:
    for row, slot in zip(range(index[0].start, index[0].stop), part):
      _fill(read, offset + row * row_bytes, shape[1:], index[1:], slot)
    return
  rows_at_once = max(1, _BLOCK_BYTES // row_bytes)
  for start in range(index[0].start, index[0].stop, rows_at_once):
    stop = min(start + rows_at_once, index[0].stop)
    data = read(offset + start * row_bytes, (stop - start) * row_bytes)
    rows = np.frombuffer(data, part.dtype).reshape(stop - start, *shape[1:])
    into = slice(start - index[0].start, stop - index[0].start)
    part[into] = rows[(slice(None), *index[1:])]


def _storage_read(file: epath.Path, read: Callable[[], T]) -> T:
  """Returns what `read` returns, trying again where the storage refuses."""

  def may_pass(error: BaseException) -> bool:
    return storage.refused(error) and not storage.damaged(error)

  what = f"{file} cannot be read"
  try:
    return storage.retried(what, read, _ATTEMPTS, storage.print_line, may_pass)
  except FileNotFoundError as error:
    raise UserError(f"{file}: there is no such file: a part of the model") from error


def _header(file: epath.Path) -> dict[str, tuple[ArraySpec, int]]:
  """Returns what a file's arrays are, and at which byte each begins."""
  size = file.stat().length
  with file.open("rb") as stream:
    start = stream.read(LENGTH_BYTES)
    if start == b"version " and size < 1024:
      raise UserError(f"{file} is a pointer of Git LFS: run `git lfs pull` there")
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or length > size - LENGTH_BYTES:
      raise _damaged(
        file, f"it has {size:,} bytes and claims a header of {length:,} at their head"
      )
    if length > _LONGEST_HEADER:
      raise _damaged(
        file, f"claims a header of {length:,} bytes, of at most {_LONGEST_HEADER:,}"
      )
    text = stream.read(length)
  data_start = LENGTH_BYTES + length
  found = {}
  for name, entry in _entries(file, text).items():
    spec = _spec(file, name, entry)
    found[name] = (spec, data_start + entry.data_offsets[0])
  _check_places(file, found, data_start, size)
  return found


def _entries(file: epath.Path, text: bytes) -> dict[str, _Entry]:
  """Returns what a header says of each array."""
  try:
    # Types first: nothing is built of what is no header.
    raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    metadata = raw.pop(METADATA, None)
    if metadata is not None:
      msgspec.json.decode(metadata, type=dict[str, str])
    entries = {n: msgspec.json.decode(e, type=_Entry) for n, e in raw.items()}
    json.loads(text, object_pairs_hook=_once)
  except (ValueError, RecursionError) as error:
    raise _damaged(file, f"its header cannot be read: {error}") from error
  return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Refuses keys that are there twice: readers would differ in which they take."""
  table = dict(pairs)
  if len(table) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    raise ValueError(f"{counts.most_common(1)[0][0]!r} is there twice")
  return table


def _spec(file: epath.Path, name: str, entry: _Entry) -> ArraySpec:
  dtype = DTYPES.get(entry.dtype)
  if dtype is None:
    raise UserError(
      f"{file}: array {name} is of type {entry.dtype!r}, of which {', '.join(DTYPES)}"
      " are read: convert it"
    )
  sound = all(0 <= size < _LONGEST_AXIS for size in entry.shape)
  if not sound or len(entry.shape) > _MOST_DIMENSIONS:
    raise _damaged(file, f"array {name} claims the shape {entry.shape[:40]}")
  spec = ArraySpec(tuple(entry.shape), dtype)
  begin, end = entry.data_offsets
  if end - begin != spec.num_bytes:
    raise _damaged(
      file,
      f"array {name} of shape {spec.shape} and type {entry.dtype} takes"
      f" {spec.num_bytes:,} bytes, and claims those from {begin:,} to {end:,}",
    )
  return spec


def _check_places(
  file: epath.Path, found: Mapping[str, tuple[ArraySpec, int]], start: int, size: int
) -> None:
  """Makes sure that a file is its arrays from `start` on: no overlap, gap or rest."""
  in_order = sorted(found.items(), key=lambda item: (item[1][1], item[1][0].num_bytes))
  at = start
  for name, (spec, offset) in in_order:
    if offset != at:
      what = "overlap" if offset < at else "leave a gap"
      raise _damaged(
        file,
        f"its arrays {what}: {name} begins at byte {offset - start:,} of the data,"
        f" where {at - start:,} is due",
      )
    at += spec.num_bytes
  if at != size:
    what = "is cut short" if at > size else "holds more than its arrays"
    raise _damaged(file, f"it {what}: {size:,} bytes, of {at:,}")


def _damaged(file: epath.Path, why: str) -> UserError:
  said = " ".join(why.split())
  return UserError(f"{file} is no safetensors, or damaged ({said}): get it again")


def _files_of_index(file: epath.Path) -> dict[epath.Path, set[str] | None]:
  """Returns the files of a model in parts, and which arrays each must hold."""
  if (size := file.stat().length) > _LONGEST_HEADER:
    raise _damaged(file, f"it has {size:,} bytes, of at most {_LONGEST_HEADER:,}")
  text = _storage_read(file, file.read_bytes)
  try:
    weight_map = msgspec.json.decode(text, type=_Index).weight_map
    json.loads(text, object_pairs_hook=_once)
  except (ValueError, RecursionError) as error:
    raise _damaged(file, str(error)) from error
  files: dict[str, set[str]] = {}
  for array, name in weight_map.items():
    plain = not any(mark in name for mark in ("/", "\\", "\0", ":"))
    if not plain or not name.endswith(".safetensors"):
      raise UserError(
        f"{file} says that {array} lies in {name!r}: only .safetensors files beside it"
        " are read; get it from somebody you trust"
      )
    files.setdefault(name, set()).add(array)
  return {file.parent / name: arrays for name, arrays in files.items()}
