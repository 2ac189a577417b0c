"""Heads for fine-tuning: a label or number for each comment, or a label for each token.

They read the decoder's states, and so what a comment's ancestors say. What is predicted
stands where masked tokens do: `decoder_target_tokens` are labels, at
`decoder_masked_positions`. C is the number of labels, S the width of a GRU's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from commentree.models.batch import masked_targets
from commentree.models.config import ModelConfig
from commentree.models.heads import crf
from commentree.models.heads.losses import TokenLosses
from commentree.models.heads.pointer import PointerScores
from commentree.models.layers import (
  Array,
  Dense,
  at_positions,
  parameter,
  small_normal,
)

Batch = Mapping[str, Array]


@flax.struct.dataclass
class ChainScores:
  """What a conditional random field makes of a batch, and is decoded by.

  Attributes:
    emissions_BGMC: scores of each token's labels, float32.
    transitions: of labels next to each other, float32.
  """

  emissions_BGMC: Array
  transitions: crf.Transitions


Scores = Array | PointerScores | ChainScores
"""Logits `[B, G, M, C]`, float32, these and copies, or what chains are scored by."""


class Classifier(nn.Module):
  """Labels of comments: a hidden layer with tanh over a comment's vector, as RoBERTa's.

  With one output it is the head of `regression`.
  The vector is the mean of the comment's states or that of its first token, by
  `ModelConfig.classify_from`.
  """

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x_BRLD: Array, batch: Batch) -> Scores:
    """Returns logits `[B, G, M, C]`."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    drop = nn.Dropout(cfg.head_dropout_rate, deterministic=self.deterministic)
    if cfg.classify_from == "mean":
      targets_BGM = masked_targets(batch)
      means_B1TD = target_means(x_BRLD, batch)[:, None]
      at_B1Q = jnp.maximum(targets_BGM.reshape(len(x_BRLD), 1, -1) - 1, 0)
      x_BGMD = at_positions(means_B1TD, at_B1Q).reshape(*targets_BGM.shape, -1)
    else:
      x_BGMD = by_group(x_BRLD, batch)
    x_BGMD = Dense(
      cfg.emb_dim,
      ("embed", "mlp"),
      dtype,
      kernel_init=small_normal,
      use_bias=True,
      name="hidden",
    )(drop(x_BGMD.astype(dtype)))
    return _logits(cfg, "mlp")(drop(jnp.tanh(x_BGMD)))


class Tagger(nn.Module):
  """Labels of tokens: by a linear map of their states, of a GRU's, or by a chain."""

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x_BRLD: Array, batch: Batch) -> Scores:
    """Returns logits `[B, G, M, C]`, or the scores of chains."""
    cfg = self.config
    drop = nn.Dropout(cfg.head_dropout_rate, deterministic=self.deterministic)
    x = drop(x_BRLD)
    axis = "embed"
    if cfg.tagger == "gru":
      segments_BRL = batch["decoder_segment_ids"]
      both = [
        Gru(max(1, cfg.emb_dim // 2), jnp.dtype(cfg.dtype), reverse, name=name)
        for name, reverse in (("forward", False), ("backward", True))
      ]
      x = drop(jnp.concatenate([gru(x, segments_BRL) for gru in both], axis=-1))
      axis = "recurrent"
    logits_BGMC = by_group(_logits(cfg, axis)(x), batch)
    if cfg.tagger != "crf":
      return logits_BGMC
    zeros, labels = nn.initializers.zeros, cfg.num_labels
    transitions = crf.Transitions(
      parameter("transitions", zeros, (labels, labels), ("labels", "next_labels")),
      parameter("start", zeros, (labels,), ("labels",)),
      parameter("end", zeros, (labels,), ("labels",)),
    )
    return ChainScores(logits_BGMC, crf.forbid_invalid_transitions(transitions))


class Gru(nn.Module):
  """A gated recurrent unit over each comment of packed rows (Cho et al. 2014).

  In the form of cuDNN and of Flax's `GRUCell`, whose state is reset between comments.

  Attributes:
    width: S.
    dtype: dtype of the products; the state is float32.
    reverse: whether it reads from a comment's last token to its first.
  """

  width: int
  dtype: jnp.dtype
  reverse: bool

  @nn.compact
  def __call__(self, x_BRLD: Array, segment_ids_BRL: Array) -> Array:
    """Returns its state at each token, `[B, R, L, S]`."""
    # What is read is projected at once: of the reset, the update and the new state.
    gates = Dense(
      3 * self.width,
      ("embed", "gates"),
      self.dtype,
      output_dtype=jnp.float32,
      kernel_init=small_normal,
      use_bias=True,
      name="input",
    )(x_BRLD)
    kernel = parameter(
      "recurrent_kernel",
      _orthogonal_gates,
      (self.width, 3 * self.width),
      ("recurrent", "gates"),
    ).astype(self.dtype)
    bias = parameter(
      "recurrent_bias", nn.initializers.zeros, (self.width,), ("recurrent",)
    )

    def step(state, token):
      read, resets = token
      state = jnp.where(resets, 0.0, state)
      kept = jnp.matmul(
        state.astype(self.dtype), kernel, preferred_element_type=jnp.float32
      )
      read_r, read_z, read_n = jnp.split(read, 3, axis=-1)
      kept_r, kept_z, kept_n = jnp.split(kept, 3, axis=-1)
      reset = jax.nn.sigmoid(read_r + kept_r)
      update = jax.nn.sigmoid(read_z + kept_z)
      new = jnp.tanh(read_n + reset * (kept_n + bias[None, None]))
      state = (1 - update) * new + update * state
      return state, state

    find = crf.ends_of if self.reverse else crf.begins_of
    along = (
      jnp.moveaxis(gates, -2, 0),
      jnp.moveaxis(find(segment_ids_BRL)[..., None], -2, 0),
    )
    first = jnp.zeros((*x_BRLD.shape[:2], self.width), jnp.float32)
    _, states = jax.lax.scan(step, first, along, reverse=self.reverse)
    return jnp.moveaxis(states, 0, -2).astype(self.dtype)


HEADS: dict[str, type[Classifier] | type[Tagger]] = {
  "classification": Classifier,
  "tagging": Tagger,
  "regression": Classifier,
}


def by_group(x_BRLD: Array, batch: Batch) -> Array:
  """Returns values of tokens at the masked positions, `[B, G, M, D]`."""
  positions_BGM = batch["decoder_masked_positions"]
  x_BGND = x_BRLD.reshape(*positions_BGM.shape[:2], -1, x_BRLD.shape[-1])
  return at_positions(x_BGND, positions_BGM)


def target_means(x_BRLD: Array, batch: Batch) -> Array:
  """Returns the mean of each target's states, `[B, T, D]` float32; 0 without any."""
  num_targets = batch["target_depths"].shape[-1]
  targets_BN = batch["decoder_segment_ids"].reshape(len(x_BRLD), -1)
  of_target_BNT = jax.nn.one_hot(targets_BN - 1, num_targets)
  of_target_BNT /= jnp.maximum(of_target_BNT.sum(1, keepdims=True), 1)
  return jnp.einsum(
    "bnt,bnd->btd",
    of_target_BNT,
    x_BRLD.reshape(*targets_BN.shape, -1),
    preferred_element_type=jnp.float32,
  )


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
  """Draws an orthogonal matrix for each of the three gates."""
  width = shape[0]
  init = nn.initializers.orthogonal()
  drawn = [init(one, (width, width), dtype) for one in jax.random.split(key, 3)]
  return jnp.concatenate(drawn, axis=-1)


def _logits(config: ModelConfig, axis: str) -> Dense:
  return Dense(
    config.num_labels,
    (axis, "labels"),
    jnp.dtype(config.dtype),
    output_dtype=jnp.float32,
    kernel_init=small_normal,
    use_bias=True,
    name="logits",
  )


def chains_of(batch: Batch) -> Array:
  """Returns the target of each position that has a label, `[B, G, M]`; 0 of others."""
  return jnp.where(batch["decoder_loss_weights"] > 0, masked_targets(batch), 0)


def labels_of(config: ModelConfig, batch: Batch) -> Array:
  """Returns what is to be predicted, `[B, G, M]` int32.

  Labels of tokens are `crf.repair_iob2`, from any head.
  """
  labels_BGM = batch["decoder_target_tokens"]
  if config.head != "tagging":
    return labels_BGM
  return crf.repair_iob2(labels_BGM, chains_of(batch))


def chain_losses(
  scores: ChainScores, labels_BGM: Array, chains_BGM: Array
) -> TokenLosses:
  """Returns the losses of tokens, to each an even share of its chain's.

  Neither labels are smoothed nor is there a `z_loss`. Correct is what Viterbi's path
  has right.
  """
  nll_BGM = crf.negative_log_likelihoods(
    scores.emissions_BGMC, labels_BGM, chains_BGM, scores.transitions
  )
  path_BGM = crf.viterbi(scores.emissions_BGMC, chains_BGM, scores.transitions)
  return TokenLosses(
    loss=nll_BGM,
    nll=nll_BGM,
    z_loss=jnp.zeros_like(nll_BGM),
    correct=(path_BGM == labels_BGM).astype(jnp.float32),
  )


def best_labels(scores: Scores, chains_BGM: Array) -> Array:
  """Returns the likeliest labels `[B, G, M]`, of a chain those of its best path.

  0 where nothing is predicted.

  Args:
    scores: what the head returned.
    chains_BGM: see `chains_of`.
  """
  if isinstance(scores, ChainScores):
    return crf.viterbi(scores.emissions_BGMC, chains_BGM, scores.transitions)
  labels_BGM = jnp.argmax(cast(Array, scores), axis=-1).astype(jnp.int32)
  return jnp.where(chains_BGM > 0, labels_BGM, 0)


def probabilities(scores: Scores, chains_BGM: Array) -> Array:
  """Returns the probability of each label `[B, G, M, C]`, of a chain the marginals.

  0 where nothing is predicted; arguments as `best_labels`.
  """
  if isinstance(scores, ChainScores):
    return crf.marginals(scores.emissions_BGMC, chains_BGM, scores.transitions)
  probabilities_BGMC = jax.nn.softmax(cast(Array, scores), axis=-1)
  return jnp.where(chains_BGM[..., None] > 0, probabilities_BGMC, 0)


def class_weights_of(config: ModelConfig, batch: Batch) -> Array:
  """Returns the weight of each label `[B, G, M]`, as `ModelConfig.class_weights` has.

  A chain, whose loss is spread evenly over its tokens, so has their mean weight.
  """
  weights_C = jnp.asarray(config.class_weights, jnp.float32)
  return jnp.take(weights_C, labels_of(config, batch), mode="clip")
