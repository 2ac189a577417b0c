"""What the network's scores come to, of whichever kind they are: logits and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import jax.numpy as jnp

from commentree.models.config import ModelConfig
from commentree.models.heads import heads, regression
from commentree.models.heads.heads import ChainScores, Scores
from commentree.models.heads.losses import TokenLosses, pointer_losses, token_losses
from commentree.models.heads.pointer import PointerScores
from commentree.models.layers import Array


def logits_of(scores: Scores) -> Array:
  """Returns logits `[B, G, M, C]`, copies counted; of chains the emissions."""
  if isinstance(scores, PointerScores):
    return scores.mixed()
  return scores.emissions_BGMC if isinstance(scores, ChainScores) else scores


def losses_of(
  config: ModelConfig, scores: Scores, batch: Mapping[str, Array]
) -> TokenLosses:
  """Returns the losses of a batch's masked tokens, labels or numbers, `[B, G, M]`.

  Args:
    config: the model's.
    scores: of the batch.
    batch: supplies the tokens, labels or numbers, and where chains are; its ancestors
      are the true ones, whatever the scores are given.
  """
  if config.head == "regression":
    return regression.losses_of(config, cast(Array, scores)[..., 0], batch)
  labels_BGM = heads.labels_of(config, batch)
  if isinstance(scores, ChainScores):
    return heads.chain_losses(scores, labels_BGM, heads.chains_of(batch))
  if isinstance(scores, PointerScores):
    return pointer_losses(
      scores,
      labels_BGM,
      z_loss=config.z_loss,
      logits_weight=config.pointer_logits_loss_weight,
    )
  return token_losses(
    scores,
    labels_BGM,
    label_smoothing=config.label_smoothing,
    z_loss=config.z_loss,
  )


def weights_of(config: ModelConfig, batch: Mapping[str, Array]) -> Array:
  """Returns the weights of these losses, `[B, G, M]`; those of classes left out."""
  if config.head == "regression":
    return regression.weights_of(config, batch)
  return batch["decoder_loss_weights"]


def predictions_of(
  scores: Scores, batch: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
  """Returns the likeliest labels `[B, G, M]`, and what is known of all.

  That is the log probabilities of those labels, `scores`, and `probabilities`
  `[B, G, M, C]`.
  """
  chains_BGM = heads.chains_of(batch)
  labels_BGM = heads.best_labels(scores, chains_BGM)
  probabilities_BGMC = heads.probabilities(scores, chains_BGM)
  chosen_BGM = jnp.take_along_axis(probabilities_BGMC, labels_BGM[..., None], axis=-1)[
    ..., 0
  ]
  tiny = jnp.finfo(jnp.float32).tiny
  return labels_BGM, {
    "scores": jnp.where(chains_BGM > 0, jnp.log(jnp.maximum(chosen_BGM, tiny)), 0),
    "probabilities": probabilities_BGMC,
  }
