"""Reply matching: which comment answers a thread?

A comment's vector is compared with a vector made of those of its thread: of the comment
that it answers, and of all above that. An auxiliary loss tells it from comments of
other trees (negatives in the batch, as ConveRT, Henderson et al. 2020), which keeps the
vectors of comments apart, and gives retrieval.

Comments that someone answered have vectors; each of these is a pair with its thread.
Pairs are read off the targets: who sees a comment as its parent sees that comment's
ancestors too.

Shapes as in `models`, and X pairs, those of all examples: B * T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from commentree.models.config import ModelConfig
from commentree.models.layers import MASKED_SCORE, Array, Dense, parameter

# Comments of other trees that a comment is ranked among, where recall is measured.
NEGATIVES = 99
# A tenth of a cosine is two in the logits at first, and never more than ten: a scale
# that grows without bound makes a single mismatch outweigh all else (Radford et al.
# 2021).
_FIRST_SCALE, _MOST_SCALE = 20.0, 100.0
_FIRST_DISTANCE_BIAS = -1.0
_PRECISE = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Pairs:
  """Comments and their threads.

  Attributes:
    valid_BT: which targets tell of a pair that no target before them tells of.
    slots_BT: slot of the comment from 1, 0 for none.
    thread_slots_BTA: slots of what is above it, nearest first, 0 for none.
    thread_distances_BTA: hops to them.
    trees_BT: number of the tree.
  """

  valid_BT: Array
  slots_BT: Array
  thread_slots_BTA: Array
  thread_distances_BTA: Array
  trees_BT: Array

  def of_parents(self) -> Pairs:
    """Returns the pairs with threads of the nearest comment alone, where it is seen."""
    nearest_BTA = self.thread_distances_BTA == 1
    slots_BTA = jnp.where(nearest_BTA, self.thread_slots_BTA, 0)
    return dataclasses.replace(
      self,
      valid_BT=self.valid_BT & (slots_BTA > 0).any(-1),
      thread_slots_BTA=slots_BTA,
    )


def pairs_of(batch: Mapping[str, Array]) -> Pairs:
  """Returns the pairs of a batch: its targets' parents and what is above those."""
  slots_BTA, distances_BTA = batch["ancestor_slots"], batch["ancestor_distances"]
  is_parent_BT = (distances_BTA[..., 0] == 1) & (slots_BTA[..., 0] > 0)
  own_BT = jnp.where(is_parent_BT, slots_BTA[..., 0], 0)
  # Of a comment in chunks the others are no thread; nor is what is as near as it.
  above_BTA = is_parent_BT[..., None] & (distances_BTA > 1)
  thread_BTA = jnp.where(above_BTA, slots_BTA, 0)
  order_T = jnp.arange(own_BT.shape[1])
  before_1TT = (order_T[:, None] > order_T[None])[None]
  told_BT = ((own_BT[:, :, None] == own_BT[:, None]) & before_1TT).any(-1)
  return Pairs(
    valid_BT=is_parent_BT & (thread_BTA > 0).any(-1) & ~told_BT,
    slots_BT=own_BT,
    thread_slots_BTA=thread_BTA,
    thread_distances_BTA=jnp.maximum(distances_BTA - 1, 0),
    trees_BT=batch["target_trees"],
  )


class ReplyMatcher(nn.Module):
  """Vectors of comments and of threads, to be compared by their cosine."""

  config: ModelConfig

  def setup(self):
    """Makes the maps and the biases of distances."""
    cfg = self.config
    self.distance_bias_P = parameter(
      "distance_bias",
      lambda _, shape, dtype: _FIRST_DISTANCE_BIAS * jnp.arange(shape[0], dtype=dtype),
      (cfg.max_ancestor_distance + 1,),
      ("ancestor_distance",),
    )
    self.log_scale_1 = parameter(
      "log_scale", nn.initializers.constant(jnp.log(_FIRST_SCALE)), (1,), ("vectors",)
    )
    axes = ("embed", "joined_kv")
    self.thread = Dense(cfg.emb_dim, axes, jnp.float32, kernel_init=_identity)
    self.reply = Dense(cfg.emb_dim, axes, jnp.float32, kernel_init=_identity)

  def __call__(
    self, vectors_BEJD: Array, used_BEJ: Array, pairs: Pairs
  ) -> tuple[Array, Array, Array]:
    """Returns `[B, T, D]` of threads and of comments, length 1, and the scale `[1]`.

    Both maps start as the identity: a new matcher compares what comments are pooled to.

    Args:
      vectors_BEJD: what comments are pooled to.
      used_BEJ: which of these hold anything.
      pairs: the pairs.
    """
    means_BED = mean_vectors(vectors_BEJD, used_BEJ)
    threads_BTD = thread_means(means_BED, pairs, self.distance_bias_P)
    own_BTD = of_slots(means_BED, pairs.slots_BT)
    scale_1 = jnp.exp(jnp.minimum(self.log_scale_1, jnp.log(_MOST_SCALE)))
    return unit(self.thread(threads_BTD)), unit(self.reply(own_BTD)), scale_1

  def in_parts(
    self, vectors_BEJD: Array, used_BEJ: Array
  ) -> tuple[Array, Array, Array]:
    """Returns what threads and replies are made of, where they stand in other batches.

    Returns:
      What comments add to the vector of a thread below them `[B, E, D]`, which is the
      mean of these weighted by the softmax of the biases of their hops; vectors of
      comments as replies, likewise; the biases `[P]`. Of no particular length.
    """
    means_BED = mean_vectors(vectors_BEJD, used_BEJ)
    return self.thread(means_BED), self.reply(means_BED), self.distance_bias_P


def _identity(_: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
  return jnp.eye(shape[0], shape[1], dtype=dtype)


def mean_vectors(vectors_BEJD: Array, used_BEJ: Array) -> Array:
  """Returns the mean vector of each comment, `[B, E, D]` float32; 0 without any."""
  used_BEJ1 = used_BEJ[..., None].astype(jnp.float32)
  sums_BED = (vectors_BEJD.astype(jnp.float32) * used_BEJ1).sum(2)
  return sums_BED / jnp.maximum(used_BEJ1.sum(2), 1)


def thread_means(means_BED: Array, pairs: Pairs, bias_P: Array) -> Array:
  """Returns means of the vectors above each comment, weighted by hops, `[B, T, D]`."""
  farthest = len(bias_P) - 1
  hops_BTAP = jax.nn.one_hot(
    jnp.clip(pairs.thread_distances_BTA, 0, farthest), len(bias_P)
  )
  seen_BTA = pairs.thread_slots_BTA > 0
  scores_BTA = jnp.where(seen_BTA, hops_BTAP @ bias_P, MASKED_SCORE)
  weights_BTA = jax.nn.softmax(scores_BTA, axis=-1) * seen_BTA
  slots_BTAE = jax.nn.one_hot(pairs.thread_slots_BTA - 1, means_BED.shape[1])
  weights_BTE = jnp.einsum("bta,btae->bte", weights_BTA, slots_BTAE, precision=_PRECISE)
  return jnp.einsum("bte,bed->btd", weights_BTE, means_BED, precision=_PRECISE)


def of_slots(means_BED: Array, slots_BT: Array) -> Array:
  """Returns the vector of each slot from 1, `[B, T, D]`; 0 for none."""
  slots_BTE = jax.nn.one_hot(slots_BT - 1, means_BED.shape[1])
  return jnp.einsum("bte,bed->btd", slots_BTE, means_BED, precision=_PRECISE)


def unit(x: Array) -> Array:
  """Returns vectors of length 1 in the directions of the last axis; 0 of 0."""
  squares = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def matching_loss(
  threads_BTD: Array, replies_BTD: Array, scale_1: Array, pairs: Pairs
) -> tuple[Array, Array]:
  """Returns the loss of telling replies from those of other trees, and of how many.

  The sum over the pairs, in nats, and how many pairs that are.

  Args:
    threads_BTD: vectors of threads, of length 1.
    replies_BTD: vectors of comments, likewise.
    scale_1: what cosines are multiplied with.
    pairs: the pairs.
  """
  scores_XX, others_XX, valid_X = _compared(threads_BTD, replies_BTD, pairs)
  own_XX = jnp.eye(len(valid_X), dtype=jnp.bool_)
  scores_XX = jnp.where(own_XX | others_XX, scores_XX * scale_1[None], MASKED_SCORE)
  losses_X = jax.nn.logsumexp(scores_XX, axis=-1) - jnp.diagonal(scores_XX)
  # Where there is no other tree there is nothing to tell apart.
  valid_X &= others_XX.any(-1)
  return jnp.where(valid_X, losses_X, 0).sum(), valid_X.sum(dtype=jnp.float32)


def recall_sums(
  threads_BTD: Array, replies_BTD: Array, pairs: Pairs
) -> dict[str, Array]:
  """Adds up how well threads find their replies among those of other trees.

  A reply's rank is that among itself and `NEGATIVES` comments drawn from those of other
  trees in the batch (all, if there are fewer), a tie counting against it; its mean over
  all draws is worked out, none is made.

  Returns:
    Sums over pairs: `pairs`, how many; `candidates`; `recall_at_1`, `recall_at_10` and
    `reciprocal_rank`.
  """
  scores_XX, others_XX, valid_X = _compared(threads_BTD, replies_BTD, pairs)
  above_XX = others_XX & (scores_XX >= jnp.diagonal(scores_XX)[:, None])
  others_X = others_XX.sum(-1, dtype=jnp.float32)
  above_X = above_XX.sum(-1, dtype=jnp.float32)
  drawn_X = jnp.minimum(others_X, NEGATIVES)
  # How many of those above are drawn has a hypergeometric distribution.
  count_1N = jnp.arange(NEGATIVES + 1, dtype=jnp.float32)[None]
  above_X1, drawn_X1 = above_X[:, None], drawn_X[:, None]
  below_X1 = others_X[:, None] - above_X1
  possible_XN = (
    (count_1N <= above_X1) & (count_1N <= drawn_X1) & (drawn_X1 - count_1N <= below_X1)
  )
  count_XN = jnp.where(possible_XN, count_1N, 0)
  rest_XN = jnp.where(possible_XN, drawn_X1 - count_1N, 0)
  log_XN = (
    _log_choices(above_X1, jnp.minimum(count_XN, above_X1))
    + _log_choices(below_X1, jnp.minimum(rest_XN, below_X1))
    - _log_choices(above_X1 + below_X1, drawn_X1)
  )
  chance_XN = jnp.where(possible_XN, jnp.exp(log_XN), 0)
  chance_XN /= jnp.maximum(chance_XN.sum(-1, keepdims=True), 1e-30)
  valid_X &= others_X > 0

  def total(values_X: Array) -> Array:
    return jnp.where(valid_X, values_X, 0).sum()

  return {
    "pairs": valid_X.sum(dtype=jnp.float32),
    "candidates": total(drawn_X + 1),
    "recall_at_1": total(chance_XN[:, 0]),
    "recall_at_10": total(chance_XN[:, :10].sum(-1)),
    "reciprocal_rank": total((chance_XN / (1 + count_1N)).sum(-1)),
  }


def _compared(
  threads_BTD: Array, replies_BTD: Array, pairs: Pairs
) -> tuple[Array, Array, Array]:
  """Returns cosines, which are of other trees' pairs, and which pairs count.

  The first two are `[X, X]`, a row a thread; the last is `[X]`.
  """
  width = threads_BTD.shape[-1]
  scores_XX = jnp.einsum(
    "xd,yd->xy",
    threads_BTD.reshape(-1, width),
    replies_BTD.reshape(-1, width),
    precision=_PRECISE,
  )
  valid_X, trees_X = pairs.valid_BT.reshape(-1), pairs.trees_BT.reshape(-1)
  differ_XX = trees_X[:, None] != trees_X[None]
  return scores_XX, differ_XX & valid_X[None], valid_X


def _log_choices(of: Array, many: Array) -> Array:
  return gammaln(of + 1) - gammaln(many + 1) - gammaln(of - many + 1)
