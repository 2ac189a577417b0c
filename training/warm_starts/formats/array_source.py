"""Arrays in files: what there is, and parts of it read on demand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from etils import epath

Index = tuple[slice, ...]
"""One slice for each dimension, start and stop given, of step 1."""


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """What an array is, without its values.

  Attributes:
    shape: its dimensions.
    dtype: of NumPy or `ml_dtypes`.
  """

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def num_bytes(self) -> int:
    """Bytes of the whole array."""
    return math.prod(self.shape) * self.dtype.itemsize


class ArraySource(Protocol):
  """Named arrays in files.

  Attributes:
    path: folder or file that was opened, to be named.
    kind: what it is, in words: "T5X native checkpoint".
    arrays: all arrays, by the names that the files have for them. Those of T5X's
      layout are `target.<parameter>` and `state.<…>`.
  """

  path: epath.Path
  kind: str
  arrays: Mapping[str, ArraySpec]

  def read(self, name: str, index: Index) -> np.ndarray:
    """Reads a part of an array, and not much more than that from the disk.

    May be called from several threads at once.

    Args:
      name: of `arrays`.
      index: which part.

    Raises:
      UserError: if the files do not hold what they claim.
    """

  def check(self) -> list[str]:
    """Looks over this host's share of the files; returns what is odd about them.

    Raises:
      UserError: if they are not what was written.
    """


def whole(shape: Sequence[int]) -> Index:
  """Returns the index of all of an array."""
  return tuple(slice(0, size) for size in shape)


def concrete(index: Sequence[slice], shape: Sequence[int]) -> Index:
  """Returns slices with start and stop, as JAX gives them with None for the ends."""
  return tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape))


def extent(index: Index) -> tuple[int, ...]:
  """Returns the shape of a part."""
  return tuple(s.stop - s.start for s in index)


class Renamed:
  """Some arrays of a source, by other names."""

  def __init__(self, source: ArraySource, names: Mapping[str, str]):
    """Gives them names.

    Args:
      source: the arrays as they are.
      names: from their names here to those in the source; others are not there.
    """
    self.path, self.kind = source.path, source.kind
    self._source, self._names = source, names
    self.arrays: Mapping[str, ArraySpec] = {
      name: source.arrays[old] for name, old in names.items()
    }

  def check(self) -> list[str]:
    """As `ArraySource.check`."""
    return self._source.check()

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    return self._source.read(self._names[name], index)


class Unstacked:
  """A source whose layers, stacked in one array, appear one by one."""

  def __init__(
    self, source: ArraySource, layer_of: Callable[[str], tuple[str, int] | None]
  ):
    """Gives each layer a name.

    Args:
      source: the arrays as they are.
      layer_of: from the name of an array, the template of its layers' names, with
        `{}` for the number, and the axis that runs over them; None for an array that
        stays as it is.
    """
    self.path, self.kind = source.path, source.kind
    self._source = source
    self._layers: dict[str, tuple[str, int, int]] = {}
    arrays: dict[str, ArraySpec] = {}
    for name, spec in source.arrays.items():
      stacked = layer_of(name)
      if stacked is None or len(spec.shape) <= stacked[1]:
        arrays[name] = spec
        continue
      template, axis = stacked
      rest = (*spec.shape[:axis], *spec.shape[axis + 1 :])
      for layer in range(spec.shape[axis]):
        arrays[template.format(layer)] = ArraySpec(rest, spec.dtype)
        self._layers[template.format(layer)] = (name, axis, layer)
    self.arrays: Mapping[str, ArraySpec] = arrays

  def check(self) -> list[str]:
    """As `ArraySource.check`."""
    return self._source.check()

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`."""
    if name not in self._layers:
      return self._source.read(name, index)
    stack, axis, layer = self._layers[name]
    part = (*index[:axis], slice(layer, layer + 1), *index[axis:])
    return np.squeeze(self._source.read(stack, part), axis)
