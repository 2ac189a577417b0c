"""Checkpoints written for T5X and for us, in either form, whole or not at all.

A checkpoint is drafted under another name and renamed once it is whole; in a bucket,
which has no rename, the file that makes it one is written last.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from commentree import local_files
from commentree.errors import StorageError, UserError
from commentree.training.checkpointing import orbax_noise, saving, storage
from commentree.training.warm_starts.formats import flax_msgpack, t5x_native
from commentree.training.warm_starts.formats.array_source import (
  ArraySource,
  ArraySpec,
  Index,
  whole,
)
from commentree.training.warm_starts.formats.zarr_arrays import kvstore

PyTree = Any
Form = Literal["orbax", "t5x_native"]
FORMS: tuple[Form, ...] = get_args(Form)

PARAMETERS = "target."
"""Of parameters' names in T5X's layout."""

_NAME = re.compile(rf"{saving.PREFIX}_(\d+)")
_DATASET = "dataset/metadata"
_CHUNK_BYTES = 2**26
_COMPRESSOR = {"id": "gzip", "level": 1}
_SAVE_SECONDS = 7 * 86400.0


class TreeArrays:
  """The leaves of a tree in memory as a source."""

  def __init__(self, tree: PyTree):
    """Names the leaves of nested dictionaries by their keys joined by dots."""
    self.path, self.kind = epath.Path("/"), "arrays in memory"
    self._leaves = flax.traverse_util.flatten_dict(tree, sep=".", keep_empty_nodes=True)
    self.empty = [n for n, a in self._leaves.items() if not hasattr(a, "shape")]
    self.arrays: Mapping[str, ArraySpec] = {
      name: ArraySpec(tuple(a.shape), np.dtype(a.dtype))
      for name, a in self._leaves.items()
      if hasattr(a, "shape")
    }

  def check(self) -> list[str]:
    """As `ArraySource.check`."""
    return []

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    return np.asarray(self._leaves[name][index])


def step_of(path: epath.Path) -> int:
  """Returns the step that a folder's name tells.

  Raises:
    UserError: if it is there already, or is not named as a checkpoint.
  """
  match = _NAME.fullmatch(path.name)
  if match is None:
    raise UserError(f"{path}: name it {saving.PREFIX}_<step>, as runs and T5X look for")
  if path.exists():
    raise UserError(f"{path} is there already: remove it, or name another folder")
  return int(match[1])


def write(
  source: ArraySource,
  path: epath.Path,
  form: Form,
  texts: Mapping[str, str] | None = None,
) -> None:
  """Writes a checkpoint in T5X's layout.

  Args:
    source: the arrays, `target.…` and `state.…`; all of them are written.
    path: the folder, `checkpoint_<step>`, not there yet.
    form: `t5x_native` takes memory for a part of one array at a time, `orbax` for all.
    texts: files to write besides, by path within the checkpoint.

  Raises:
    UserError: if it is there, or the source cannot be read.
    StorageError: if it cannot be written.
  """
  step = step_of(path)
  if not any(name.startswith(PARAMETERS) for name in source.arrays):
    raise UserError(
      f"{source.path} ({source.kind}) has no arrays under 'target': give --gin_file and"
      " the settings of a run, so that its arrays find their places"
    )
  writer = {"orbax": _write_orbax, "t5x_native": _write_t5x_native}[form]
  try:
    writer(source, path, step, dict(texts or {}))
  except Exception as error:
    if isinstance(error, UserError) or not storage.refused(error):
      raise
    raise StorageError(f"{path} cannot be written ({storage.reason(error)})") from error


def data_state(path: epath.Path) -> dict[str, str]:
  """Returns the file that says where a checkpoint's data stood, to be written again."""
  file = path / _DATASET
  # Without it, data begin at their beginning.
  return {_DATASET: file.read_text() if file.is_file() else "{}"}


def _tree(source: ArraySource, leaves: Mapping[str, Any]) -> PyTree:
  """Returns nested dictionaries, with those that are empty in the source."""
  empty: dict[str, Any] = {name: {} for name in getattr(source, "empty", ())}
  return flax.traverse_util.unflatten_dict({**leaves, **empty}, sep=".")


def _write_orbax(
  source: ArraySource, path: epath.Path, step: int, texts: Mapping[str, str]
) -> None:
  orbax_noise.silence()

  def leaf(name: str, spec: ArraySpec) -> Any:
    array = source.read(name, whole(spec.shape))
    # As a run writes them; JAX has no 64 bits unless it is told to.
    return array if spec.dtype.itemsize == 8 else jax.numpy.asarray(array)

  tree = _tree(source, {n: leaf(n, spec) for n, spec in source.arrays.items()})
  with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = saving.Writing(
      handler, path.parent, step, 1, tree, {**texts}, [], _SAVE_SECONDS
    )
    while not writing.join():
      time.sleep(0.1)
    if writing.failure is not None:
      raise writing.failure
    if writing.errors:
      raise StorageError(f"{path} cannot be written ({'; '.join(writing.errors)})")


def _write_t5x_native(
  source: ArraySource, path: epath.Path, step: int, texts: Mapping[str, str]
) -> None:
  del step  # The name tells it.
  with drafted(path) as draft:
    leaves = {
      name: _write_array(source, name, spec, draft)
      for name, spec in source.arrays.items()
    }
    for file, text in texts.items():
      (draft / file).parent.mkdir(parents=True, exist_ok=True)
      storage.write_text(draft / file, text)
    tree = {"version": t5x_native.VERSION, "optimizer": _tree(source, leaves)}
    storage.write_bytes(draft / t5x_native.FILE, flax_msgpack.pack(tree))


@contextlib.contextmanager
def drafted(path: epath.Path) -> Iterator[epath.Path]:
  """Gives a folder to write to, which is there once all is written, or not at all.

  In a bucket, which has no rename, it is there from the beginning: write last the file
  that makes it one.
  """
  if not storage.is_remote(path):
    with local_files.draft_folder(path) as draft:
      yield epath.Path(draft)
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
    yield path
  except BaseException:
    with contextlib.suppress(Exception):
      path.rmtree()
    raise


def _write_array(
  source: ArraySource, name: str, spec: ArraySpec, folder: epath.Path
) -> Any:
  """Writes an array; returns what stands for it in the msgpack."""
  # T5X looks for numbers that it does not share out, as the step, in the msgpack.
  if math.prod(spec.shape) <= 1:
    return source.read(name, whole(spec.shape))
  chunks = chunk_shape(spec)
  noted = {
    "driver": "zarr",
    "dtype": spec.dtype.name,
    "kvstore": {"driver": "file", "path": f"{name}/"},
    "metadata": {
      "chunks": chunks,
      "compressor": _COMPRESSOR,
      "shape": list(spec.shape),
    },
  }
  place = {**noted, "kvstore": kvstore(folder / name)}
  store = ts.open(place, create=True).result()
  for index in parts(spec.shape, chunks):
    store[index].write(source.read(name, index)).result()
  return noted


def chunk_shape(spec: ArraySpec) -> list[int]:
  """Returns the shape of an array's chunks: rows, as many as make some megabytes."""
  chunks = list(spec.shape)
  for axis, size in enumerate(spec.shape):
    row = math.prod(chunks[axis + 1 :]) * spec.dtype.itemsize
    chunks[axis] = max(1, min(size, _CHUNK_BYTES // max(1, row)))
    if chunks[axis] > 1 or size == 1:
      break
  return [max(1, size) for size in chunks]


def parts(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Index]:
  """Yields the index of each chunk, in order."""
  starts = [range(0, size, chunk) for size, chunk in zip(shape, chunks)]
  for corner in itertools.product(*starts):
    yield tuple(
      slice(start, min(start + chunk, size))
      for start, chunk, size in zip(corner, chunks, shape)
    )
