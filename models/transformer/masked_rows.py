"""Masked tokens of packed rows, as rows of their own."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from commentree.models.ancestor_context import AncestorContext
from commentree.models.layers import Array, at_positions


@flax.struct.dataclass
class MaskedRows:
  """Masked tokens side by side, in W rows as long as the R rows that they are from.

  Attributes:
    positions_BGM: positions of the tokens in the rows of their group; M is a multiple
      of `length`, and what fills it up is position 0.
    context: what the tokens see of their ancestors.
    num_rows: R.
    length: L.
  """

  positions_BGM: Array
  context: AncestorContext
  num_rows: int = flax.struct.field(pytree_node=False)
  length: int = flax.struct.field(pytree_node=False)

  @classmethod
  def of(
    cls, positions_BGM: Array, context: AncestorContext, num_rows: int, length: int
  ) -> MaskedRows | None:
    """Returns the rows of masked tokens, None if they are more than half as many.

    Args:
      positions_BGM: positions of masked tokens in the rows of their group.
      context: what all tokens see, see `AncestorContext.at`.
      num_rows: R.
      length: L.
    """
    if count_rows(positions_BGM.shape, num_rows, length) is None:
      return None
    padding = ((0, 0), (0, 0), (0, -positions_BGM.shape[-1] % length))
    positions_BGM = jnp.pad(positions_BGM, padding)
    return cls(positions_BGM, context.at(positions_BGM, length), num_rows, length)

  def pick(self, x_RLD: Array) -> Array:
    """Returns the vectors of masked tokens `[W, L, D]`."""
    width = x_RLD.shape[-1]
    x_BGND = x_RLD.reshape(*self.positions_BGM.shape[:2], -1, width)
    # So that `roofline` tells it from the layer that it is in.
    with jax.named_scope("masked_tokens"):
      x_BGMD = at_positions(x_BGND, self.positions_BGM)
    return x_BGMD.reshape(-1, self.length, width)

  def in_groups(self, x_WLD: Array, count: int) -> Array:
    """Returns the vectors of the first `count` tokens of each group, `[B, G, M, D]`."""
    x_BGMD = x_WLD.reshape(*self.positions_BGM.shape, -1)
    return x_BGMD[:, :, :count]

  def drop(self, drop: nn.Dropout, x_WLF: Array) -> Array:
    """Applies dropout with the draws that tokens have in the rows they are from."""
    x_BGMF = x_WLF.reshape(*self.positions_BGM.shape, -1)
    dropped_BGMF = drop_by_row(
      drop, x_BGMF, self.positions_BGM, self.num_rows, self.length
    )
    return dropped_BGMF.reshape(x_WLF.shape)


def count_rows(masked_shape: tuple[int, ...], num_rows: int, length: int) -> int | None:
  """Returns W; None if masked tokens would be more than half as many as all.

  Of more, what is saved would hardly outweigh choosing them.

  Args:
    masked_shape: the shape of `MaskedRows.of`'s positions.
    num_rows: R.
    length: L.
  """
  examples, groups, count = masked_shape
  rows = examples * groups * -(-count // length)
  return rows if 2 * rows <= num_rows else None


def drop_by_row(
  drop: nn.Dropout, x_BGMF: Array, positions_BGM: Array, num_rows: int, length: int
) -> Array:
  """Applies dropout to masked tokens, one draw for those of a row as in T5.

  Args:
    drop: dropout that is shared along a row.
    x_BGMF: vectors of masked tokens.
    positions_BGM: their positions in the rows of their group.
    num_rows: R.
    length: L.
  """
  if drop.deterministic or not drop.rate:
    return x_BGMF
  width = x_BGMF.shape[-1]
  factors_R1F = drop(jnp.ones((num_rows, 1, width), x_BGMF.dtype))
  factors_BGJF = factors_R1F.reshape(*positions_BGM.shape[:2], -1, width)
  return x_BGMF * at_positions(factors_BGJF, positions_BGM // length)
