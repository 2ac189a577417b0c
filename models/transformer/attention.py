"""Self-attention within comments and cross-attention to ancestors' vectors.

Scores and softmax are float32 in any compute dtype. T5 does not divide by
the square root of the head's width: its query initializer does. RoBERTa does.

Applied with the collection "cache" mutable, both read one token of each row at a time
and keep in it what later tokens need: keys and values of the tokens so far, and those
of the ancestors, which are computed once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorContext, ByTarget
from commentree.models.config import Attention
from commentree.models.layers import (
  MASKED_SCORE,
  Array,
  Dense,
  Initializer,
  constrain,
  fan_in_normal,
)
from commentree.models.transformer.kernel_choice import ancestor_kernel_for, kernel_for

# Of the kernel's results, as policies of rematerialization know them.
ATTENTION_OUTPUT = "attention_output"

# Keys and values `[R, L, H, K]` of rows that are read token by token.
CACHED_TOKENS = ("cached_key", "cached_value")


def hidden(visible: Array) -> Array:
  """Returns what to add to scores of what is not `visible`.

  Softmax then gives it 0, and no gradient. To choose between scores and a constant
  comes to the same, with another pass over the scores backwards.
  """
  return jnp.where(visible, 0.0, MASKED_SCORE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def of_all_rows(x: Array, rows: int) -> Array:
  """Repeats an array `[...]` for each row, `[R, ...]`.

  The gradient is a product, with the ones on its left: XLA's CPU backend neither sums
  the leading axis slowly nor transposes it.
  """
  return jnp.broadcast_to(x, (rows, *x.shape))


def _of_all_rows_forward(x: Array, rows: int) -> tuple[Array, None]:
  return of_all_rows(x, rows), None


def _of_all_rows_backward(rows: int, _: None, gradient: Array) -> tuple[Array]:
  ones_R = jnp.ones(rows, gradient.dtype)
  highest = jax.lax.Precision.HIGHEST
  return (jnp.tensordot(ones_R, gradient, axes=1, precision=highest),)


of_all_rows.defvjp(_of_all_rows_forward, _of_all_rows_backward)


class Heads(nn.Module):
  """What all attentions share: projections to heads and back, and dropout.

  Attributes:
    num_heads: H.
    head_dim: K.
    dropout_rate: share of the weights dropped.
    deterministic: whether dropout is off.
    dtype: dtype of the projections.
    divide_scores: whether to divide scores by the square root of K; otherwise the
      query's initializer does.
    kernel_init: initializer of the projections.
    out_init: of that back, if it is another.
    use_bias: whether they have biases.
    implementation: `ModelConfig.attention`.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float
  deterministic: bool
  dtype: Any
  divide_scores: bool = False
  kernel_init: Initializer = fan_in_normal
  out_init: Initializer | None = None
  use_bias: bool = False
  implementation: Attention = "auto"

  def projection(self, name: str) -> Dense:
    """Returns the projection `name`: query, key or value."""
    init = self.kernel_init
    if name == "query" and not self.divide_scores:

      def init(*args):
        return self.kernel_init(*args) / jnp.sqrt(self.head_dim)

    return Dense(
      self.num_heads * self.head_dim,
      ("embed", "joined_kv"),
      self.dtype,
      kernel_init=init,
      use_bias=self.use_bias,
      name=name,
    )

  def scores(self, spec: str, query: Array, key: Array) -> Array:
    """Returns float32 products of queries and keys `[..., H, K]` by `spec`."""
    scores = jnp.einsum(spec, query, key, preferred_element_type=jnp.float32)
    return scores / self.head_dim**0.5 if self.divide_scores else scores

  def split(self, x: Array) -> Array:
    """Returns `[..., H * K]` as `[..., H, K]`."""
    return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)

  def attend(
    self, scores_RHQS: Array, value_RSHK: Array, also: Callable[[Array], Array] | None
  ) -> Array:
    """Averages values by the softmax of `scores_RHQS`; returns `[R, Q, H, K]`.

    Sums with the exponentials and divides the short result, which spares passes
    over the scores forwards and backwards.

    Args:
      scores_RHQS: masked scores, float32.
      value_RSHK: what to average.
      also: from the exponentials `[R, H, Q, S]`, more to average in, or None.
    """
    highest = jax.lax.stop_gradient(scores_RHQS.max(axis=-1, keepdims=True))
    weights_RHQS = jnp.exp(scores_RHQS - highest)
    total_RQH = jnp.swapaxes(weights_RHQS.sum(axis=-1), 1, 2)
    # T5's dropout of weights is shared by all queries.
    weights_RHQS = nn.Dropout(
      self.dropout_rate, broadcast_dims=(-2,), deterministic=self.deterministic
    )(weights_RHQS.astype(self.dtype))
    heads = jnp.einsum("rhqs,rshk->rqhk", weights_RHQS, value_RSHK)
    if also is not None:
      heads += also(weights_RHQS)
    return (heads / total_RQH[..., None]).astype(self.dtype)

  def drop_keys(self, value_RLX: Array) -> Array:
    """Returns values with those of dropped keys 0 and others larger.

    As T5's dropout of weights is shared by all queries, it is one of values; the draw
    is that of `attend`.
    """
    if self.deterministic or not self.dropout_rate:
      return value_RLX
    rows, length, _ = value_RLX.shape
    kept_RH1L = nn.Dropout(
      self.dropout_rate, broadcast_dims=(-2,), deterministic=False
    )(jnp.ones((rows, self.num_heads, 1, length), self.dtype))
    kept_RLH = jnp.swapaxes(kept_RH1L[:, :, 0], 1, 2)
    return value_RLX * jnp.repeat(kept_RLH, self.head_dim, axis=-1)

  @property
  def scale(self) -> float:
    """What scores are multiplied by."""
    return self.head_dim**-0.5 if self.divide_scores else 1.0

  @property
  def cached(self) -> bool:
    """Whether rows are read token by token."""
    return self.is_mutable_collection("cache") and not self.is_initializing()

  def once(self, name: str, make: Callable[[], Array]) -> Array:
    """Returns what `make` makes, which is the same for all tokens of a row."""
    return self.variable("cache", name, make).value if self.cached else make()

  def out(self, heads: Array, features: int) -> Array:
    """Joins `[..., H, K]` and projects to `[..., features]`."""
    joined = heads.reshape(*heads.shape[:-2], -1)
    return Dense(
      features,
      ("joined_kv", "embed"),
      self.dtype,
      kernel_init=self.out_init or self.kernel_init,
      use_bias=self.use_bias,
      name="out",
    )(joined)


class SelfAttention(Heads):
  """Attention of each token to the tokens of its own comment."""

  @nn.compact
  def __call__(self, x_RLD: Array, visible_RLL: Array, bias_HLL: Array | None) -> Array:
    """Attends where `visible_RLL`; returns `[R, L, D]`.

    Token by token: `x_R1D`, `visible_11L` with the token and all before it visible,
    `bias_H1L`.
    """
    query, key, value = (
      self.projection(name)(x_RLD) for name in ("query", "key", "value")
    )
    kernel = None
    if not (self.cached or self.is_initializing()):
      kernel = kernel_for(self.implementation, query, self.num_heads, self.scale)
    if kernel is not None:
      value = self.drop_keys(value)
      query, key, value = (
        constrain(x_RLX, "batch", "length", "heads") for x_RLX in (query, key, value)
      )
      visible_RLL = visible_RLL.astype(jnp.int8)
      heads_RLX = kernel(query, key, value, visible_RLL, bias_HLL)
      # Saved by name, or the backward pass would run the kernel again for it.
      heads_RLX = checkpoint_name(heads_RLX, ATTENTION_OUTPUT)
      return self.out(self.split(heads_RLX), x_RLD.shape[-1])
    query, key, value = (
      constrain(self.split(x_RLX), "batch", "length", "heads", "kv")
      for x_RLX in (query, key, value)
    )
    if self.cached:
      key, value = (
        self._with_earlier(name, new, visible_RLL)
        for name, new in zip(CACHED_TOKENS, (key, value))
      )
    scores_RHLL = self.scores("rqhk,rlhk->rhql", query, key)
    if bias_HLL is not None:
      scores_RHLL += of_all_rows(bias_HLL.astype(jnp.float32), len(scores_RHLL))
    scores_RHLL += hidden(visible_RLL)[:, None]
    return self.out(self.attend(scores_RHLL, value, None), x_RLD.shape[-1])

  def _with_earlier(self, name: str, new_R1HK: Array, visible_11L: Array) -> Array:
    """Notes the newest token's keys or values; returns those of all `[R, L, H, K]`."""
    rows, _, *head = new_R1HK.shape
    shape = (rows, visible_11L.shape[-1], *head)
    kept = self.variable("cache", name, jnp.zeros, shape, new_R1HK.dtype)
    newest = visible_11L.sum() - 1
    both = jax.lax.dynamic_update_slice_in_dim(kept.value, new_R1HK, newest, axis=1)
    kept.value = constrain(both, "batch", "length", "heads", "kv")
    return kept.value


class AncestorAttention(Heads):
  """Attention of each target token to the vectors of its comment's ancestors."""

  @nn.compact
  def __call__(self, x_RLD: Array, context: AncestorContext) -> Array:
    """Attends to `context`; returns `[R, L, D]`.

    Token by token likewise, of as many rows as `context` has tokens.
    """
    if context.by_target is not None:
      return self._by_kernel(x_RLD, context, context.by_target)
    key_of, value_of = self.projection("key"), self.projection("value")

    def heads_of(x_BXD: Array) -> Array:
      return constrain(self.split(x_BXD), "batch", "length", "heads", "kv")

    query = heads_of(context.queries(self.projection("query")(x_RLD)))
    key = self.once("ancestor_key", lambda: heads_of(key_of(context.vectors_BSD)))
    value = self.once("ancestor_value", lambda: heads_of(value_of(context.vectors_BSD)))
    scores_BHNS = self.scores("bnhk,bshk->bhns", query, key)
    if context.bias_BHNS is not None:
      scores_BHNS += context.bias_BHNS
    also = None
    if context.distance_vectors_PD is not None and context.distances_BNS is not None:
      # A key is W(vector + distance vector) + b = W vector + b + W distance vector, and
      # the last term takes only P values: score these once, and add to each key's
      # score its distance's. Likewise values: sum the weight on each distance. One
      # select a distance, because XLA fuses those into one pass over the scores.
      distance_vectors_PD = context.distance_vectors_PD
      key_PHK, value_PHK = (
        self.once(
          f"distance_{name}",
          lambda of=of: self.split(of(distance_vectors_PD, with_bias=False)),  # type: ignore[misc]
        )
        for name, of in (("key", key_of), ("value", value_of))
      )
      distances_B1NS = context.distances_BNS[:, None]
      scores_PBHN = self.scores("bnhk,phk->pbhn", query, key_PHK)
      for distance, scores_BHN in enumerate(scores_PBHN):
        scores_BHNS += jnp.where(distances_B1NS == distance, scores_BHN[..., None], 0)

      def also(weights_BHNS):
        weights_PBHN = jnp.stack(
          [
            jnp.where(distances_B1NS == distance, weights_BHNS, 0).sum(-1)
            for distance in range(value_PHK.shape[0])
          ]
        )
        return jnp.einsum("pbhn,phk->bnhk", weights_PBHN, value_PHK)

    scores_BHNS += hidden(context.visible_BNS)[:, None]
    diagnostics.note_attention(self, scores_BHNS, context)
    heads_BNHK = self.attend(scores_BHNS, value, also)
    return self.out(context.rows(heads_BNHK, x_RLD.shape[:2]), x_RLD.shape[-1])

  def _by_kernel(
    self, x_RLD: Array, context: AncestorContext, by_target: ByTarget
  ) -> Array:
    query_RLX = self.projection("query")(x_RLD)
    kernel = ancestor_kernel_for(
      self.implementation, query_RLX, self.num_heads, self.scale, by_target
    )
    assert kernel is not None, "a context has `by_target` where kernels can read it"
    key_BSX = self.projection("key")(context.vectors_BSD)
    value_BSX = self.drop_keys(self.projection("value")(context.vectors_BSD))
    heads_RLX = kernel(
      *(
        constrain(x, "batch", "length", "heads")
        for x in (query_RLX, key_BSX, value_BSX)
      ),
      by_target.visible_BUS,
      by_target.bias_BHUS,
      by_target.targets_RL,
    )
    heads_RLX = checkpoint_name(heads_RLX, ATTENTION_OUTPUT)
    return self.out(self.split(heads_RLX), x_RLD.shape[-1])
