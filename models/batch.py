"""The forest batch as the model sees it: feature names and ranks.

Integers are int32 and slot or target 0 means none. Positions count from 0 inside
each comment. An example of zeros (with `encoder_slot_depths` all -1) is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from commentree.errors import UserError
from commentree.models.layers import Array

FEATURE_AXES: dict[str, str] = {
  # Comments that some target can see, several to a row, none across two rows.
  "encoder_input_tokens": "BRL",
  "encoder_segment_ids": "BRL",
  "encoder_positions": "BRL",
  "encoder_slot_depths": "BE",
  # Targets with their masks, in rows of their own.
  "decoder_input_tokens": "BRL",
  "decoder_segment_ids": "BRL",
  "decoder_positions": "BRL",
  # Of G groups, each of as many rows side by side as if they were one: with one group,
  # positions are of the whole forest; with R, they are columns of the rows.
  "decoder_masked_positions": "BGM",
  "decoder_target_tokens": "BGM",
  "decoder_loss_weights": "BGM",
  # Who sees whom: slots of a target's ancestors, nearest first, and hops to them.
  "ancestor_slots": "BTA",
  "ancestor_distances": "BTA",
  "target_depths": "BT",
  # Number of the tree that a target is of, the same in all subtrees of a tree; 0 where
  # that is not known. Evaluations compare targets and add up losses by it.
  "target_trees": "BT",
}

# In a batch only where its data asks for them.
OPTIONAL_FEATURE_AXES: dict[str, str] = {
  # How many of a target's tokens, from its first, all of its tokens see; the others are
  # seen by themselves and by what comes after them. Without it all see all.
  "target_prefix_lengths": "BT",
  # Languages of tokens from 1, 0 for none: rows of the model's table of languages.
  "encoder_languages": "BRL",
  "decoder_languages": "BRL",
  # What is to be predicted of a target by the head 'regression', float32.
  "target_numbers": "BT",
}

# All others are int32.
FLOAT_FEATURES = ("decoder_loss_weights", "target_numbers")


def positions_in_comment(batch: Mapping[str, Array], side: str) -> Array:
  """Returns how many tokens of its comment stand before each token, `[B, R, L]`.

  Its position, but where a translation follows, in which positions begin anew.
  """
  if f"{side}_languages" not in batch:
    return batch[f"{side}_positions"]
  ids_BRL = batch[f"{side}_segment_ids"]
  columns_11L = jnp.arange(ids_BRL.shape[-1])[None, None]
  before_BRL = jnp.pad(ids_BRL[..., :-1], ((0, 0), (0, 0), (1, 0)))
  starts_BRL = jnp.where(ids_BRL != before_BRL, columns_11L, 0)
  return columns_11L - jax.lax.cummax(starts_BRL, axis=2)


def masked_targets(batch: Mapping[str, Array]) -> Array:
  """Returns the target of each masked position from 1, `[B, G, M]`; 0 for padding."""
  masked_BGM = batch["decoder_masked_positions"]
  targets_BRX = batch["decoder_segment_ids"].reshape(*masked_BGM.shape[:2], -1)
  return jnp.take_along_axis(targets_BRX, masked_BGM, axis=-1)


def check_shapes(shapes: Mapping[str, Sequence[int]]) -> None:
  """Raises UserError unless every forest feature is there with the right rank.

  Optional features may be missing.
  """
  missing = [name for name in FEATURE_AXES if name not in shapes]
  if missing:
    raise UserError(
      f"batch lacks {', '.join(missing)}: use commentree's feature converter"
    )
  for name, axes in {**FEATURE_AXES, **OPTIONAL_FEATURE_AXES}.items():
    if name in shapes and len(shapes[name]) != len(axes):
      raise UserError(
        f"batch feature {name} has shape {tuple(shapes[name])}: "
        f"must have {len(axes)} axes ({', '.join(axes)})"
      )


def smallest() -> dict[str, np.ndarray]:
  """Returns an empty forest with every axis of length 1, to initialise from."""
  return {
    name: np.zeros((1,) * len(axes), np.float32 if name in FLOAT_FEATURES else np.int32)
    for name, axes in FEATURE_AXES.items()
  }
