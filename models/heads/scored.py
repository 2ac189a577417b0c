"""What the network's scores come to, of whichever kind they are: logits and losses."""

from __future__ import annotations

from collections.abc import Mapping

from commentree.models.config import ModelConfig
from commentree.models.heads import heads
from commentree.models.heads.heads import ChainScores, Scores
from commentree.models.heads.losses import TokenLosses, pointer_losses, token_losses
from commentree.models.heads.pointer import PointerScores
from commentree.models.layers import Array


def logits_of(scores: Scores) -> Array:
  """Returns logits `[B, R, M, C]`, copies counted; of chains the emissions."""
  if isinstance(scores, PointerScores):
    return scores.mixed()
  return scores.emissions_BRMC if isinstance(scores, ChainScores) else scores


def losses_of(
  config: ModelConfig, scores: Scores, batch: Mapping[str, Array]
) -> TokenLosses:
  """Returns the losses of a batch's masked tokens, or labels, `[B, R, M]`.

  Args:
    config: the model's.
    scores: of the batch.
    batch: supplies the tokens, or labels, and where chains are.
  """
  labels_BRM = heads.labels_of(config, batch)
  if isinstance(scores, ChainScores):
    return heads.chain_losses(scores, labels_BRM, heads.chains_of(batch))
  if isinstance(scores, PointerScores):
    return pointer_losses(
      scores,
      labels_BRM,
      z_loss=config.z_loss,
      logits_weight=config.pointer_logits_loss_weight,
    )
  return token_losses(
    scores,
    labels_BRM,
    label_smoothing=config.label_smoothing,
    z_loss=config.z_loss,
  )
