"""Orbax checkpoints, ours and T5X's, as arrays that are read in parts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from commentree.errors import UserError
from commentree.training.checkpointing import checksums, orbax_noise, storage
from commentree.training.warm_starts.formats.array_source import ArraySpec, Index
from commentree.training.warm_starts.formats.zarr_arrays import (
  ZarrArrays,
  check_place,
  kvstore,
)

KIND = "Orbax checkpoint"

_TABLE = "_METADATA"
_STATE = "state"
_OCDBT = "manifest.ocdbt"


def is_there(path: epath.Path) -> bool:
  """Whether a folder is such a checkpoint, or has one under `state`."""
  return any((folder / _TABLE).is_file() for folder in (path, path / _STATE))


class OrbaxArrays:
  """An Orbax checkpoint, with T5X's `state/` or plain.

  Attributes:
    path: its folder.
    kind: what it is.
    arrays: all arrays, by their keys joined by dots.
    empty: names of dictionaries that hold nothing, as parts of an optimizer's state.
  """

  def __init__(self, path: epath.Path):
    """Reads what there is, and opens the arrays.

    Raises:
      UserError: if it is damaged.
    """
    self.path, self.kind = path, KIND
    folder = path / _STATE if (path / _STATE / _TABLE).is_file() else path
    try:
      checksums.check_files(path)
      tree, zarr3 = _table(folder)
    except Exception as error:
      if isinstance(error, UserError) or not storage.damaged(error):
        raise
      raise UserError(
        f"{path} cannot be read ({storage.reason(error)}): it is damaged; get it again"
      ) from error
    leaves = _flatten(tree)
    self.empty = [
      n for n, leaf in leaves.items() if isinstance(leaf, dict) and not leaf
    ]
    shapes = {
      name: tuple(leaf.shape)
      for name, leaf in leaves.items()
      if getattr(leaf, "shape", None) is not None
    }
    driver = "zarr3" if zarr3 else "zarr"
    in_one_file = (folder / _OCDBT).exists()
    specs: dict[str, Any] = {}
    for name in shapes:
      place = check_place(path, name, leaves[name].name or name)
      store = kvstore(folder / place)
      if in_one_file:
        store = {"driver": "ocdbt", "base": kvstore(folder), "path": f"{place}/"}
      specs[name] = {"driver": driver, "kvstore": store}
    self._stored = ZarrArrays(path, specs, shapes)
    self.arrays: Mapping[str, ArraySpec] = self._stored.arrays

  def check(self) -> list[str]:
    """As `ArraySource.check`: by our list of checksums, where there is one."""
    try:
      checksums.check_share(self.path)
    except storage.DamageError as error:
      raise UserError(
        f"{self.path} cannot be read ({storage.reason_here(error)}): it is damaged; get"
        " it again"
      ) from error
    return []

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    return self._stored.read(name, index)


def _table(folder: epath.Path) -> tuple[Any, bool]:
  """Returns the tree of what a checkpoint holds, and whether it is zarr's third."""
  orbax_noise.silence()
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(folder).tree
  return tree, bool(json.loads((folder / _TABLE).read_text()).get("use_zarr3"))


def _flatten(tree: Any) -> dict[str, Any]:
  """Returns leaves by dotted name, empty dictionaries among them."""
  if not isinstance(tree, Mapping):
    return {}
  found: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      found |= {f"{key}.{name}": leaf for name, leaf in _flatten(value).items()}
    else:
      found[str(key)] = {} if isinstance(value, Mapping) else value
  return found
