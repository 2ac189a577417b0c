"""Arrays in zarr format through TensorStore, opened all at once and read in parts.

Nothing that a checkpoint says of drivers, buckets or places reaches TensorStore: it is
given a place below the checkpoint's own folder, and opens for reading alone.
"""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from commentree.errors import UserError
from commentree.training.checkpointing import s3, storage
from commentree.training.warm_starts.formats.array_source import ArraySpec, Index

_LARGEST_CHUNK_BYTES = 2**33
_MOST_DIMENSIONS = 32
_OPEN_AT_ONCE = 256
_ATTEMPTS = 3


def check_place(path: epath.Path, name: str, place: object) -> str:
  """Returns where an array lies, relative to its checkpoint.

  Args:
    path: the checkpoint, to be named.
    name: the array, to be named.
    place: what the checkpoint says.

  Raises:
    UserError: if that is not below the checkpoint's folder.
  """
  if isinstance(place, str):
    parts = pathlib.PurePosixPath(place).parts
    plain = not any(mark in place for mark in ("\0", "\\", "://"))
    if plain and parts and not place.startswith("/") and ".." not in parts:
      return str(pathlib.PurePosixPath(*parts))
  raise UserError(
    f"{path}: array {name} claims to lie at {place!r}: only folders below the"
    " checkpoint's are read; get it from somebody you trust"
  )


def kvstore(folder: epath.Path) -> dict[str, Any]:
  """Returns TensorStore's specification of a folder, local or in a bucket."""
  text = str(folder)
  if text.startswith("s3://"):
    return s3.kvstore_spec(f"{text}/")
  if text.startswith("gs://"):
    bucket, _, key = text.removeprefix("gs://").partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{key}/"}
  return {"driver": "file", "path": f"{text}/"}


class ZarrArrays:
  """Zarr arrays of a checkpoint."""

  def __init__(
    self,
    path: epath.Path,
    specs: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
  ):
    """Opens them.

    Args:
      path: the checkpoint, to be named.
      specs: TensorStore's specification of each array, by name.
      shapes: what the checkpoint says that their shapes are, where it does.

    Raises:
      UserError: naming arrays that are not there, or not what the checkpoint says.
    """
    self._path = path
    self._stores: dict[str, ts.TensorStore] = {}
    self._context = ts.Context({"file_io_concurrency": {"limit": 16}})
    errors: dict[str, BaseException] = {}
    for batch in _batches(specs.items()):
      futures = {
        name: ts.open(dict(spec), read=True, open=True, context=self._context)
        for name, spec in batch
      }
      for name, future in futures.items():
        try:
          self._stores[name] = future.result()
        except Exception as error:
          errors[name] = error
    self._check_errors(errors)
    self.arrays: dict[str, ArraySpec] = {}
    for name, store in self._stores.items():
      self.arrays[name] = self._checked(name, store, shapes.get(name))

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    store = self._stores[name]

    def read() -> np.ndarray:
      return np.asarray(store[index].read().result())

    what = f"{self._path}: array {name} cannot be read"
    try:
      return storage.retried(what, read, _ATTEMPTS, storage.print_line)
    except Exception as error:
      if isinstance(error, UserError) or not storage.damaged(error):
        raise
      raise UserError(
        f"{what} ({storage.reason(error)}): the file is damaged; get it again"
      ) from error

  def missing_chunks(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Returns, for arrays that lack files, how many of how many.

    TensorStore takes what is not there for zeros, and may have written none for them.
    """
    counts = {}
    for name in names:
      store = self._stores[name]
      chunk = _chunk_shape(store)
      expected = math.prod(-(-size // part) for size, part in zip(store.shape, chunk))
      keys = store.kvstore.list().result() if store.kvstore is not None else []
      found = sum(not key.rpartition(b"/")[2].startswith(b".z") for key in keys)
      if found < expected:
        counts[name] = (expected - found, expected)
    return counts

  def _check_errors(self, errors: Mapping[str, BaseException]) -> None:
    if not errors:
      return
    refusal = next((e for e in errors.values() if storage.refused(e)), None)
    if refusal is not None:
      raise refusal
    name, error = next(iter(errors.items()))
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    raise UserError(
      f"{self._path}: array {name}{more} cannot be opened"
      f" ({storage.reason(error)}): parts of the checkpoint are missing or damaged"
    )

  def _checked(
    self, name: str, store: ts.TensorStore, shape: tuple[int, ...] | None
  ) -> ArraySpec:
    if shape is not None and store.shape != shape:
      raise UserError(
        f"{self._path}: array {name} has shape {store.shape}, but the checkpoint says"
        f" {shape}: it is damaged"
      )
    chunk = _chunk_shape(store)
    spec = ArraySpec(store.shape, np.dtype(store.dtype.numpy_dtype))
    num_bytes = math.prod(chunk) * spec.dtype.itemsize
    if num_bytes > _LARGEST_CHUNK_BYTES or len(spec.shape) > _MOST_DIMENSIONS:
      raise UserError(
        f"{self._path}: array {name} claims chunks of {chunk}, {num_bytes:,} bytes"
        f" each: more than {_LARGEST_CHUNK_BYTES:,} are not read at once"
      )
    return spec


def _chunk_shape(store: ts.TensorStore) -> tuple[int, ...]:
  return tuple(int(size or 1) for size in store.chunk_layout.read_chunk.shape or ())


def _batches(items: Iterable[Any]) -> Iterable[list[Any]]:
  iterator = iter(items)
  return iter(lambda: list(itertools.islice(iterator, _OPEN_AT_ONCE)), [])
