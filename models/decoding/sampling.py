"""Replies written token by token: always the likeliest token, or one drawn.

Letters besides those of `models/__init__`: Q replies that are written.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.layers import Array


def top_k_top_p(
  log_probs_XV: Array, top_k: int, top_p: float
) -> tuple[Array, Array, Array]:
  """Finds the tokens among which one is drawn.

  Args:
    log_probs_XV: log probabilities, or what differs from them by a constant a row.
    top_k: most tokens kept, the likeliest; 0 for all. Of equals, those of lower ids.
    top_p: of these the fewest, likeliest first, whose share of their probability is
      at least this; always one.

  Returns:
    Log probabilities sorted downwards `[X, C]`, their tokens `[X, C]`, and which are
    kept `[X, C]`; C is `top_k`, or V.
  """
  size = log_probs_XV.shape[-1]
  values_XC, tokens_XC = jax.lax.top_k(log_probs_XV, min(top_k or size, size))
  shares_XC = jax.nn.softmax(values_XC)
  before_XC = jnp.cumsum(shares_XC, axis=-1) - shares_XC
  # Those sums may round to 1, below which nothing is to be cut.
  kept_XC = (before_XC < top_p) | (top_p >= 1)
  return values_XC, tokens_XC, kept_XC.at[:, 0].set(True)


def sample(keys_X: Array, log_probs_XV: Array, config: DecodingConfig) -> Array:
  """Draws a token for each row, `[X]` int32.

  Args:
    keys_X: a random key for each row.
    log_probs_XV: log probabilities; -inf for what is never drawn.
    config: temperature, `top_k` and `top_p`.
  """
  log_probs_XV = log_probs_XV / config.temperature
  if config.top_k == 0 and config.top_p >= 1:
    return jax.vmap(jax.random.categorical)(keys_X, log_probs_XV).astype(jnp.int32)
  values_XC, tokens_XC, kept_XC = top_k_top_p(log_probs_XV, config.top_k, config.top_p)
  values_XC = jnp.where(kept_XC, values_XC, -jnp.inf)
  drawn_X = jax.vmap(jax.random.categorical)(keys_X, values_XC)
  return jnp.take_along_axis(tokens_XC, drawn_X[:, None], axis=-1)[:, 0]


class SamplerState(NamedTuple):
  """What has been written.

  Attributes:
    tokens_XL: the texts, `end_id` from where they stop.
    log_probs_X: of their tokens.
    ended_X: which have ended.
  """

  tokens_XL: Array
  log_probs_X: Array
  ended_X: Array


@dataclasses.dataclass(frozen=True)
class TokenSampler:
  """The methods "greedy" and "sample"; see `beam_search.BeamSearch` for its methods.

  Attributes:
    config: how tokens are chosen.
    keys_X: a random key for each text, if they are drawn.
  """

  config: DecodingConfig
  keys_X: Array | None

  def begin(self, settled_Q: Array) -> SamplerState:
    """Returns empty texts; those of replies that are done have ended."""
    cfg = self.config
    ended_X = jnp.repeat(settled_Q, cfg.rows)
    empty_XL = jnp.full((len(ended_X), cfg.max_length), cfg.end_id, jnp.int32)
    return SamplerState(empty_XL, jnp.zeros(len(ended_X)), ended_X)

  def advance(
    self, texts: SamplerState, log_probs_XV: Array, position: Array
  ) -> tuple[SamplerState, Array, None]:
    """Adds a token to each text that has not ended."""
    if self.keys_X is None:
      chosen_X = log_probs_XV.argmax(-1).astype(jnp.int32)
    else:
      keys_X = jax.vmap(jax.random.fold_in, (0, None))(self.keys_X, position)
      chosen_X = sample(keys_X, log_probs_XV, self.config)
    chosen_X = jnp.where(texts.ended_X, self.config.end_id, chosen_X)
    gained_X = jnp.take_along_axis(log_probs_XV, chosen_X[:, None], axis=-1)[:, 0]
    after = SamplerState(
      texts.tokens_XL.at[:, position].set(chosen_X),
      texts.log_probs_X + jnp.where(texts.ended_X, 0, gained_X),
      texts.ended_X | (chosen_X == self.config.end_id),
    )
    return after, chosen_X, None

  def is_done(self, texts: SamplerState) -> Array:
    """Returns which texts have ended."""
    return texts.ended_X

  def replies(self, texts: SamplerState) -> tuple[Array, Array]:
    """Returns tokens `[Q, K, L]` and log probabilities `[Q, K]`."""
    cfg = self.config
    return (
      texts.tokens_XL.reshape(-1, cfg.rows, cfg.max_length),
      texts.log_probs_X.reshape(-1, cfg.rows),
    )
