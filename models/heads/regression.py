"""Regression and ranking: a number for each comment, from its states.

The head is a classifier's with one output, s. A comment's number y stands in
`target_numbers`, by its target. `ModelConfig.regression_loss` says what is minimized:

  squared  (s - y)^2 of each comment
  ranking  log(1 + exp(s_j - s_i)), for y_i > y_j, of each pair of replies to the same
           comment in a forest (RankNet; Burges et al. 2005, "Learning to Rank using
           Gradient Descent"). A comment's loss is the mean over the pairs that it is
           in, so that all comments count the same; it has no weight without a pair.

T are the targets of a forest.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from commentree.models.batch import masked_targets
from commentree.models.config import ModelConfig
from commentree.models.heads.losses import TokenLosses
from commentree.models.layers import Array

Batch = Mapping[str, Array]


def losses_of(config: ModelConfig, predicted_BGM: Array, batch: Batch) -> TokenLosses:
  """Returns the losses of comments, `[B, G, M]`, at their positions."""
  if config.regression_loss == "ranking":
    loss_BT, _ = _ranking(predicted_BGM, batch)
    loss_BGM = _at_positions(loss_BT, batch)
  else:
    loss_BGM = jnp.square(predicted_BGM - _numbers(batch))
  return TokenLosses(loss_BGM, loss_BGM, jnp.zeros_like(loss_BGM), correct=None)


def weights_of(config: ModelConfig, batch: Batch) -> Array:
  """Returns the weights of these losses, `[B, G, M]`."""
  weights_BGM = batch["decoder_loss_weights"]
  if config.regression_loss != "ranking":
    return weights_BGM
  # Of numbers alone: which pairs there are does not depend on what is predicted.
  _, pairs_BT = _ranking(jnp.zeros_like(weights_BGM), batch)
  in_pair_BT = (pairs_BT > 0).astype(jnp.float32)
  return weights_BGM * _at_positions(in_pair_BT, batch)


def sums_of(
  config: ModelConfig, predicted_BGM: Array, batch: Batch
) -> dict[str, Array]:
  """Returns sums over a batch that measures of all batches are made of.

  Those are `numbers`, how many there are, the sums of what is `predicted`, of what is
  `there`, of their squares and products, `pairs` of replies to the same comment that
  have other numbers, and how many of them are in the `right` order, ties half. With
  squared errors also the sum of those.
  """
  used_BGM = (batch["decoder_loss_weights"] > 0).astype(jnp.float32)
  there_BGM = _numbers(batch)
  s_BT, better_BTT = _by_target(predicted_BGM, batch), _better(batch)
  order_BTT = jnp.sign(s_BT[:, :, None] - s_BT[:, None, :])
  found = {
    "numbers": used_BGM,
    "predicted": used_BGM * predicted_BGM,
    "there": used_BGM * there_BGM,
    "predicted_squares": used_BGM * jnp.square(predicted_BGM),
    "there_squares": used_BGM * jnp.square(there_BGM),
    "products": used_BGM * predicted_BGM * there_BGM,
    "pairs": better_BTT,
    "right": better_BTT * (1 + order_BTT) / 2,
  }
  if config.regression_loss == "squared":
    found["squared_errors"] = used_BGM * jnp.square(predicted_BGM - there_BGM)
  return {name: jnp.sum(values) for name, values in found.items()}


def _ranking(s_BGM: Array, batch: Batch) -> tuple[Array, Array]:
  """Returns each comment's mean loss over its pairs and their number, `[B, T]`."""
  s_BT, better_BTT = _by_target(s_BGM, batch), _better(batch)
  loss_BTT = better_BTT * jax.nn.softplus(s_BT[:, None, :] - s_BT[:, :, None])
  pairs_BT = better_BTT.sum(-1) + better_BTT.sum(-2)
  total_BT = loss_BTT.sum(-1) + loss_BTT.sum(-2)
  return total_BT / jnp.maximum(pairs_BT, 1), pairs_BT


def _better(batch: Batch) -> Array:
  """Returns 1 where i has a larger number than j, which answers the same comment.

  Float32 `[B, T, T]` by i and j; comments without a number are in no pair. What is
  answered is known by its slot; a post without text, which has none, by the tree.
  """
  parent_BT = batch["ancestor_slots"][..., 0]
  depth_BT = batch["target_depths"]
  is_reply_BT = (batch["ancestor_distances"][..., 0] == 1) & (parent_BT > 0)
  is_reply_BT |= (depth_BT == 1) & (parent_BT == 0)
  same_BTT = is_reply_BT[:, :, None] & is_reply_BT[:, None, :]
  for key_BT in (parent_BT, depth_BT, batch["target_trees"]):
    same_BTT &= key_BT[:, :, None] == key_BT[:, None, :]
  known_BT = _by_target(batch["decoder_loss_weights"], batch) > 0
  same_BTT &= known_BT[:, :, None] & known_BT[:, None, :]
  y_BT = batch["target_numbers"]
  return (same_BTT & (y_BT[:, :, None] > y_BT[:, None, :])).astype(jnp.float32)


def _numbers(batch: Batch) -> Array:
  """Returns the number at each position, `[B, G, M]`."""
  return _at_positions(batch["target_numbers"], batch)


def _at_positions(values_BT: Array, batch: Batch) -> Array:
  """Returns the value of each position's target, `[B, G, M]`; any for padding."""
  targets_BGM = masked_targets(batch)
  at_BX = jnp.maximum(targets_BGM - 1, 0).reshape(len(targets_BGM), -1)
  return jnp.take_along_axis(values_BT, at_BX, axis=1).reshape(targets_BGM.shape)


def _by_target(values_BGM: Array, batch: Batch) -> Array:
  """Returns the value at each target's position, `[B, T]`; 0 for those without one."""
  targets_BGM = jnp.where(batch["decoder_loss_weights"] > 0, masked_targets(batch), 0)
  num_targets = batch["target_numbers"].shape[-1]
  of_target_BGMT = jax.nn.one_hot(targets_BGM - 1, num_targets)
  return jnp.sum(values_BGM[..., None] * of_target_BGMT, axis=(1, 2))
