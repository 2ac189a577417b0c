"""Heads for fine-tuning: a label or number for each comment, or a label for each token.

They read the decoder's states, and so what a comment's ancestors say. What is predicted
stands where masked tokens do: `decoder_target_tokens` are labels, at
`decoder_masked_positions`. C is the number of labels, G the width of a GRU's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from commentree.models.config import ModelConfig
from commentree.models.heads import crf
from commentree.models.heads.losses import TokenLosses
from commentree.models.heads.pointer import PointerScores
from commentree.models.layers import Array, Dense, parameter, small_normal
from commentree.models.transformer.stacks import same_segment

Batch = Mapping[str, Array]


@flax.struct.dataclass
class ChainScores:
  """What a conditional random field makes of a batch, and is decoded by.

  Attributes:
    emissions_BRMC: scores of each token's labels, float32.
    transitions: of labels next to each other, float32.
  """

  emissions_BRMC: Array
  transitions: crf.Transitions


Scores = Array | PointerScores | ChainScores
"""Logits `[B, R, M, C]`, float32, these and copies, or what chains are scored by."""


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
    """Returns logits `[B, R, M, C]`."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    drop = nn.Dropout(cfg.head_dropout_rate, deterministic=self.deterministic)
    at_BRML = jax.nn.one_hot(
      batch["decoder_masked_positions"], x_BRLD.shape[-2], dtype=jnp.float32
    )
    if cfg.classify_from == "mean":
      segments_BRL = batch["decoder_segment_ids"]
      same_BRLL = jax.vmap(same_segment)(segments_BRL).astype(jnp.float32)
      at_BRML = jnp.einsum("brml,brlk->brmk", at_BRML, same_BRLL)
      at_BRML /= at_BRML.sum(-1, keepdims=True)
    x_BRMD = jnp.einsum(
      "brml,brld->brmd", at_BRML, x_BRLD, preferred_element_type=jnp.float32
    )
    x_BRMD = Dense(
      cfg.emb_dim,
      ("embed", "mlp"),
      dtype,
      kernel_init=small_normal,
      use_bias=True,
      name="hidden",
    )(drop(x_BRMD.astype(dtype)))
    return _logits(cfg, "mlp")(drop(jnp.tanh(x_BRMD)))


class Tagger(nn.Module):
  """Labels of tokens: by a linear map of their states, of a GRU's, or by a chain."""

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x_BRLD: Array, batch: Batch) -> Scores:
    """Returns logits `[B, R, M, C]`, or the scores of chains."""
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
    logits_BRLC = _logits(cfg, axis)(x)
    at_BRML = jax.nn.one_hot(
      batch["decoder_masked_positions"], x.shape[-2], dtype=jnp.float32
    )
    logits_BRMC = jnp.einsum(
      "brml,brlc->brmc", at_BRML, logits_BRLC, precision=jax.lax.Precision.HIGHEST
    )
    if cfg.tagger != "crf":
      return logits_BRMC
    zeros, labels = nn.initializers.zeros, cfg.num_labels
    transitions = crf.Transitions(
      parameter("transitions", zeros, (labels, labels), ("labels", "next_labels")),
      parameter("start", zeros, (labels,), ("labels",)),
      parameter("end", zeros, (labels,), ("labels",)),
    )
    return ChainScores(logits_BRMC, crf.forbid_invalid_transitions(transitions))


class Gru(nn.Module):
  """A gated recurrent unit over each comment of packed rows (Cho et al. 2014).

  In the form of cuDNN and of Flax's `GRUCell`, whose state is reset between comments.

  Attributes:
    width: G.
    dtype: dtype of the products; the state is float32.
    reverse: whether it reads from a comment's last token to its first.
  """

  width: int
  dtype: jnp.dtype
  reverse: bool

  @nn.compact
  def __call__(self, x_BRLD: Array, segment_ids_BRL: Array) -> Array:
    """Returns its state at each token, `[B, R, L, G]`."""
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
  """Returns the target of each position that has a label, `[B, R, M]`; 0 of others."""
  targets_BRM = jnp.take_along_axis(
    batch["decoder_segment_ids"], batch["decoder_masked_positions"], axis=-1
  )
  return jnp.where(batch["decoder_loss_weights"] > 0, targets_BRM, 0)


def labels_of(config: ModelConfig, batch: Batch) -> Array:
  """Returns what is to be predicted, `[B, R, M]` int32.

  Labels of tokens are `crf.repair_iob2`, from any head.
  """
  labels_BRM = batch["decoder_target_tokens"]
  if config.head != "tagging":
    return labels_BRM
  return crf.repair_iob2(labels_BRM, chains_of(batch))


def chain_losses(
  scores: ChainScores, labels_BRM: Array, chains_BRM: Array
) -> TokenLosses:
  """Returns the losses of tokens, to each an even share of its chain's.

  Neither labels are smoothed nor is there a `z_loss`. Correct is what Viterbi's path
  has right.
  """
  nll_BRM = crf.negative_log_likelihoods(
    scores.emissions_BRMC, labels_BRM, chains_BRM, scores.transitions
  )
  path_BRM = crf.viterbi(scores.emissions_BRMC, chains_BRM, scores.transitions)
  return TokenLosses(
    loss=nll_BRM,
    nll=nll_BRM,
    z_loss=jnp.zeros_like(nll_BRM),
    correct=(path_BRM == labels_BRM).astype(jnp.float32),
  )


def best_labels(scores: Scores, chains_BRM: Array) -> Array:
  """Returns the likeliest labels `[B, R, M]`, of a chain those of its best path.

  0 where nothing is predicted.

  Args:
    scores: what the head returned.
    chains_BRM: see `chains_of`.
  """
  if isinstance(scores, ChainScores):
    return crf.viterbi(scores.emissions_BRMC, chains_BRM, scores.transitions)
  labels_BRM = jnp.argmax(cast(Array, scores), axis=-1).astype(jnp.int32)
  return jnp.where(chains_BRM > 0, labels_BRM, 0)


def probabilities(scores: Scores, chains_BRM: Array) -> Array:
  """Returns the probability of each label `[B, R, M, C]`, of a chain the marginals.

  0 where nothing is predicted; arguments as `best_labels`.
  """
  if isinstance(scores, ChainScores):
    return crf.marginals(scores.emissions_BRMC, chains_BRM, scores.transitions)
  probabilities_BRMC = jax.nn.softmax(cast(Array, scores), axis=-1)
  return jnp.where(chains_BRM[..., None] > 0, probabilities_BRMC, 0)


def class_weights_of(config: ModelConfig, batch: Batch) -> Array:
  """Returns the weight of each label `[B, R, M]`, as `ModelConfig.class_weights` has.

  A chain, whose loss is spread evenly over its tokens, so has their mean weight.
  """
  weights_C = jnp.asarray(config.class_weights, jnp.float32)
  return jnp.take(weights_C, labels_of(config, batch), mode="clip")
