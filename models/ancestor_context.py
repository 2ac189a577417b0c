"""What targets see of their ancestors, as arrays."""

from __future__ import annotations

import flax.struct

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
