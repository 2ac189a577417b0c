"""A pointer to the tokens of ancestors, beside what the vocabulary's logits say.

A pooled vector says what a comment is about, but hardly which words it holds, and a
reply repeats words. So masked tokens may be copied: attention from a masked position to
all tokens of its ancestors is a distribution over the vocabulary, mixed with that of
the logits (pointer-generator networks, See et al. 2017; Merity et al. 2016). Only
masked positions look, once, behind the last layer.

Shapes as in `models`, and U target ids, 0 for padding; Q queries; K width of a key.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorTokens
from commentree.models.config import ModelConfig
from commentree.models.layers import (
  MASKED_SCORE,
  Array,
  Dense,
  fan_in_normal,
  parameter,
  small_normal,
)

# A pointer begins with a twentieth of the probability, and with nearer ancestors first.
_FIRST_LOG_ODDS = -3.0
_FIRST_DISTANCE_BIAS = -0.3
# Copies of less weight count for nothing: the gradient has the weight's inverse in it,
# which is infinite where float32 ends, unless the device rounds such weights to 0.
_LEAST_WEIGHT = 2.0**-120


@flax.struct.dataclass
class Copies:
  """What masked positions copy.

  Attributes:
    weights_BQN: distribution of each query over encoder tokens, float32; all 0 where it
      sees no ancestor.
    ids_BN: ids of these tokens.
    log_odds_BQ: of a copy against a token by the logits, float32.
  """

  weights_BQN: Array
  ids_BN: Array
  log_odds_BQ: Array

  def add_to(self, logits: Array) -> Array:
    """Returns logits `[..., V]`, float32, in which copies are counted.

    With p the softmax of the logits, c the distribution of copies and o the odds of
    one, the softmax of what is returned is p + o c, normalized: logits of tokens that
    no ancestor holds stay as they are.

    Args:
      logits: `[..., V]`, float32; the leading axes, in order, make B and Q.
    """
    logits_BQV = logits.reshape(*self.log_odds_BQ.shape, -1)
    copies_BQV = _by_id(self.weights_BQN, self.ids_BN, logits_BQV.shape[-1])
    raised_BQV = _raised(
      copies_BQV, self.log_odds_BQ[..., None], jax.nn.log_softmax(logits_BQV)
    )
    return (logits_BQV + raised_BQV).reshape(logits.shape)

  def log_ratio_of(self, targets: Array, log_probs: Array) -> Array:
    """Returns by how much the mixture's log likelihood is above that of the logits.

    It needs the weight of one token for each query, where `add_to` needs that of the
    whole vocabulary.

    Args:
      targets: token ids; the axes, in order, make B and Q.
      log_probs: log likelihood of these by the logits, in the same shape.
    """
    targets_BQ = targets.reshape(self.log_odds_BQ.shape)
    is_target_BQN = self.ids_BN[:, None] == targets_BQ[..., None]
    copies_BQ = jnp.where(is_target_BQN, self.weights_BQN, 0).sum(-1)
    raised_BQ = _raised(
      copies_BQ, self.log_odds_BQ, log_probs.reshape(targets_BQ.shape)
    )
    # The odds are added to 1 where there is something to copy.
    any_BQ = jax.lax.stop_gradient(self.weights_BQN).sum(-1) > 0
    normalizer_BQ = jnp.where(any_BQ, jax.nn.softplus(self.log_odds_BQ), 0)
    return (raised_BQ - normalizer_BQ).reshape(targets.shape)


@flax.struct.dataclass
class PointerScores:
  """Logits of the vocabulary alone, and copies beside them.

  Attributes:
    logits_BGMV: logits, float32.
    copies: what is copied; Q is G * M.
  """

  logits_BGMV: Array
  copies: Copies

  def mixed(self) -> Array:
    """Returns logits in which copies are counted, `[B, G, M, V]` float32."""
    return self.copies.add_to(self.logits_BGMV)


class AncestorPointer(nn.Module):
  """Attention from masked positions to ancestors' tokens, and how much it counts."""

  config: ModelConfig

  def setup(self):
    """Declares the parameters."""
    cfg = self.config
    width = cfg.num_heads * cfg.head_dim
    init = fan_in_normal if cfg.family == "t5" else small_normal
    self.query, self.key = (
      Dense(width, ("embed", "joined_kv"), jnp.dtype(cfg.dtype), kernel_init=init)
      for _ in range(2)
    )
    self.salience_D = parameter(
      "salience", nn.initializers.zeros, (cfg.emb_dim,), ("embed",)
    )
    self.gate_D = parameter("gate", nn.initializers.zeros, (cfg.emb_dim,), ("embed",))
    self.log_odds_1 = parameter(
      "log_odds", nn.initializers.constant(_FIRST_LOG_ODDS), (1,), ("vectors",)
    )
    self.distance_bias_P = parameter(
      "distance_bias",
      lambda _, shape, dtype: _FIRST_DISTANCE_BIAS * jnp.arange(shape[0], dtype=dtype),
      (cfg.max_ancestor_distance + 1,),
      ("ancestor_distance",),
    )

  def tokens(
    self,
    states_BND: Array,
    ids_BN: Array,
    slots_BN: Array,
    visible_BUE: Array,
    distances_BUE: Array,
    targets_BQ: Array,
  ) -> AncestorTokens:
    """Prepares what queries point to.

    Args:
      states_BND: the encoder's last states.
      ids_BN: its token ids.
      slots_BN: slot of each from 1, 0 for padding.
      visible_BUE: slots of each target's ancestors.
      distances_BUE: hops to them.
      targets_BQ: target id of each query, 0 for padding.
    """
    bias_BUE = self._bias(distances_BUE)
    # Products, not gathers: what is picked by slot has a gradient.
    slot_BNE = jax.nn.one_hot(slots_BN - 1, visible_BUE.shape[-1])
    return AncestorTokens(
      keys_BNK=self.key(states_BND),
      salience_BN=states_BND.astype(jnp.float32) @ self.salience_D,
      ids_BN=ids_BN,
      bias_BUN=jnp.einsum("bue,bne->bun", bias_BUE, slot_BNE),
      visible_BUN=jnp.einsum("bue,bne->bun", visible_BUE.astype(jnp.float32), slot_BNE)
      > 0,
      targets_BQ=targets_BQ,
    )

  def tokens_of_threads(
    self,
    states_BND: Array,
    ids_BTC: Array,
    distances_BTC: Array,
    in_use_BTC: Array,
    targets_BQ: Array,
  ) -> AncestorTokens:
    """Prepares what queries point to where each target has a thread of its own.

    Args:
      states_BND: the encoder's last states, N = T * C.
      ids_BTC: its token ids.
      distances_BTC: hops to the ancestor that each is of.
      in_use_BTC: where there is a token.
      targets_BQ: target id of each query, 0 for padding.
    """
    batch_size, targets, _ = in_use_BTC.shape
    of_target_UT = jnp.eye(targets + 1, targets, -1, dtype=jnp.bool_)
    visible_BUTC = of_target_UT[None, :, :, None] & in_use_BTC[:, None]
    visible_BUN = visible_BUTC.reshape(batch_size, targets + 1, -1)
    bias_BN = self._bias(distances_BTC).reshape(batch_size, -1)
    return AncestorTokens(
      keys_BNK=self.key(states_BND),
      salience_BN=states_BND.astype(jnp.float32) @ self.salience_D + bias_BN,
      ids_BN=ids_BTC.reshape(batch_size, -1),
      bias_BUN=jnp.zeros(visible_BUN.shape, jnp.float32),
      visible_BUN=visible_BUN,
      targets_BQ=targets_BQ,
    )

  def _bias(self, distances: Array) -> Array:
    """Returns what is added to scores for hops of any shape, float32."""
    farthest = self.config.max_ancestor_distance
    hops = jax.nn.one_hot(jnp.clip(distances, 0, farthest), farthest + 1)
    return hops @ self.distance_bias_P

  def __call__(self, x: Array, tokens: AncestorTokens) -> Copies:
    """Returns what is copied.

    Args:
      x: the decoder's states `[..., D]`; the leading axes, in order, make B and Q.
      tokens: what `tokens` returned.
    """
    x_BQD = x.reshape(*tokens.targets_BQ.shape, -1)
    query_BQK = self.query(x_BQD)
    of_queries = jax.vmap(lambda by_target_UN, targets_Q: by_target_UN[targets_Q])
    scores_BQN = jnp.einsum(
      "bqk,bnk->bqn", query_BQK, tokens.keys_BNK, preferred_element_type=jnp.float32
    ) * (query_BQK.shape[-1] ** -0.5)
    scores_BQN += tokens.salience_BN[:, None]
    scores_BQN += of_queries(tokens.bias_BUN, tokens.targets_BQ)
    visible_BQN = of_queries(tokens.visible_BUN, tokens.targets_BQ)
    scores_BQN = jnp.where(visible_BQN, scores_BQN, MASKED_SCORE)
    weights_BQN = jax.nn.softmax(scores_BQN, axis=-1) * visible_BQN
    log_odds_BQ = x_BQD.astype(jnp.float32) @ self.gate_D + self.log_odds_1[None]
    if diagnostics.wanted(self):
      share_BQ = jax.nn.sigmoid(log_odds_BQ)
      diagnostics.note_copies(self, share_BQ, visible_BQN.any(-1))
    return Copies(weights_BQN, tokens.ids_BN, log_odds_BQ)


def _raised(copies: Array, log_odds: Array, log_probs: Array) -> Array:
  """Returns log(1 + o c / p), elementwise; 0 where nothing is copied."""
  copied = copies > _LEAST_WEIGHT
  log_ratio = log_odds + jnp.log(jnp.where(copied, copies, 1)) - log_probs
  return jnp.where(copied, jax.nn.softplus(log_ratio), 0)


def _by_id(weights_BQN: Array, ids_BN: Array, num_ids: int) -> Array:
  """Adds up the weights of tokens with the same id, `[B, Q, V]`."""

  def of_example(weights_QN: Array, ids_N: Array) -> Array:
    zeros_VQ = jnp.zeros((num_ids, len(weights_QN)), weights_QN.dtype)
    return zeros_VQ.at[ids_N].add(weights_QN.T, mode="drop").T

  return jax.vmap(of_example)(weights_BQN, ids_BN)
