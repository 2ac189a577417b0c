"""Comments to vectors: `vectors_per_comment` (J) of them for each encoder slot."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from commentree.models.config import ModelConfig
from commentree.models.layers import MASKED_SCORE, Array, parameter

# Of vectors smaller than that the size is not made larger.
_LEAST_SQUARE = 1e-12


class CommentPooling(nn.Module):
  """Pools each comment's token vectors to J vectors.

  mean, max: over J equal contiguous spans (token p of n belongs to span
    floor(p * J / n)); a comment of fewer than J tokens leaves some spans empty.
  first: the first J tokens.
  attention: J learned queries, each with a softmax over the comment's tokens.

  All but max are products with a weight per (token, vector) that is exactly 0 for
  other comments' tokens.
  """

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x_BRLD: Array, segment_ids_BRL: Array, positions_BRL: Array, num_slots: int
  ) -> tuple[Array, Array]:
    """Pools the comments.

    Args:
      x_BRLD: the encoder's token vectors.
      segment_ids_BRL: encoder slot of each token from 1, 0 for padding.
      positions_BRL: position of each token in its comment.
      num_slots: E.

    Returns:
      Vectors `[B, E, J, D]` (zero where unused) and which are in use `[B, E, J]`.
    """
    cfg = self.config
    dtype = x_BRLD.dtype
    batch, width = x_BRLD.shape[0], x_BRLD.shape[-1]
    per_comment = cfg.vectors_per_comment
    x_BND = x_BRLD.reshape(batch, -1, width)
    segment_ids_BN = segment_ids_BRL.reshape(batch, -1)

    if cfg.pooling == "attention":
      queries_JD = parameter(
        "queries",
        nn.initializers.normal(width**-0.5),
        (per_comment, width),
        ("vectors", "embed"),
      )
      weights_BNEJ, used_BE = _attention_weights(
        x_BND, segment_ids_BN, queries_JD.astype(dtype), num_slots
      )
      vectors_BEJD = jnp.einsum("bnej,bnd->bejd", weights_BNEJ.astype(dtype), x_BND)
      used_BEJ = jnp.broadcast_to(used_BE[..., None], vectors_BEJD.shape[:-1])
      return vectors_BEJD, used_BEJ

    positions_BN = positions_BRL.reshape(batch, -1)
    vector_ids_BN = self.vector_ids(segment_ids_BN, positions_BN, num_slots)
    num_vectors = num_slots * per_comment
    counts_BX = jax.nn.one_hot(vector_ids_BN, num_vectors, dtype=jnp.float32).sum(1)
    if cfg.pooling == "max":
      vector_ids_BRL = vector_ids_BN.reshape(segment_ids_BRL.shape)
      maxima_BRLD, is_last_BRL = _running_max(x_BRLD, vector_ids_BRL)
      last_ids_BRL = jnp.where(is_last_BRL, vector_ids_BRL, -1)
      picked_BNX = jax.nn.one_hot(
        last_ids_BRL.reshape(batch, -1), num_vectors, dtype=dtype
      )
      vectors_BXD = jnp.einsum(
        "bnx,bnd->bxd", picked_BNX, maxima_BRLD.reshape(x_BND.shape)
      )
    else:
      picked_BNX = jax.nn.one_hot(vector_ids_BN, num_vectors, dtype=dtype)
      sums_BXD = jnp.einsum(
        "bnx,bnd->bxd", picked_BNX, x_BND, preferred_element_type=jnp.float32
      )
      vectors_BXD = (sums_BXD / jnp.maximum(counts_BX, 1)[..., None]).astype(dtype)
    shape = (batch, num_slots, per_comment)
    return vectors_BXD.reshape(*shape, width), counts_BX.reshape(shape) > 0

  def vector_ids(
    self, segment_ids_BN: Array, positions_BN: Array, num_slots: int
  ) -> Array:
    """Returns which of the E * J vectors each token goes into, -1 for none."""
    per_comment = self.config.vectors_per_comment
    ordinal_BN: Array | int = 0
    in_use_BN: Array | bool = True
    if self.config.pooling == "first":
      ordinal_BN, in_use_BN = positions_BN, positions_BN < per_comment
    elif per_comment > 1:
      slot_BNE = jax.nn.one_hot(segment_ids_BN - 1, num_slots, dtype=jnp.float32)
      length_BN = jnp.einsum("bne,be->bn", slot_BNE, slot_BNE.sum(1)).astype(jnp.int32)
      ordinal_BN = positions_BN * per_comment // jnp.maximum(length_BN, 1)
    ids_BN = (segment_ids_BN - 1) * per_comment + ordinal_BN
    return jnp.where((segment_ids_BN > 0) & in_use_BN, ids_BN, -1)


def resize(vectors_BEJD: Array, states_BND: Array, slots_BN: Array) -> Array:
  """Gives each vector the root mean square of its comment's token vectors.

  A mean is shorter than what it is of, and the shorter the more its comment says; a
  maximum is longer. What attends to vectors, above all if it comes from a file, was
  made for states. So there is no size of ours to learn or to load: a comment of one
  token keeps its vector, and the encoder's last norm learns the size of all.

  Args:
    vectors_BEJD: what comments are pooled to; what is 0 stays so.
    states_BND: the encoder's token vectors.
    slots_BN: slot of each from 1, 0 for padding.
  """
  slot_BNE = jax.nn.one_hot(slots_BN - 1, vectors_BEJD.shape[1], dtype=jnp.float32)
  sums_BE = jnp.einsum(
    "bn,bne->be",
    _mean_squares(states_BND),
    slot_BNE,
    precision=jax.lax.Precision.HIGHEST,
  )
  wanted_BE = sums_BE / jnp.maximum(slot_BNE.sum(1), 1)
  own_BEJ = jnp.maximum(_mean_squares(vectors_BEJD), _LEAST_SQUARE)
  ratio_BEJ = jnp.maximum(wanted_BE, _LEAST_SQUARE)[..., None] / own_BEJ
  return vectors_BEJD * jnp.sqrt(ratio_BEJ)[..., None].astype(vectors_BEJD.dtype)


def _mean_squares(x: Array) -> Array:
  return jnp.square(x.astype(jnp.float32)).mean(-1)


def vector_sums(vectors_BEJD: Array, used_BEJ: Array) -> dict[str, Array]:
  """Adds up what tells how much alike the pooled vectors of a batch are, float32.

  Returns:
    `count` of the vectors in use, the sum of their squared lengths `squares`, their sum
    `vectors` `[D]` and that of vectors of length 1 in their directions `units` `[D]`.
  """
  x_BEJD = jnp.where(used_BEJ[..., None], vectors_BEJD.astype(jnp.float32), 0)
  squares_BEJ = jnp.square(x_BEJD).sum(-1)
  scale_BEJ = jax.lax.rsqrt(jnp.where(squares_BEJ > 0, squares_BEJ, 1))
  precise = jax.lax.Precision.HIGHEST
  return {
    "count": used_BEJ.astype(jnp.float32).sum(),
    "squares": squares_BEJ.sum(),
    "vectors": x_BEJD.sum((0, 1, 2)),
    "units": jnp.einsum("bejd,bej->d", x_BEJD, scale_BEJ, precision=precise),
  }


def _attention_weights(
  x_BND: Array, segment_ids_BN: Array, queries_JD: Array, num_slots: int
) -> tuple[Array, Array]:
  """Returns softmax weights `[B, N, E, J]` and which slots hold tokens `[B, E]`."""
  scores_BNJ = jnp.einsum(
    "bnd,jd->bnj", x_BND, queries_JD, preferred_element_type=jnp.float32
  )
  inside_BNE = jax.nn.one_hot(segment_ids_BN - 1, num_slots, dtype=jnp.bool_)
  scores_BNEJ = jnp.where(inside_BNE[..., None], scores_BNJ[:, :, None], MASKED_SCORE)
  # The product clears unused slots, whose softmax is spread over all tokens.
  weights_BNEJ = jax.nn.softmax(scores_BNEJ, axis=1) * inside_BNE[..., None]
  return weights_BNEJ, inside_BNE.any(1)


def _running_max(x_BRLD: Array, ids_BRL: Array) -> tuple[Array, Array]:
  """Returns running maxima along each run of equal ids, and where a run ends.

  By doubling strides: log2(L) elementwise steps instead of a scatter or a product
  of size N * E * D.
  """
  length = ids_BRL.shape[-1]
  stride = 1
  while stride < length:
    same_BRl = ids_BRL[..., stride:] == ids_BRL[..., :-stride]
    later = x_BRLD[..., stride:, :]
    earlier = x_BRLD[..., :-stride, :]
    later = jnp.where(same_BRl[..., None], jnp.maximum(later, earlier), later)
    x_BRLD = jnp.concatenate([x_BRLD[..., :stride, :], later], axis=-2)
    stride *= 2
  next_BRL = jnp.pad(ids_BRL[..., 1:], ((0, 0), (0, 0), (0, 1)), constant_values=-2)
  return x_BRLD, ids_BRL != next_BRL
