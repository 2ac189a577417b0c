"""Losses of the same tokens with other ancestors; the comments are encoded once.

With and without all of them; and how much each counts: it is hidden and the exact loss
computed again ("leave one out").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from commentree.models.conditions import apply_condition
from commentree.models.config import Condition
from commentree.models.context.encoded import Encoded
from commentree.models.heads import scored
from commentree.models.interface import PyTree
from commentree.models.layers import Array
from commentree.models.model import CommentTreeModel


def encode_once(
  model: CommentTreeModel, params: PyTree, batch: Mapping[str, Array]
) -> Encoded | None:
  """Returns what all losses of a batch have in common, however ancestors are hidden.

  None of a concatenated thread, which is another text without an ancestor.
  """
  if model.config.context == "concatenated":
    return None
  return model.encode(params, batch)


def losses_given(
  model: CommentTreeModel,
  params: PyTree,
  encoded: Encoded | None,
  batch: Mapping[str, Array],
) -> Array:
  """Returns the loss of each masked token of a batch, `[B, G, M]`, nats.

  Args:
    model: a model of tokens.
    params: its parameters.
    encoded: what `encode_once` returned.
    batch: the batch, which of its ancestors may be hidden.
  """
  if encoded is None:
    scores = model.module.apply({"params": params}, batch)
  else:
    scores = model.module.apply({"params": params}, encoded, batch, method="decode")
  return scored.losses_of(model.config, scores, batch).nll  # type: ignore[arg-type]


def losses_by_condition(
  model: CommentTreeModel,
  params: PyTree,
  encoded: Encoded | None,
  batch: Mapping[str, Array],
  conditions: Sequence[Condition],
) -> Array:
  """Returns the losses under conditions, `[X, B, G, M]`, nats.

  Args:
    model: a model of tokens.
    params: its parameters.
    encoded: what `encode_once` returned.
    batch: a batch of forests.
    conditions: any but "shuffled", for which other comments are encoded.
  """
  slots_XBTA = jnp.stack(
    [apply_condition(batch, condition)["ancestor_slots"] for condition in conditions]
  )
  return jax.lax.map(
    lambda slots_BTA: losses_given(
      model, params, encoded, {**batch, "ancestor_slots": slots_BTA}
    ),
    slots_XBTA,
  )


def leave_one_out(
  model: CommentTreeModel,
  params: PyTree,
  encoded: Encoded | None,
  batch: Mapping[str, Array],
  condition: Condition = "true",
) -> Array:
  """Returns the loss of each masked token without one ancestor, `[B, A, G, M]`, nats.

  By the ancestor's column in `ancestor_slots`; all chunks of a comment are hidden
  together. In columns that no target has an ancestor in the values mean nothing.

  With `num_thread_layers` an ancestor's vector knows those above it by all targets that
  see it; what comes out is exact where targets that share encoder slots have the same
  ancestors.

  Args:
    model: a model of tokens.
    params: its parameters.
    encoded: what `encode_once` returned.
    batch: a batch of forests.
    condition: which ancestors there are to leave out, as in `apply_condition`.
  """
  batch = apply_condition(batch, condition)

  def losses(column: Array) -> Array:
    return losses_given(model, params, encoded, without_ancestor(batch, column))

  slots_BTA = batch["ancestor_slots"]
  nothing_BGM = jnp.zeros(batch["decoder_loss_weights"].shape, jnp.float32)
  losses_ABGM = jax.lax.map(
    lambda column: jax.lax.cond(
      jnp.any(slots_BTA[..., column] > 0),
      losses,
      lambda _: nothing_BGM,
      column,
    ),
    jnp.arange(slots_BTA.shape[-1]),
  )
  return jnp.moveaxis(losses_ABGM, 0, 1)


def without_ancestor(batch: Mapping[str, Array], column: Array) -> dict[str, Array]:
  """Returns the batch with one ancestor of each target hidden, with all its chunks.

  Args:
    batch: a batch of forests.
    column: the ancestor's place in `ancestor_slots`; nothing is hidden of a target that
      has none there.
  """
  slots_BTA, hops_BTA = batch["ancestor_slots"], batch["ancestor_distances"]
  # Of one path, so that those as many hops up are chunks of the same comment.
  is_left_out_BTA = (hops_BTA == hops_BTA[..., column][..., None]) & (
    slots_BTA[..., column][..., None] > 0
  )
  return {**batch, "ancestor_slots": jnp.where(is_left_out_BTA, 0, slots_BTA)}
