"""What may lie between an array in a file and a parameter: a few operations by name.

Each knows the shape that it makes, and which part of the array a part of the result
comes from, so that a host reads what it holds and no more. As text, operations are
joined by commas and applied from left to right:

    transpose     the two axes of a matrix change places
    reshape       to the parameter's shape; the order of the numbers stays
    rows:2:       rows from the third on (`rows:2:514` up to the 514th)
    part:0/3      the first third along axis 0; `part:1:0/3` along axis 1
    scale:0.125   every number times a factor
    from_causal_buckets  columns that are T5's relative positions in a causal decoder,
                  made those of a decoder that sees both ways
    to_causal_buckets  the other way round
    grow:0        last: the parameter may be longer along axis 0, by rows (columns for
                  `grow:1`) that the file does not have; they become the mean of those
                  that it has
    cut:0         last: the parameter may be shorter along axis 0; it takes the first
                  rows, and leaves out at most 1,023 of them if it is `cut:0:1023`
    zeros         last: where there is no such array, the parameter is 0, not drawn
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from commentree.models.layers import (
  MAX_DISTANCE,
  NUM_BUCKETS,
  relative_position_buckets,
)
from commentree.training.warm_starts.formats.array_source import Index, extent, whole

_FLAGS = ("grow", "cut", "zeros")

Shape = tuple[int, ...]
Finish = Callable[[np.ndarray], np.ndarray]


class Transform(Protocol):
  """An operation on arrays, known by what it does to shapes and to parts."""

  def shape(self, source: Shape) -> Shape:
    """Returns the shape of the result.

    Raises:
      ValueError: saying why an array of that shape cannot be taken.
    """

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """Returns which part of the array a part of the result comes from.

    Args:
      index: part of the result.
      source: the array's shape.

    Returns:
      The array's part, and what makes the result's part of it.
    """


@dataclasses.dataclass(frozen=True)
class Transpose:
  """Exchanges the two axes of a matrix."""

  def shape(self, source: Shape) -> Shape:
    """As `Transform.shape`."""
    if len(source) != 2:
      raise ValueError("is no matrix to transpose")
    return source[::-1]

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """As `Transform.back`."""
    return index[::-1], np.transpose


@dataclasses.dataclass(frozen=True)
class TakeRows:
  """Some of the rows, `start` to `stop`; to the last if None."""

  start: int
  stop: int | None = None

  def shape(self, source: Shape) -> Shape:
    """As `Transform.shape`."""
    stop = (source or (0,))[0] if self.stop is None else self.stop
    if not source or not self.start <= stop <= source[0]:
      raise ValueError(f"has no rows {self.start} to {stop}")
    return (stop - self.start, *source[1:])

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """As `Transform.back`."""
    return _shifted(index, 0, self.start), _as_it_is


@dataclasses.dataclass(frozen=True)
class Part:
  """One of equal parts along an axis."""

  axis: int
  part: int
  parts: int

  def shape(self, source: Shape) -> Shape:
    """As `Transform.shape`."""
    if len(source) <= self.axis or source[self.axis] % self.parts:
      raise ValueError(f"cannot be cut into {self.parts} along axis {self.axis}")
    size = source[self.axis] // self.parts
    return (*source[: self.axis], size, *source[self.axis + 1 :])

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """As `Transform.back`."""
    start = self.part * (source[self.axis] // self.parts)
    return _shifted(index, self.axis, start), _as_it_is


@dataclasses.dataclass(frozen=True)
class Scale:
  """Multiplies by a factor, in float32 or wider."""

  factor: float

  def shape(self, source: Shape) -> Shape:
    """As `Transform.shape`."""
    return source

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """As `Transform.back`."""

    def scaled(array: np.ndarray) -> np.ndarray:
      wide = array if array.dtype == np.float64 else array.astype(np.float32)
      return wide * wide.dtype.type(self.factor)

    return index, scaled


@dataclasses.dataclass(frozen=True)
class Reshape:
  """Another shape for the same numbers in the same order."""

  to: Shape

  def shape(self, source: Shape) -> Shape:
    """As `Transform.shape`."""
    if math.prod(source) != math.prod(self.to):
      raise ValueError(f"cannot be reshaped to {self.to}")
    return self.to

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """As `Transform.back`."""
    if not math.prod(source):
      return whole(source), lambda array: array.reshape(extent(index))
    # Numbers are in order, so those wanted lie between the first and the last of them;
    # of the array, the fewest rows that hold these.
    strides = np.cumprod((1, *self.to[:0:-1]))[::-1]
    first = sum(int(n) * s.start for n, s in zip(strides, index))
    last = sum(int(n) * (s.stop - 1) for n, s in zip(strides, index))
    row = math.prod(source[1:])
    start, stop = first // row, last // row + 1
    part = (slice(start, stop), *whole(source[1:])) if source else ()

    def picked(array: np.ndarray) -> np.ndarray:
      axes = np.ogrid[index] if index else []
      flat = sum((int(n) * axis for n, axis in zip(strides, axes)), np.int64(0))
      return array.reshape(-1)[flat - start * row]

    return part, picked


@dataclasses.dataclass(frozen=True)
class Buckets:
  """T5's biases by relative position, from a causal decoder's to both ways or back.

  A causal decoder has all columns for what stands before the query, one for each of 16
  distances and then by their logarithm; one that sees both ways has half of the columns
  for either side. A new column is the mean over the distances that it is for, on its
  side or, where the other has none on that side, before the query.

  Attributes:
    causal: whether the new columns are those of a causal decoder.
  """

  causal: bool

  def shape(self, source: Shape) -> Shape:
    """As `Transform.shape`."""
    if len(source) != 2 or source[1] != NUM_BUCKETS:
      raise ValueError(f"is no table of {NUM_BUCKETS} relative positions a head")
    return source

  def back(self, index: Index, source: Shape) -> tuple[Index, Finish]:
    """As `Transform.back`."""
    columns = _shares_of_buckets(causal=self.causal)[:, index[1]]

    def shared(array: np.ndarray) -> np.ndarray:
      return array.astype(np.float32) @ columns

    return (index[0], slice(0, source[1])), shared


@functools.cache
def _shares_of_buckets(*, causal: bool) -> np.ndarray:
  """Returns which share of a new column's distances lies in each old one."""
  distances = np.arange(MAX_DISTANCE + 1)

  def buckets(sign: int, *, bidirectional: bool) -> np.ndarray:
    offsets = sign * distances
    return relative_position_buckets(
      offsets, NUM_BUCKETS, MAX_DISTANCE, bidirectional=bidirectional
    )

  shares = np.zeros((NUM_BUCKETS, NUM_BUCKETS), np.float32)
  for sign in (-1,) if causal else (-1, 1):
    np.add.at(
      shares,
      (buckets(-1, bidirectional=causal), buckets(sign, bidirectional=not causal)),
      1,
    )
  if not causal:
    # No distance is after the query and 0.
    shares[:, NUM_BUCKETS // 2] = shares[:, 0]
  return shares / shares.sum(axis=0)


def _shifted(index: Index, axis: int, by: int) -> Index:
  moved = slice(index[axis].start + by, index[axis].stop + by)
  return (*index[:axis], moved, *index[axis + 1 :])


def _as_it_is(array: np.ndarray) -> np.ndarray:
  return array


@dataclasses.dataclass(frozen=True)
class TransformChain:
  """Operations one after another, and whether the parameter may differ in length.

  Attributes:
    transforms: the operations.
    grow: axis along which the parameter may be longer, or None.
    cut: axis along which it may be shorter, or None.
    most_cut: most entries of that axis that it may leave out; None for no limit.
    zeros: whether the parameter is 0 if there is no array.
  """

  transforms: tuple[Transform, ...] = ()
  grow: int | None = None
  cut: int | None = None
  most_cut: int | None = None
  zeros: bool = False

  def shape(self, source: Shape) -> Shape:
    """Returns the shape of the result, as `Transform.shape`."""
    for transform in self.transforms:
      source = transform.shape(source)
    return source

  def read(
    self, read: Callable[[Index], np.ndarray], index: Index, source: Shape
  ) -> np.ndarray:
    """Returns a part of the result.

    Args:
      read: reads a part of the array.
      index: part of the result.
      source: the array's shape.
    """
    shapes = [source]
    for transform in self.transforms[:-1]:
      shapes.append(transform.shape(shapes[-1]))
    finishes = []
    for transform, shape in zip(self.transforms[::-1], shapes[::-1]):
      index, finish = transform.back(index, shape)
      finishes.append(finish)
    array = read(index)
    for finish in finishes[::-1]:
      array = finish(array)
    return array


def parse(text: str, wanted: Shape) -> TransformChain:
  """Returns the operations that a text names.

  Args:
    text: as at the head of this file; empty for none.
    wanted: the parameter's shape.

  Raises:
    ValueError: naming what is none of them.
  """
  words = [word.strip() for word in text.split(",") if word.strip()]
  chain = TransformChain()
  for number, word in enumerate(words):
    name, _, argument = word.partition(":")
    is_transform = name not in _FLAGS
    if is_transform and chain != TransformChain(chain.transforms):
      raise ValueError(f"{words[number - 1]!r} must come last")
    try:
      if is_transform:
        transform = _transform(name, argument, wanted)
        chain = dataclasses.replace(chain, transforms=(*chain.transforms, transform))
      else:
        chain = _with_flag(chain, name, argument)
    except (ValueError, TypeError):
      raise ValueError(
        f"{word!r} is none of transpose, reshape, rows:START:STOP, part:AXIS:I/N,"
        " scale:FACTOR, from_causal_buckets, to_causal_buckets, grow:AXIS, cut:AXIS,"
        " cut:AXIS:MOST, zeros"
      ) from None
  if any(isinstance(transform, Reshape) for transform in chain.transforms[:-1]):
    raise ValueError("'reshape' must come last")
  return chain


def _with_flag(chain: TransformChain, name: str, argument: str) -> TransformChain:
  """Returns the operations, and how the parameter may differ in length."""
  if name == "zeros" and not argument:
    return dataclasses.replace(chain, zeros=True)
  if name == "grow":
    return dataclasses.replace(chain, grow=int(argument))
  axis, colon, most = argument.partition(":")
  return dataclasses.replace(
    chain, cut=int(axis), most_cut=int(most) if colon else None
  )


def _transform(name: str, argument: str, wanted: Shape) -> Transform:
  if name == "transpose" and not argument:
    return Transpose()
  if name in ("to_causal_buckets", "from_causal_buckets") and not argument:
    return Buckets(causal=name.startswith("to_"))
  if name == "reshape" and not argument:
    return Reshape(wanted)
  if name == "scale":
    return Scale(float(argument))
  if name == "rows":
    start, colon, stop = argument.partition(":")
    if colon and int(start or 0) >= 0:
      return TakeRows(int(start or 0), int(stop) if stop else None)
  if name == "part":
    *axis, share = argument.split(":")
    part, parts = map(int, share.split("/"))
    if len(axis) <= 1 and 0 <= part < parts:
      return Part(int(axis[0]) if axis else 0, part, parts)
  raise ValueError(name)
