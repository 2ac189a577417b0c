"""T5X's own checkpoints, as those of T5, mT5, ByT5 and FLAN: msgpack and TensorStore.

checkpoint_<step>/checkpoint      msgpack: {'version': 3, 'optimizer': {'target',
                                  'state'}}; a leaf is an array, or says where in
                                  TensorStore one lies
checkpoint_<step>/target.<name>/  such an array, in zarr format
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from commentree.errors import UserError
from commentree.training.checkpointing import storage
from commentree.training.warm_starts.formats import flax_msgpack
from commentree.training.warm_starts.formats.array_source import ArraySpec, Index
from commentree.training.warm_starts.formats.zarr_arrays import (
  ZarrArrays,
  check_place,
  kvstore,
)

FILE = "checkpoint"
KIND = "T5X native checkpoint"
VERSION = 3

_ORBAX_FILE = "_METADATA"
_LARGEST_BYTES = 2**36
_KVSTORES = ("file", "gfile", "gcs")
_SPEC_KEYS = {"driver", "dtype", "kvstore", "path", "metadata", "transform"}


def is_there(path: epath.Path) -> bool:
  """Whether a folder, or a file in it, is such a checkpoint."""
  folder = _folder(path)
  return (folder / FILE).is_file() and not (folder / _ORBAX_FILE).exists()


def _folder(path: epath.Path) -> epath.Path:
  return path.parent if path.name == FILE and path.is_file() else path


class T5xNative:
  """A checkpoint in T5X's native form, read in parts.

  Attributes:
    path: its folder.
    kind: what it is.
    arrays: all arrays, `target.…` and `state.…`.
    empty: names of dictionaries that hold nothing, as parts of an optimizer's state.
  """

  def __init__(self, path: epath.Path):
    """Reads the msgpack, and opens the arrays.

    Args:
      path: the folder, or the file in it.

    Raises:
      UserError: if it is damaged, or asks for anything outside its folder.
    """
    self.path, self.kind = _folder(path), KIND
    found = list(self._leaves(self._tree()))
    leaves = dict(found)
    if len(leaves) < len(found):
      raise UserError(f"{self.path / FILE} has two arrays of one name: it is damaged")
    self.empty = [
      n for n, leaf in leaves.items() if isinstance(leaf, dict) and not leaf
    ]
    self._inside = {n: a for n, a in leaves.items() if isinstance(a, np.ndarray)}
    specs: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, leaf in leaves.items():
      if isinstance(leaf, dict) and leaf:
        specs[name] = self._spec(name, leaf)
        if shape := self._shape(name, leaf):
          shapes[name] = shape
    self._outside = ZarrArrays(self.path, specs, shapes)
    inside = {n: ArraySpec(a.shape, a.dtype) for n, a in self._inside.items()}
    both = {**inside, **self._outside.arrays}
    self.arrays: Mapping[str, ArraySpec] = {n: both[n] for n in leaves if n in both}

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    if name in self._inside:
      return self._inside[name][index]
    return self._outside.read(name, index)

  def check(self) -> list[str]:
    """As `ArraySource.check`: names parameters that lack files."""
    mine = list(self._outside.arrays)[jax.process_index() :: jax.process_count()]
    missing = self._outside.missing_chunks(n for n in mine if n.startswith("target."))
    return [
      f"{self.path}: array {name} lacks {lost} of {expected} files: these are taken for"
      " zeros; if they were lost in copying, copy it again"
      for name, (lost, expected) in missing.items()
    ]

  def _tree(self) -> Any:
    file = self.path / FILE
    if (size := file.stat().length) > _LARGEST_BYTES:
      raise UserError(f"{file} has {size:,} bytes: too many for a checkpoint's table")
    try:
      tree = flax_msgpack.unpack(file.read_bytes())
    except ValueError as error:
      raise UserError(
        f"{file} cannot be read ({storage.reason(error).removeprefix('ValueError: ')}):"
        " it is damaged, or no checkpoint of T5X"
      ) from error
    optimizer = tree.get("optimizer") if isinstance(tree, dict) else None
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("target"), dict):
      raise UserError(f"{file} holds no parameters under 'optimizer' and 'target'")
    return optimizer

  def _leaves(self, tree: Mapping[Any, Any], prefix: str = "") -> Iterator[Any]:
    """Yields the name and the value of each leaf; an empty dictionary is one."""
    for key, value in tree.items():
      name = f"{prefix}{key}"
      if isinstance(value, dict) and value and not _is_spec(value):
        yield from self._leaves(value, f"{name}.")
      elif isinstance(value, (np.ndarray, np.generic, int, float)):
        yield name, np.asarray(value)
      elif isinstance(value, dict):
        yield name, value
      elif value is not None:
        raise UserError(
          f"{self.path / FILE}: {name} is {type(value).__name__}, neither an array nor"
          " where one lies: it is damaged"
        )

  def _spec(self, name: str, leaf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to open: TensorStore sees nothing of what the checkpoint says."""
    where = leaf["kvstore"]
    driver = where.get("driver") if isinstance(where, dict) else where
    if leaf["driver"] != "zarr" or driver not in _KVSTORES:
      raise UserError(
        f"{self.path}: array {name} asks for the driver"
        f" {leaf['driver'] if leaf['driver'] != 'zarr' else driver!r}: only zarr in"
        " files of the checkpoint's own folder is read"
      )
    unknown = sorted(map(str, leaf.keys() - _SPEC_KEYS))
    if unknown or not _is_whole(leaf.get("transform"), self._shape(name, leaf)):
      raise UserError(
        f"{self.path}: array {name} has {', '.join(unknown) or 'a transform'} in its"
        " TensorStore specification: only whole arrays are read"
      )
    # Older versions of TensorStore had the path beside the key-value store.
    place = check_place(self.path, name, where.get("path", leaf.get("path")))
    return {"driver": "zarr", "kvstore": kvstore(self.path / place)}

  def _shape(self, name: str, leaf: Mapping[str, Any]) -> tuple[int, ...] | None:
    metadata = leaf.get("metadata")
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if shape is None:
      return None
    if isinstance(shape, np.ndarray):
      shape = shape.tolist()
    if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape):
      return tuple(shape)
    raise UserError(f"{self.path}: array {name} claims shape {shape!r}: it is damaged")


def _is_spec(value: Mapping[str, Any]) -> bool:
  return "driver" in value and "kvstore" in value


def _is_whole(transform: Any, shape: tuple[int, ...] | None) -> bool:
  """Whether a transform is the one that TensorStore notes for a whole array."""
  if transform is None:
    return True
  if shape is None or not isinstance(transform, dict):
    return False
  starts = transform.get("input_inclusive_min", [0] * len(shape))
  stops = [
    stop[0] if isinstance(stop, list) and len(stop) == 1 else stop
    for stop in transform.get("input_exclusive_max", shape)
  ]
  known = {"input_inclusive_min", "input_exclusive_max", "input_rank"}
  return (
    transform.keys() <= known
    and list(starts) == [0] * len(shape)
    and stops == list(shape)
  )
