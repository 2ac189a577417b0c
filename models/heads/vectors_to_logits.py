"""A direct way from ancestors' pooled vectors to the logits of masked tokens.

A vector says what a comment is about, and so which tokens are likelier below it. By
cross-attention that takes several maps to learn, each of which is of no use before the
others; here it takes one, of the mean of the ancestors' vectors by hops, to what the
logits are products with. It is 0 at first.

Shapes as in `models`, and U target ids, 0 for padding; Q masked positions.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from commentree.models.config import ModelConfig
from commentree.models.context.encoded import Encoded
from commentree.models.heads.matching import mean_vectors, unit
from commentree.models.layers import MASKED_SCORE, Array, Dense, parameter

# Nearer ancestors count for more at first.
_FIRST_DISTANCE_BIAS = -0.3


class VectorsToLogits(nn.Module):
  """The mean vector of ancestors, mapped to a change of the states behind logits."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, encoded: Encoded, visible_BUE: Array, distances_BUE: Array, targets_BQ: Array
  ) -> Array:
    """Returns what to add to the states at masked positions, `[B, Q, D]`.

    Args:
      encoded: the comments.
      visible_BUE: slots of each target's ancestors.
      distances_BUE: hops to them.
      targets_BQ: target id of each position, 0 for padding.
    """
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    farthest = cfg.max_ancestor_distance
    bias_P = parameter(
      "distance_bias",
      lambda _, shape, dtype: _FIRST_DISTANCE_BIAS * jnp.arange(shape[0], dtype=dtype),
      (farthest + 1,),
      ("ancestor_distance",),
    )
    hops_BUEP = jax.nn.one_hot(jnp.clip(distances_BUE, 0, farthest), farthest + 1)
    scores_BUE = jnp.where(visible_BUE, hops_BUEP @ bias_P, MASKED_SCORE)
    weights_BUE = jax.nn.softmax(scores_BUE, axis=-1) * visible_BUE
    # Of one size, regardless of the encoder's: it is not to be learnt here.
    means_BED = unit(mean_vectors(encoded.vectors_BEJD, encoded.used_BEJ))
    means_BED *= cfg.emb_dim**0.5
    threads_BUD = jnp.einsum(
      "bue,bed->bud", weights_BUE.astype(dtype), means_BED.astype(dtype)
    )
    changes_BUD = Dense(
      cfg.emb_dim,
      ("embed", "joined_kv"),
      dtype,
      kernel_init=nn.initializers.zeros,
      name="map",
    )(threads_BUD)
    # A product, not a gather: it has a gradient.
    of_BQU = jax.nn.one_hot(targets_BQ, changes_BUD.shape[1], dtype=dtype)
    return jnp.einsum("bqu,bud->bqd", of_BQU, changes_BUD)
