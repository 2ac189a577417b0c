"""Where else in its thread a masked token occurs.

In the part of its own comment that the decoder reads, and in the ancestors that the
target sees: counted by comparing ids, with static shapes.

Shapes: B examples, T targets with A ancestors each, E encoder slots, N encoder tokens,
R rows of L tokens, in G groups of M masked tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from commentree.models.batch import masked_targets
from commentree.models.layers import Array
from commentree.models.network import of_target

Batch = Mapping[str, Array]

_TOKENS_AT_ONCE = 64


def in_own_comment(batch: Batch) -> tuple[Array, Array]:
  """Counts each masked token among the visible tokens of its comment.

  Visible is what is not masked; where a target is read in order, what is read up to the
  token.

  Returns:
    How often the token occurs there, and how many visible tokens there are, float32
    `[B, G, M]`.
  """
  positions_BGM = batch["decoder_masked_positions"]
  used_BGM = batch["decoder_loss_weights"] > 0
  length = batch["decoder_segment_ids"].shape[-1]
  rows_BGM = _row_of(batch)
  columns_BGM = positions_BGM % length

  def in_row_of(values_BRL: Array) -> Array:
    """Returns the row that each masked token is in, `[B, G, M, L]`."""
    return jax.vmap(lambda values_RL, rows_GM: values_RL[rows_GM])(values_BRL, rows_BGM)

  def set_masked(rows_GM: Array, columns_GM: Array, used_GM: Array) -> Array:
    zeros_RL = jnp.zeros(batch["decoder_segment_ids"].shape[1:], jnp.bool_)
    return zeros_RL.at[rows_GM, columns_GM].max(used_GM)

  is_read_BRL = ~jax.vmap(set_masked)(rows_BGM, columns_BGM, used_BGM)
  is_read_BGML = in_row_of(is_read_BRL)
  if "target_prefix_lengths" in batch:
    position_BGML = in_row_of(batch["decoder_positions"])
    own_position_BGM1 = jnp.take_along_axis(
      position_BGML, columns_BGM[..., None], axis=-1
    )
    earlier_BGML = position_BGML <= own_position_BGM1
    prefix_BGM = of_target(batch["target_prefix_lengths"], masked_targets(batch))
    in_prefix_BGML = position_BGML < prefix_BGM[..., None]
    is_read_BGML = jnp.where(in_prefix_BGML, is_read_BGML, earlier_BGML)
  own_BGM = masked_targets(batch)
  visible_BGML = (
    in_row_of(batch["decoder_segment_ids"]) == own_BGM[..., None]
  ) & is_read_BGML
  is_it_BGML = (
    in_row_of(batch["decoder_input_tokens"])
    == batch["decoder_target_tokens"][..., None]
  )
  times_BGM = jnp.sum(visible_BGML & is_it_BGML, axis=-1, dtype=jnp.float32)
  return times_BGM, jnp.sum(visible_BGML, axis=-1, dtype=jnp.float32)


def _row_of(batch: Batch) -> Array:
  """Returns the row of each masked token, `[B, G, M]`."""
  _, rows, length = batch["decoder_segment_ids"].shape
  positions_BGM = batch["decoder_masked_positions"]
  groups = positions_BGM.shape[1]
  firsts_1G1 = (jnp.arange(groups) * (rows // groups))[None, :, None]
  return firsts_1G1 + positions_BGM // length


def in_ancestors(batch: Batch) -> tuple[Array, Array]:
  """Counts each masked token among the tokens of the ancestors that its target sees.

  Returns:
    How often the token occurs there in what the encoder reads, and how many tokens that
    is, float32 `[B, G, M]`.
  """
  num_slots = batch["encoder_slot_depths"].shape[-1]

  def in_example(slots_TA, targets_GM, wanted_GM, ids_RL, tokens_RL):
    sees_TE = jax.nn.one_hot(slots_TA - 1, num_slots).max(axis=1)
    of_slot_NE = jax.nn.one_hot(ids_RL.reshape(-1) - 1, num_slots)
    # Sums of ones, which are exact at any precision of the product's factors.
    tokens_T = jnp.sum(sees_TE * of_slot_NE.sum(axis=0)[None], axis=-1)

    def of_token(token):
      target, wanted = token
      is_it_N = wanted == tokens_RL.reshape(-1)
      times_E = is_it_N.astype(jnp.float32) @ of_slot_NE
      of = jnp.maximum(target - 1, 0)
      times = jnp.sum(times_E * sees_TE[of])
      return jnp.where(target > 0, times, 0), jnp.where(target > 0, tokens_T[of], 0)

    flat = (targets_GM.reshape(-1), wanted_GM.reshape(-1))
    # Some at a time, for the memory that all comparisons would take.
    found = jax.lax.map(of_token, flat, batch_size=_TOKENS_AT_ONCE)
    return tuple(values.reshape(targets_GM.shape) for values in found)

  return jax.vmap(in_example)(
    batch["ancestor_slots"],
    masked_targets(batch),
    batch["decoder_target_tokens"],
    batch["encoder_segment_ids"],
    batch["encoder_input_tokens"],
  )
