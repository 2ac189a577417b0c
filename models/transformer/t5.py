"""The T5 1.1 family: pre-RMSNorm, relative position bias, gated GELU, no biases.

Raffel et al. 2020; parameter names as in T5X's T5 1.1.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorContext
from commentree.models.config import ModelConfig
from commentree.models.layers import (
  Array,
  Dense,
  RelativePositionBias,
  RMSNorm,
  look_up,
  parameter,
  project,
)
from commentree.models.transformer.attention import AncestorAttention, SelfAttention
from commentree.models.transformer.blocks import Block
from commentree.models.transformer.masked_rows import MaskedRows
from commentree.models.transformer.stacks import Family


class T5Embedder(nn.Module):
  """A table of vectors; positions are the attention's affair.

  With separate output weights T5's unit standard deviation is harmless: the loss
  still starts near ln V; so it does with logits by this table, see `t5_logits`.
  """

  config: ModelConfig

  def setup(self):
    """Declares the table."""
    cfg = self.config
    self.table_VD = parameter(
      "embedding",
      nn.initializers.normal(1.0),
      (cfg.vocab_size, cfg.emb_dim),
      ("vocab", "embed"),
    )

  def __call__(self, ids: Array, positions: Array, added: Array | None) -> Array:
    """Maps ids `[...]` to vectors `[..., D]`."""
    del positions
    x = look_up(self.table_VD, ids, jnp.dtype(self.config.dtype))
    return x if added is None else x + added

  def attend(self, x: Array) -> Array:
    """Returns the products of `x` `[..., D]` with the table, `[..., V]` float32."""
    return project(x, self.table_VD.T, jnp.float32)


def t5_logits(
  config: ModelConfig, x_BGMD: Array, embedder: T5Embedder, added_BGMD: Array | None
) -> Array:
  """Returns logits by weights of their own, as T5 1.1, or by the table, as T5 1.0."""
  if added_BGMD is not None:
    x_BGMD += added_BGMD
  if config.logits_via_embedding:
    return embedder.attend(x_BGMD) * config.emb_dim**-0.5
  return Dense(
    config.vocab_size,
    ("embed", "vocab"),
    jnp.dtype(config.dtype),
    output_dtype=jnp.float32,
    name="logits_dense",
  )(x_BGMD)


class _Block(Block):
  """Norms before each part, and nothing but the sum after it."""

  def norm(self, name: str) -> RMSNorm:
    return RMSNorm(jnp.dtype(self.config.dtype), name=name)


class T5EncoderBlock(_Block):
  """Self-attention and MLP, each normalized before and added after."""

  @nn.compact
  def __call__(self, x_RLD: Array, visible_RLL: Array, bias_HLL: Array | None) -> Array:
    """Returns the next layer's `x_RLD`."""
    attend = self.attention(SelfAttention, "attention")
    normed = self.norm("pre_attention_layer_norm")(x_RLD)
    x_RLD = self.add(x_RLD, attend(normed, visible_RLL, bias_HLL))
    return self.add(x_RLD, self.mlp()(self.norm("pre_mlp_layer_norm")(x_RLD)))


class T5DecoderBlock(_Block):
  """As the encoder's, with attention to the ancestors in between."""

  @nn.compact
  def __call__(
    self,
    x_RLD: Array,
    visible_RLL: Array,
    bias_HLL: Array | None,
    context: AncestorContext,
    masked: MaskedRows | None = None,
  ) -> Array:
    """Returns the next layer's `x_RLD`; that of `masked` tokens alone, `[W, L, D]`."""
    attend = self.attention(SelfAttention, "self_attention")
    normed = self.norm("pre_self_attention_layer_norm")(x_RLD)
    x_RLD = self.add(x_RLD, attend(normed, visible_RLL, bias_HLL))
    if masked is not None:
      x_RLD, context = masked.pick(x_RLD), masked.context
    look_up = self.attention(AncestorAttention, "encoder_decoder_attention")
    normed = self.norm("pre_cross_attention_layer_norm")(x_RLD)
    update_RLD = look_up(normed, context)
    diagnostics.note_update(self, x_RLD, update_RLD, context)
    x_RLD = self.add(x_RLD, update_RLD, masked)
    normed = self.norm("pre_mlp_layer_norm")(x_RLD)
    return self.add(x_RLD, self.mlp()(normed, masked), masked)


T5 = Family(
  embedder=T5Embedder,
  # Relative positions have no end.
  check_length=lambda config, length: None,
  encoder_block=T5EncoderBlock,
  decoder_block=T5DecoderBlock,
  position_bias=RelativePositionBias,
  final_norm=RMSNorm,
  logits=t5_logits,
)
