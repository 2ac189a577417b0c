"""A transformer along the thread: what a comment says, given those above it.

Comments are encoded and pooled alone. With `num_thread_layers` their vectors attend to
those of their own ancestors before a target's decoder attends to them, so that the
vector of a short answer can tell what it answers. The encoder's own vectors, by which
replies are matched and comments embedded, stay what they are.

Who is above whom is read from the targets: of a target's ancestors, nearest first, each
is below all that follow. So a comment that a target answers sees what that target sees
beyond it. A comment that no target answers (context of a subtree, an earlier chunk)
sees what targets further down are shown of the thread above it. In threads longer than
`max_ancestors` that is less, at last the post alone. Conditions of evaluations change
all lists, so that with parents alone no comment knows its thread; ancestor dropout
changes those of some targets, whose parent may know it by another's.

Shapes as in `models`, and X vectors of an example: E * J.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from commentree.models.config import ModelConfig
from commentree.models.layers import (
  MASKED_SCORE,
  Array,
  LayerNorm,
  RMSNorm,
  constrain,
  parameter,
  small_normal,
)
from commentree.models.transformer.attention import Heads
from commentree.models.transformer.blocks import Block
from commentree.models.transformer.stacks import run_layers

Batch = Mapping[str, Array]


class ThreadTransformer(nn.Module):
  """Blocks of attention along threads and MLP; all start as the identity.

  Layers are never scanned: there are few, and they are small.
  """

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, vectors_BEJD: Array, used_BEJ: Array, batch: Batch) -> Array:
    """Returns vectors that know their threads, `[B, E, J, D]`; zero where unused.

    Args:
      vectors_BEJD: what comments are pooled to.
      used_BEJ: which of these hold anything.
      batch: supplies `ancestor_slots` and `encoder_slot_depths`.
    """
    cfg = self.config
    batch_size, num_slots, per_comment, width = vectors_BEJD.shape
    depths_BE = batch["encoder_slot_depths"]
    hops_BEE = depths_BE[:, :, None] - depths_BE[:, None]
    farthest = cfg.max_ancestor_distance
    bias_HP = parameter(
      "distance_bias",
      nn.initializers.zeros,
      (cfg.num_heads, farthest + 1),
      ("heads", "ancestor_distance"),
    )
    hops_BEEP = jax.nn.one_hot(jnp.clip(hops_BEE, 0, farthest), farthest + 1)
    bias_BHEE = jnp.einsum(
      "hp,befp->bhef", bias_HP, hops_BEEP, precision=jax.lax.Precision.HIGHEST
    )

    def of_vectors(values: Array) -> Array:
      """Repeats the last two axes, of slots, for the vectors of each."""
      for axis in (-2, -1):
        values = jnp.repeat(values, per_comment, axis=axis)
      return values

    same_1EE = jnp.eye(num_slots, dtype=jnp.bool_)[None]
    used_B1X = used_BEJ.reshape(batch_size, 1, -1)
    visible_BXX = of_vectors(above(batch, num_slots) | same_1EE) & used_B1X
    # What is unused sees itself, so that all is defined.
    visible_BXX |= jnp.eye(num_slots * per_comment, dtype=jnp.bool_)[None]
    x_BXD = run_layers(
      ThreadBlock,
      cfg.num_thread_layers,
      cfg,
      vectors_BEJD.reshape(batch_size, -1, width),
      visible_BXX,
      of_vectors(bias_BHEE),
      deterministic=self.deterministic,
      scan=False,
    )
    return jnp.where(used_BEJ[..., None], x_BXD.reshape(vectors_BEJD.shape), 0)


def above(batch: Batch, num_slots: int) -> Array:
  """Returns which slots are seen to be above which, `[B, E, E]`, a row for each.

  Args:
    batch: supplies `ancestor_slots`.
    num_slots: E.
  """
  # one_hot(-1) is all zeros: slot 0 stands for none.
  slots_BTAE = jax.nn.one_hot(batch["ancestor_slots"] - 1, num_slots)
  from_here_BTAE = jax.lax.cumsum(slots_BTAE, axis=2, reverse=True)
  beyond_BTAE = from_here_BTAE - slots_BTAE
  return jnp.einsum("btae,btaf->bef", slots_BTAE, beyond_BTAE) > 0


class ThreadBlock(Block):
  """Attention and MLP, each normalized before and added after, in either family.

  What is added begins as 0, which blocks that normalize sums would not leave alone.
  """

  @nn.compact
  def __call__(self, x_BXD: Array, visible_BXX: Array, bias_BHXX: Array) -> Array:
    """Returns the next layer's `x_BXD`."""
    roberta = self.config.family == "roberta"
    settings: dict[str, Any] = {"out_init": nn.initializers.zeros, "use_bias": roberta}
    if roberta:
      settings["kernel_init"] = small_normal
    attend = self.attention(
      ThreadAttention, "attention", divide_scores=roberta, **settings
    )
    normed = self.norm("pre_attention_layer_norm")(x_BXD)
    x_BXD = self.add(x_BXD, attend(normed, visible_BXX, bias_BHXX))
    normed = self.norm("pre_mlp_layer_norm")(x_BXD)
    return self.add(x_BXD, self.mlp(**settings)(normed))

  def norm(self, name: str) -> nn.Module:
    """Returns a norm of the family's kind."""
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    if cfg.family == "roberta":
      return LayerNorm(dtype, cfg.layer_norm_epsilon, name=name)
    return RMSNorm(dtype, name=name)


class ThreadAttention(Heads):
  """Attention of comments' vectors to each other."""

  @nn.compact
  def __call__(self, x_BXD: Array, visible_BXX: Array, bias_BHXX: Array) -> Array:
    """Attends where `visible_BXX`; returns `[B, X, D]`."""
    query, key, value = (
      constrain(
        self.split(self.projection(name)(x_BXD)), "batch", "length", "heads", "kv"
      )
      for name in ("query", "key", "value")
    )
    scores_BHXX = self.scores("bqhk,bxhk->bhqx", query, key) + bias_BHXX
    scores_BHXX = jnp.where(visible_BXX[:, None], scores_BHXX, MASKED_SCORE)
    return self.out(self.attend(scores_BHXX, value, None), x_BXD.shape[-1])
