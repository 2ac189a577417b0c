"""What attention kernels share: heads in the lanes of registers, and products.

The unit of a register is `LANES` lanes. Heads narrower than that share them: the
products of one take the others' lanes as 0, which costs a matrix unit nothing.

Shapes as in `attention_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from commentree.models.layers import MASKED_SCORE, Array

LANES = 128
# Heads of so many registers are computed side by side: of 1, 2, 3 and 6, what gives the
# shortest schedules for base on v5e.
SIDE_BY_SIDE = 3
# libtpu grants a kernel 16 MiB of VMEM; the rest is for what the compiler spills.
VMEM_BYTES = 12 * 2**20

# Sums over the second, the first, or the inner axes.
ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))
ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))


class Heads(NamedTuple):
  """How heads lie in the last axis, and what becomes of their scores.

  Attributes:
    width: K.
    scale: what products of queries and keys are multiplied by.
    groups: parts that heads are computed in, one after another.
    interpret: whether kernels run as plain JAX, on any device.
  """

  width: int
  scale: float
  groups: int
  interpret: bool


def fewest_groups(
  num_heads: int, width: int, bytes_of: Callable[[int], int]
) -> int | None:
  """Returns in how few parts of heads a kernel fits VMEM, None if it never does.

  Args:
    num_heads: H.
    width: K.
    bytes_of: what the kernel takes for so many heads.
  """
  for groups in range(1, num_heads + 1):
    heads, rest = divmod(num_heads, groups)
    whole_registers = heads * width % LANES == 0
    if rest or not (whole_registers or groups == 1):
      continue
    if bytes_of(heads) <= VMEM_BYTES:
      return groups
  return None


class Head(NamedTuple):
  """Where a head lies.

  Attributes:
    number: which head of the group it is.
    start: first lane of the registers that it is in.
    stop: last lane of those, not included.
    first: its own first lane among them.
    width: K.
  """

  number: int
  start: int
  stop: int
  first: int
  width: int

  def with_others(self, ref: Any) -> Array:
    """Returns the registers of a row `[L, lanes]` that the head is in."""
    return ref[0, :, self.start : self.stop]

  def alone(self, ref: Any) -> Array:
    """Returns those with 0 in the lanes of other heads."""
    x = self.with_others(ref)
    if x.shape[-1] == self.width:
      return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = (lane >= self.first) & (lane < self.first + self.width)
    return jnp.where(own, x, jnp.zeros_like(x))


def side_by_side(joined: int, width: int) -> list[list[Head]]:
  """Returns the heads of a group, a few together.

  Kernels do each stage for a few heads before the next stage: the compiler overlaps
  what stands side by side, where one head would wait for its products.
  """
  together = LANES if LANES % width == 0 else width
  heads = [
    Head(start // width + i, start, min(start + together, joined), i * width, width)
    for start in range(0, joined, together)
    for i in range(min(together, joined - start) // width)
  ]
  few = SIDE_BY_SIDE * together // width
  return [heads[first : first + few] for first in range(0, len(heads), few)]


def merge(heads: list[Head], found: list[Array]) -> dict[tuple[int, int], Array]:
  """Returns results `[L, lanes]` of some heads by first and last lane, merged."""
  merged: dict[tuple[int, int], Array] = {}
  for head, x in zip(heads, found):
    place = (head.start, head.stop)
    if place in merged:
      lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
      x = jnp.where(lane >= head.first, x, merged[place])
    merged[place] = x
  return merged


def write(ref: Any, heads: list[Head], found: list[Array]) -> None:
  """Writes results `[L, lanes]` of some heads, of each its own lanes."""
  for (start, stop), x in merge(heads, found).items():
    ref[0, :, start:stop] = x.astype(ref.dtype)


def add(ref: Any, heads: list[Head], found: list[Array]) -> None:
  """Adds them to what other rows have added."""
  for (start, stop), x in merge(heads, found).items():
    ref[0, :, start:stop] += x


def mask(setting: Heads, scores: Array, bias: Array | None, visible: Array) -> Array:
  """Returns scores, scaled and with their bias, where they are visible."""
  if setting.scale != 1:
    scores *= setting.scale
  if bias is not None:
    scores += bias.astype(jnp.float32)
  return jnp.where(visible, scores, MASKED_SCORE)


def product(x: Array, y: Array, axes: Any) -> Array:
  """Returns a product of matrices, summed in float32, over `axes`."""
  return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)
