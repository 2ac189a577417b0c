"""Which ancestors a target sees and what it knows of where they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorContext, ByTarget, Watched
from commentree.models.config import ModelConfig
from commentree.models.context.encoded import Encoded
from commentree.models.layers import Array, parameter

Batch = Mapping[str, Array]


class Ancestors(nn.Module):
  """Pooled vectors to the decoder's `AncestorContext`.

  By `ancestor_positions`, a target knows of an ancestor's place
    none: nothing.
    distance: by a learned vector per number of hops, added to the key and value.
    depth: by a learned vector per depth, added to the ancestor's vectors and to
      the target's own input, so that hops can be told as well.
    sinusoidal: likewise by sines and cosines of the depth (Vaswani et al. 2017).
    relative_bias: by a learned bias per head and number of hops, 0 at first.

  Distances and learned depths beyond `max_ancestor_distance` share its row.
  """

  config: ModelConfig

  def setup(self):
    """Declares the parameters of the chosen positions, and no others."""
    cfg = self.config
    width, rows = cfg.emb_dim, cfg.max_ancestor_distance + 1
    kind = cfg.ancestor_positions
    self.null_vector_D = parameter(
      "null_vector", nn.initializers.normal(1.0), (width,), ("embed",)
    )
    if kind == "relative_bias":
      self.distance_bias_HP = parameter(
        "distance_bias",
        nn.initializers.zeros,
        (cfg.num_heads, rows),
        ("heads", "ancestor_distance"),
      )
    if kind in ("distance", "depth"):
      # Small against the vectors it is added to, which have unit size.
      self.position_vectors_PD = parameter(
        f"{kind}_embedding",
        nn.initializers.normal(0.1),
        (rows, width),
        ("ancestor_distance", "embed"),
      )

  def depth_vectors(self, depths: Array) -> Array | None:
    """Returns `[..., D]` for depths `[...]`; None unless positions go by depth."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    if cfg.ancestor_positions == "depth":
      rows = jnp.clip(depths, 0, cfg.max_ancestor_distance)
      onehot = jax.nn.one_hot(rows, cfg.max_ancestor_distance + 1, dtype=dtype)
      return onehot @ self.position_vectors_PD.astype(dtype)
    if cfg.ancestor_positions == "sinusoidal":
      return sinusoids(depths, cfg.emb_dim).astype(dtype)
    return None

  def target_inputs(self, segment_ids_BN: Array, depths_BT: Array) -> Array | None:
    """Returns what to add to the decoder's input `[B, N, D]`, or None."""
    vectors_BTD = self.depth_vectors(depths_BT)
    if vectors_BTD is None:
      return None
    target_BNT = jax.nn.one_hot(
      segment_ids_BN - 1, depths_BT.shape[-1], dtype=vectors_BTD.dtype
    )
    return jnp.einsum("bnt,btd->bnd", target_BNT, vectors_BTD)

  def context(
    self, encoded: Encoded, segment_ids_BRL: Array, batch: Batch
  ) -> AncestorContext:
    """Builds what the target tokens attend to.

    Args:
      encoded: the comments.
      segment_ids_BRL: target of each decoder token from 1, 0 for padding; no target is
        in two rows.
      batch: supplies `ancestor_slots`, `ancestor_distances`, `encoder_slot_depths`.
    """
    cfg = self.config
    vectors_BEJD, used_BEJ = encoded.vectors_BEJD, encoded.used_BEJ
    dtype = vectors_BEJD.dtype
    batch_size, num_slots, per_comment, width = vectors_BEJD.shape
    segment_ids_BN = segment_ids_BRL.reshape(batch_size, -1)

    depth_vectors_BED = self.depth_vectors(batch["encoder_slot_depths"])
    if depth_vectors_BED is not None:
      vectors_BEJD += depth_vectors_BED[:, :, None]
    null_B1D = jnp.broadcast_to(
      self.null_vector_D.astype(dtype), (batch_size, 1, width)
    )
    vectors_BSD = jnp.concatenate(
      [null_B1D, vectors_BEJD.reshape(batch_size, -1, width)], axis=1
    )

    visible_BUE, distances_BUE = by_slot(batch, num_slots)
    visible_BUEJ = visible_BUE[..., None] & used_BEJ[:, None]
    visible_BUX = visible_BUEJ.reshape(*visible_BUE.shape[:2], -1)
    sees_none_BU1 = ~visible_BUX.any(-1, keepdims=True)
    visible_BUS = jnp.concatenate([sees_none_BU1, visible_BUX], axis=-1)
    visible_BNS = _of_tokens(visible_BUS, segment_ids_BN)

    watched = None
    if diagnostics.wanted(self):
      is_parent_BUE = visible_BUE & (distances_BUE == 1)
      is_parent_BUS = jnp.pad(
        jnp.repeat(is_parent_BUE, per_comment, axis=-1), ((0, 0), (0, 0), (1, 0))
      )
      watched = Watched(
        segment_ids_BN > 0,
        _of_tokens(is_parent_BUS & visible_BUS, segment_ids_BN),
      )
    by_target = ByTarget(
      visible_BUS, None, segment_ids_BRL.reshape(-1, segment_ids_BRL.shape[-1])
    )
    if cfg.ancestor_positions not in ("distance", "relative_bias"):
      return AncestorContext(
        vectors_BSD, visible_BNS, watched=watched, by_target=by_target
      )
    distances_BUE = jnp.clip(distances_BUE, 0, cfg.max_ancestor_distance)
    # The null vector has no distance.
    distances_BUS = jnp.pad(
      jnp.repeat(distances_BUE, per_comment, axis=-1),
      ((0, 0), (0, 0), (1, 0)),
      constant_values=-1,
    )
    if cfg.ancestor_positions == "distance":
      return AncestorContext(
        vectors_BSD,
        visible_BNS,
        distance_vectors_PD=self.position_vectors_PD.astype(dtype),
        distances_BNS=_of_tokens(distances_BUS, segment_ids_BN),
        watched=watched,
      )
    rows = cfg.max_ancestor_distance + 1
    bias_BHUS = jnp.einsum(
      "hp,busp->bhus",
      self.distance_bias_HP.astype(dtype),
      jax.nn.one_hot(distances_BUS, rows, dtype=dtype),
    )
    by_target = dataclasses.replace(by_target, bias_BHUS=bias_BHUS)
    return AncestorContext(
      vectors_BSD,
      visible_BNS,
      bias_BHNS=by_target.bias_of_tokens(),
      watched=watched,
      by_target=by_target,
    )


def sinusoids(depths: Array, width: int) -> Array:
  """Returns sines and cosines of `depths` `[...]` at `width` / 2 wavelengths each.

  Wavelengths run from 2 pi to 2 pi * 10,000 as for tokens in Vaswani et al. 2017.
  """
  half = (width + 1) // 2
  frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / max(half - 1, 1))
  angles = jnp.multiply.outer(
    depths.astype(jnp.float32), frequencies.astype(np.float32)
  )
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width]


def by_slot(batch: Batch, num_slots: int) -> tuple[Array, Array]:
  """Returns which slots hold ancestors of each target, and the hops to them.

  Both are `[B, U, E]`, by target id, 0 for padding, which has none.

  Args:
    batch: supplies `ancestor_slots` and `ancestor_distances`.
    num_slots: E.
  """
  # one_hot(-1) is all zeros: slot 0 stands for none.
  found_BTAE = jax.nn.one_hot(batch["ancestor_slots"] - 1, num_slots, dtype=jnp.bool_)
  visible_BTE = found_BTAE.any(-2)
  distances_BTA1 = batch["ancestor_distances"][..., None]
  distances_BTE = jnp.where(found_BTAE, distances_BTA1, 0).max(-2)
  padding = ((0, 0), (1, 0), (0, 0))
  return jnp.pad(visible_BTE, padding), jnp.pad(distances_BTE, padding)


def _of_tokens(per_target_BUS: Array, segment_ids_BN: Array) -> Array:
  """Returns each token's row of a table by target id, `[B, N, S]`."""
  return jax.vmap(lambda table_US, ids_N: table_US.at[ids_N].get(mode="clip"))(
    per_target_BUS, segment_ids_BN
  )
