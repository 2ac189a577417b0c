"""What targets see of their ancestors, as arrays."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from commentree.models.layers import Array
from commentree.models.transformer.query_groups import QueryGroups


@flax.struct.dataclass
class Watched:
  """What has to be known of the vectors that are attended to.

  Attributes:
    is_token_BN: which tokens are no padding.
    is_parent_BNS: which vectors are of the parent of a token's comment.
  """

  is_token_BN: Array
  is_parent_BNS: Array


@flax.struct.dataclass
class AncestorTokens:
  """What a pointer points to.

  Attributes:
    keys_BNK: key of each encoder token.
    salience_BN: added to the scores of each, float32.
    ids_BN: their token ids.
    bias_BUN: by target id and token, added to the scores, float32.
    visible_BUN: which tokens are of a target's ancestors.
    targets_BQ: target id of each query.
  """

  keys_BNK: Array
  salience_BN: Array
  ids_BN: Array
  bias_BUN: Array
  visible_BUN: Array
  targets_BQ: Array


@flax.struct.dataclass
class ByTarget:
  """What tokens see of an example's vectors, by their targets, as kernels read it.

  Attributes:
    visible_BUS: which vectors the tokens of a target may attend to; at least one.
    bias_BHUS: added to the scores, or None.
    targets_RL: target id of each of the decoder's tokens.
  """

  visible_BUS: Array
  bias_BHUS: Array | None
  targets_RL: Array

  def bias_of_tokens(self) -> Array | None:
    """Returns the bias of each token `[B, H, N, S]`, or None."""
    if self.bias_BHUS is None:
      return None
    examples, _, targets, _ = self.bias_BHUS.shape
    targets_BN = self.targets_RL.reshape(examples, -1)
    # By a product, not a gather: the bias has a gradient.
    is_of_BNU = jax.nn.one_hot(targets_BN, targets, dtype=self.bias_BHUS.dtype)
    return jnp.einsum("bnu,bhus->bhns", is_of_BNU, self.bias_BHUS)


@flax.struct.dataclass
class AncestorContext:
  """What the decoder's cross-attention attends to.

  Where each target has keys of its own (`threads`), B stands for B * T, and N for the
  columns of a target.

  Attributes:
    vectors_BSD: the null vector, then J vectors for each encoder slot.
    visible_BNS: which of them each token may attend to; at least one.
    bias_BHNS: added to the scores, or None.
    distance_vectors_PD: vector added to a key by its distance, or None.
    distances_BNS: row of `distance_vectors_PD`, -1 adds nothing; None without them.
    watched: what diagnostics need; None where there are none.
    by_target: `visible_BNS` and `bias_BHNS` by target; None where each target has keys
      of its own, or distance vectors.
    groups: tokens by their targets, where each target has keys of its own; else None.
    tokens: what a pointer points to; None without one.
    logit_changes_BQD: what is added to the states that logits come from, at masked
      positions, or None.
  """

  vectors_BSD: Array
  visible_BNS: Array
  bias_BHNS: Array | None = None
  distance_vectors_PD: Array | None = None
  distances_BNS: Array | None = None
  watched: Watched | None = None
  by_target: ByTarget | None = None
  groups: QueryGroups | None = None
  tokens: AncestorTokens | None = None
  logit_changes_BQD: Array | None = None

  def queries(self, x: Array) -> Array:
    """Returns values of the decoder's tokens `[R, L, ...]` as `[B, N, ...]`."""
    if self.groups is not None:
      return self.groups.by_target(x)
    return x.reshape(len(self.vectors_BSD), -1, *x.shape[2:])

  def rows(self, x: Array, rows: tuple[int, ...]) -> Array:
    """Returns values `[B, N, ...]` as the decoder has them, of so many `rows`."""
    if self.groups is not None:
      return self.groups.by_row(x, rows)
    return x.reshape(*rows, *x.shape[2:])

  def at(self, positions_BGM: Array, length: int) -> AncestorContext:
    """Returns what tokens at some positions see, as rows of `length` of their own.

    Of a context without groups, and without what diagnostics need.

    Args:
      positions_BGM: positions of tokens in the rows of their group.
      length: what divides M.
    """
    batch_size, groups, _ = positions_BGM.shape

    def pick(x_BNS: Array) -> Array:
      x_BGNS = x_BNS.reshape(batch_size, groups, -1, x_BNS.shape[-1])
      x_BGMS = jnp.take_along_axis(x_BGNS, positions_BGM[..., None], axis=2)
      return x_BGMS.reshape(batch_size, -1, x_BNS.shape[-1])

    by_target, bias_BHNS = self.by_target, None
    if by_target is not None:
      targets_BN1 = by_target.targets_RL.reshape(batch_size, -1, 1)
      by_target = dataclasses.replace(
        by_target, targets_RL=pick(targets_BN1).reshape(-1, length)
      )
      bias_BHNS = by_target.bias_of_tokens()
    distances_BNS = self.distances_BNS
    return dataclasses.replace(
      self,
      visible_BNS=pick(self.visible_BNS),
      bias_BHNS=bias_BHNS,
      distances_BNS=None if distances_BNS is None else pick(distances_BNS),
      by_target=by_target,
    )
