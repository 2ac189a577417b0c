"""Tokens of packed rows, sorted by the target that they are of."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from commentree.models.layers import Array


@jax.custom_vjp
def _pick(x_BNF: Array, index_BM: Array, inverse_BN: Array) -> Array:
  """Returns `x_BNF` at an index, 0 where it is -1.

  Everything goes to one place at most, so that the gradient is the way back: a gather,
  where JAX's own would be a scatter.
  """
  del inverse_BN
  found_BMF = jnp.take_along_axis(x_BNF, jnp.maximum(index_BM, 0)[..., None], axis=1)
  return jnp.where(index_BM[..., None] >= 0, found_BMF, 0)


def _pick_forward(x_BNF: Array, index_BM: Array, inverse_BN: Array):
  return _pick(x_BNF, index_BM, inverse_BN), (index_BM, inverse_BN)


def _pick_backward(saved: tuple[Array, Array], of_y_BMF: Array):
  index_BM, inverse_BN = saved
  return _pick(of_y_BMF, inverse_BN, index_BM), None, None


_pick.defvjp(_pick_forward, _pick_backward)


@flax.struct.dataclass
class QueryGroups:
  """Tokens of packed rows by the target that they are of, as rows of their own.

  Attributes:
    token_BTL: token in each column of a target's row, -1 for none.
    place_BN: place of each token among those columns, -1 for padding.
  """

  token_BTL: Array
  place_BN: Array

  def by_target(self, x: Array) -> Array:
    """Returns values `[B * T, L, ...]` of the tokens of rows; 0 elsewhere."""
    batch_size, targets, length = self.token_BTL.shape
    x_BNF = x.reshape(*self.place_BN.shape, -1)
    x_BMF = _pick(x_BNF, self.token_BTL.reshape(batch_size, -1), self.place_BN)
    return x_BMF.reshape(batch_size * targets, length, *x.shape[2:])

  def by_row(self, x: Array, rows: tuple[int, ...]) -> Array:
    """Returns what `by_target` was given, of so many `rows`; 0 for padding."""
    token_BM = self.token_BTL.reshape(len(self.token_BTL), -1)
    x_BNF = _pick(x.reshape(*token_BM.shape, -1), self.place_BN, token_BM)
    return x_BNF.reshape(*rows, *x.shape[2:])
