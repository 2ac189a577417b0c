"""Tokens of each target's thread, in place of pooled vectors or beside them.

With `ModelConfig.context = "concatenated"`, the usual alternative to pooled comments,
the encoder reads, for each target, the tokens of its ancestors as one sequence, the
nearest ancestor first, cut after `max_context_tokens`; the decoder's cross-attention
sees all of their states in place of pooled vectors. A comment is encoded once for each
target below it. Batches are the same: who sees whom is read from them, and changes of
`ancestor_slots` change threads.

With `nearest_context_tokens` comments are encoded once and pooled, and the decoder sees
the states of so many tokens of a target's nearest ancestors beside the vectors of all
of its ancestors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorContext, Watched
from commentree.models.context.ancestors import Ancestors
from commentree.models.context.encoded import Encoded
from commentree.models.layers import Array
from commentree.models.transformer.query_groups import QueryGroups

Batch = Mapping[str, Array]


class Thread(NamedTuple):
  """Where the tokens of each target's thread come from.

  Attributes:
    ancestor_BTC: which of the target's ancestors a token is of, an index into
      `ancestor_slots`; 0 where there is no token.
    token_BTC: index of the token among all of the encoder's rows; likewise.
    in_use_BTC: where there is a token.
  """

  ancestor_BTC: Array
  token_BTC: Array
  in_use_BTC: Array


def find(batch: Batch, length: int) -> Thread:
  """Finds the first `length` tokens of each target's ancestors, nearest first."""
  slots_BTA = batch["ancestor_slots"]
  batch_size = len(slots_BTA)
  starts_BE, sizes_BE = _spans(batch)

  def of_ancestors(values_BE: Array) -> Array:
    flat = slots_BTA.reshape(batch_size, -1)
    found = jnp.take_along_axis(values_BE, jnp.maximum(flat - 1, 0), axis=1)
    return jnp.where(flat > 0, found, 0).reshape(slots_BTA.shape)

  sizes_BTA = of_ancestors(sizes_BE)
  ends_BTA = jnp.cumsum(sizes_BTA, axis=-1)
  columns_111C = jnp.arange(length)[None, None, None]
  passed_BTC = (ends_BTA[..., None] <= columns_111C).sum(2, dtype=jnp.int32)
  in_use_BTC = passed_BTC < slots_BTA.shape[-1]
  ancestor_BTC = jnp.where(in_use_BTC, passed_BTC, 0)
  # Where in the encoder's rows column 0 would be, if the thread were this ancestor.
  origins_BTA = of_ancestors(starts_BE) - (ends_BTA - sizes_BTA)
  token_BTC = jnp.take_along_axis(origins_BTA, ancestor_BTC, axis=-1) + columns_111C[0]
  return Thread(ancestor_BTC, jnp.where(in_use_BTC, token_BTC, 0), in_use_BTC)


def _spans(batch: Batch) -> tuple[Array, Array]:
  """Returns where each slot's comment begins in the rows, and its tokens, `[B, E]`."""
  slots_BRL = batch["encoder_segment_ids"]
  num_slots = batch["encoder_slot_depths"].shape[-1]
  slots_B1M = slots_BRL.reshape(len(slots_BRL), 1, -1)
  inside_BEM = slots_B1M == jnp.arange(1, num_slots + 1)[None, :, None]
  starts_BE = jnp.argmax(inside_BEM, axis=-1).astype(jnp.int32)
  return starts_BE, inside_BEM.sum(-1, dtype=jnp.int32)


def as_rows(batch: Batch, length: int) -> dict[str, Array]:
  """Returns the encoder's features with a row for each target, its thread.

  Args:
    batch: a batch of forests.
    length: tokens of a thread, C.

  Returns:
    `encoder_input_tokens`, `encoder_segment_ids` (1 where there is a token),
    `encoder_positions`, and `encoder_languages` if the batch has them, `[B, T, C]`.
  """
  thread = find(batch, length)
  names = [
    name for name in ("encoder_input_tokens", "encoder_languages") if name in batch
  ]
  rows = {
    name: jnp.where(thread.in_use_BTC, _pick(batch[name], thread.token_BTC), 0)
    for name in names
  }
  positions_BTC = jnp.broadcast_to(
    jnp.arange(length, dtype=jnp.int32)[None, None], thread.in_use_BTC.shape
  )
  return {
    **rows,
    "encoder_segment_ids": thread.in_use_BTC.astype(jnp.int32),
    "encoder_positions": positions_BTC,
  }


class ThreadTokens(NamedTuple):
  """What is known of each token of a target's thread, `[B, T, C]`.

  Attributes:
    ids_BTC: token ids.
    distances_BTC: hops to the ancestor that the token is of.
    in_use_BTC: where there is a token.
  """

  ids_BTC: Array
  distances_BTC: Array
  in_use_BTC: Array


def read_threads(batch: Batch, length: int) -> ThreadTokens:
  """Returns the first `length` tokens of each target's ancestors, nearest first."""
  thread = find(batch, length)
  return ThreadTokens(
    _pick(batch["encoder_input_tokens"], thread.token_BTC),
    jnp.take_along_axis(batch["ancestor_distances"], thread.ancestor_BTC, axis=-1),
    thread.in_use_BTC,
  )


def _pick(values: Array, index: Array) -> Array:
  """Returns values `[B, ...]` at an index into all of an example's, of its shape."""
  batch_size = len(index)
  return jnp.take_along_axis(
    values.reshape(batch_size, -1), index.reshape(batch_size, -1), axis=1
  ).reshape(index.shape)


class OwnKeys(NamedTuple):
  """What each target attends to, as keys of its own.

  Attributes:
    vectors_BTCD: what the keys are made of.
    used_BTC: which of them hold anything.
    ancestor_BTC: which of the target's ancestors each is of, an index into
      `ancestor_slots`.
  """

  vectors_BTCD: Array
  used_BTC: Array
  ancestor_BTC: Array


def thread_keys(encoded: Encoded, batch: Batch) -> OwnKeys:
  """Returns the states of threads that were read as one text."""
  thread = find(batch, encoded.used_BEJ.shape[-1])
  return OwnKeys(encoded.vectors_BEJD, encoded.used_BEJ, thread.ancestor_BTC)


def nearest_keys(encoded: Encoded, batch: Batch, length: int) -> OwnKeys:
  """Returns all ancestors' pooled vectors and the states of the nearest tokens.

  Args:
    encoded: the comments.
    batch: the batch.
    length: tokens of each target's thread whose states it sees.
  """
  slots_BTA = batch["ancestor_slots"]
  batch_size, targets, ancestors = slots_BTA.shape
  _, slots, _, width = encoded.vectors_BEJD.shape
  # A product, not a gather: vectors have a gradient.
  slots_BTAE = jax.nn.one_hot(slots_BTA - 1, slots, dtype=encoded.vectors_BEJD.dtype)
  vectors_BTAJD = jnp.einsum("btae,bejd->btajd", slots_BTAE, encoded.vectors_BEJD)
  used_BTAJ = jnp.einsum("btae,bej->btaj", slots_BTAE, encoded.used_BEJ) > 0
  ancestor_A1 = jnp.arange(ancestors, dtype=jnp.int32)[:, None]
  ancestor_BTAJ = jnp.broadcast_to(ancestor_A1, used_BTAJ.shape)

  thread = find(batch, length)
  token_BM1 = thread.token_BTC.reshape(batch_size, -1, 1)
  states_BMD = jnp.take_along_axis(encoded.states_BND, token_BM1, axis=1)
  whole = (batch_size, targets, -1)
  return OwnKeys(
    jnp.concatenate(
      [
        vectors_BTAJD.reshape(*whole, width),
        states_BMD.reshape(batch_size, targets, length, width),
      ],
      axis=2,
    ),
    jnp.concatenate([used_BTAJ.reshape(whole), thread.in_use_BTC], axis=2),
    jnp.concatenate([ancestor_BTAJ.reshape(whole), thread.ancestor_BTC], axis=2),
  )


class ThreadAncestors(Ancestors):
  """What each target attends to, with keys of its own, as an `AncestorContext`.

  Parameters, and what a target knows of an ancestor's place, are those of `Ancestors`:
  each token stands where its comment does.
  """

  def context(
    self, encoded: Encoded, segment_ids_BRL: Array, batch: Batch
  ) -> AncestorContext:
    """Builds what the target tokens attend to.

    Args:
      encoded: the threads, or the comments.
      segment_ids_BRL: as `Ancestors.context`, each target's tokens one after another.
      batch: supplies `ancestor_slots`, `ancestor_distances`, `encoder_slot_depths` and
        the encoder's rows.
    """
    cfg = self.config
    if cfg.context == "concatenated":
      keys = thread_keys(encoded, batch)
    else:
      keys = nearest_keys(encoded, batch, cfg.nearest_context_tokens)
    vectors_BTCD, used_BTC, ancestor_BTC = keys
    dtype = vectors_BTCD.dtype
    batch_size, targets, length, width = vectors_BTCD.shape

    def of_tokens(values_BTA: Array) -> Array:
      return jnp.take_along_axis(values_BTA, ancestor_BTC, axis=-1)

    slots_BTC = of_tokens(batch["ancestor_slots"])
    depths_BTC = _pick(batch["encoder_slot_depths"], jnp.maximum(slots_BTC - 1, 0))
    depth_vectors = self.depth_vectors(depths_BTC)
    if depth_vectors is not None:
      vectors_BTCD += depth_vectors
    distances_BTC = of_tokens(batch["ancestor_distances"])
    hops_BTC = jnp.clip(distances_BTC, 0, cfg.max_ancestor_distance)
    onehot_BTCP = jax.nn.one_hot(hops_BTC, cfg.max_ancestor_distance + 1, dtype=dtype)
    if cfg.ancestor_positions == "distance":
      vectors_BTCD += onehot_BTCP @ self.position_vectors_PD.astype(dtype)

    null_X1D = jnp.broadcast_to(
      self.null_vector_D.astype(dtype), (batch_size * targets, 1, width)
    )
    vectors_XSD = jnp.concatenate(
      [null_X1D, vectors_BTCD.reshape(-1, length, width)], axis=1
    )
    used_XC = used_BTC.reshape(-1, length)
    used_XS = jnp.concatenate([~used_XC.any(-1, keepdims=True), used_XC], axis=-1)

    groups = _groups(segment_ids_BRL, targets)
    is_token_XL = groups.token_BTL.reshape(-1, segment_ids_BRL.shape[-1]) >= 0
    visible_XLS = is_token_XL[..., None] & used_XS[:, None]
    watched = None
    if diagnostics.wanted(self):
      of_parent_XC = used_XC & (distances_BTC == 1).reshape(-1, length)
      of_parent_XS = jnp.pad(of_parent_XC, ((0, 0), (1, 0)))
      watched = Watched(is_token_XL, visible_XLS & of_parent_XS[:, None])
    bias_XH1S = None
    if cfg.ancestor_positions == "relative_bias":
      bias_XHC = jnp.einsum(
        "hp,xcp->xhc",
        self.distance_bias_HP.astype(dtype),
        onehot_BTCP.reshape(-1, *onehot_BTCP.shape[2:]),
      )
      # The null vector has no distance.
      bias_XH1S = jnp.pad(bias_XHC, ((0, 0), (0, 0), (1, 0)))[:, :, None]
    return AncestorContext(
      vectors_XSD, visible_XLS, bias_BHNS=bias_XH1S, watched=watched, groups=groups
    )


def _groups(segment_ids_BRL: Array, targets: int) -> QueryGroups:
  """Finds the tokens of each target, which are side by side in one row."""
  batch_size, _, length = segment_ids_BRL.shape
  segment_ids_BN = segment_ids_BRL.reshape(batch_size, -1)
  is_of_BTN = segment_ids_BN[:, None] == jnp.arange(1, targets + 1)[None, :, None]
  starts_BT = jnp.argmax(is_of_BTN, axis=-1).astype(jnp.int32)
  counts_BT = is_of_BTN.sum(-1, dtype=jnp.int32)
  columns_11L = jnp.arange(length, dtype=jnp.int32)[None, None]
  token_BTL = jnp.where(
    columns_11L < counts_BT[..., None], starts_BT[..., None] + columns_11L, -1
  )
  target_BN = jnp.maximum(segment_ids_BN - 1, 0)
  column_BN = jnp.arange(segment_ids_BN.shape[-1], dtype=jnp.int32)[None]
  column_BN -= jnp.take_along_axis(starts_BT, target_BN, axis=1)
  place_BN = jnp.where(segment_ids_BN > 0, target_BN * length + column_BN, -1)
  return QueryGroups(token_BTL, place_BN)
