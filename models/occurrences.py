"""Where else in its thread a masked token occurs.

In the part of its own comment that the decoder reads, and in the ancestors that the
target sees: counted by comparing ids, with static shapes.

Shapes: B examples, T targets with A ancestors each, E encoder slots, N encoder tokens,
R rows of L tokens, M masked tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from commentree.models.batch import masked_targets
from commentree.models.layers import Array
from commentree.models.network import of_target

Batch = Mapping[str, Array]


def in_own_comment(batch: Batch) -> tuple[Array, Array]:
  """Counts each masked token among the visible tokens of its comment.

  Visible is what is not masked; where a target is read in order, what is read up to the
  token.

  Returns:
    How often the token occurs there, and how many visible tokens there are, float32
    `[B, R, M]`.
  """
  segments_BRL = batch["decoder_segment_ids"]
  positions_BRL = batch["decoder_positions"]
  columns_BRM = batch["decoder_masked_positions"]
  used_BRM = batch["decoder_loss_weights"] > 0
  columns_111L = jnp.arange(segments_BRL.shape[-1])[None, None, None]
  is_masked_BRL = jnp.any(
    (columns_BRM[..., None] == columns_111L) & used_BRM[..., None], axis=-2
  )
  is_read_BRML = ~is_masked_BRL[..., None, :]
  if "target_prefix_lengths" in batch:
    prefix_BRL = of_target(batch["target_prefix_lengths"], segments_BRL)
    position_BRM = jnp.take_along_axis(positions_BRL, columns_BRM, axis=-1)
    earlier_BRML = positions_BRL[..., None, :] <= position_BRM[..., None]
    in_prefix_BRL = positions_BRL < prefix_BRL
    is_read_BRML = jnp.where(in_prefix_BRL[..., None, :], is_read_BRML, earlier_BRML)
  own_BRM = masked_targets(batch)
  visible_BRML = (segments_BRL[..., None, :] == own_BRM[..., None]) & is_read_BRML
  is_it_BRML = (
    batch["decoder_input_tokens"][..., None, :]
    == batch["decoder_target_tokens"][..., None]
  )
  times_BRM = jnp.sum(visible_BRML & is_it_BRML, axis=-1, dtype=jnp.float32)
  return times_BRM, jnp.sum(visible_BRML, axis=-1, dtype=jnp.float32)


def in_ancestors(batch: Batch) -> tuple[Array, Array]:
  """Counts each masked token among the tokens of the ancestors that its target sees.

  Returns:
    How often the token occurs there in what the encoder reads, and how many tokens that
    is, float32 `[B, R, M]`.
  """
  num_slots = batch["encoder_slot_depths"].shape[-1]

  def in_example(slots_TA, targets_RM, wanted_RM, ids_RL, tokens_RL):
    sees_TE = jax.nn.one_hot(slots_TA - 1, num_slots).max(axis=1)
    of_slot_NE = jax.nn.one_hot(ids_RL.reshape(-1) - 1, num_slots)
    # Sums of ones, which are exact at any precision of the product's factors.
    tokens_T = jnp.sum(sees_TE * of_slot_NE.sum(axis=0)[None], axis=-1)

    def in_row(row):
      targets_M, wanted_M = row
      is_it_MN = wanted_M[:, None] == tokens_RL.reshape(1, -1)
      times_ME = is_it_MN.astype(jnp.float32) @ of_slot_NE
      of_M = jnp.maximum(targets_M - 1, 0)
      used_M = targets_M > 0
      times_M = jnp.sum(times_ME * sees_TE[of_M], axis=-1)
      return jnp.where(used_M, times_M, 0), jnp.where(used_M, tokens_T[of_M], 0)

    return jax.lax.map(in_row, (targets_RM, wanted_RM))

  return jax.vmap(in_example)(
    batch["ancestor_slots"],
    masked_targets(batch),
    batch["decoder_target_tokens"],
    batch["encoder_segment_ids"],
    batch["encoder_input_tokens"],
  )
