"""The T5 1.1 family: pre-RMSNorm, relative position bias, gated GELU, no biases.

Raffel et al. 2020; parameter names as in T5X's T5 1.1.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from .attention import AncestorAttention, AncestorContext, SelfAttention
from .config import ModelConfig
from .layers import Array, Mlp, RelativePositionBias, RMSNorm, constrain, dropout
from .stacks import Family


class _Block(nn.Module):
  """Parts of an encoder or decoder block; fields as in `stacks.Family`."""

  config: ModelConfig
  deterministic: bool

  def norm(self, name: str) -> RMSNorm:
    return RMSNorm(jnp.dtype(self.config.dtype), name=name)

  def attention(
    self, kind: type[SelfAttention] | type[AncestorAttention], name: str
  ) -> nn.Module:
    cfg = self.config
    return kind(
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      dropout_rate=cfg.dropout_rate,
      deterministic=self.deterministic,
      dtype=jnp.dtype(cfg.dtype),
      name=name,
    )

  def mlp(self) -> Mlp:
    cfg = self.config
    return Mlp(
      width=cfg.mlp_dim,
      activations=cfg.mlp_activations,
      dropout_rate=cfg.dropout_rate,
      deterministic=self.deterministic,
      dtype=jnp.dtype(cfg.dtype),
      name="mlp",
    )

  def add(self, x_RLD: Array, update_RLD: Array) -> Array:
    """The residual connection, with dropout on what is added."""
    drop = dropout(self.config.dropout_rate, self.deterministic)
    return constrain(x_RLD + drop(update_RLD), "batch", "length", "embed")


class T5EncoderBlock(_Block):
  """Self-attention and MLP, each normalized before and added after."""

  @nn.compact
  def __call__(self, x_RLD: Array, visible_RLL: Array, bias_HLL: Array) -> Array:
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
    bias_HLL: Array,
    context: AncestorContext,
  ) -> Array:
    """Returns the next layer's `x_RLD`."""
    attend = self.attention(SelfAttention, "self_attention")
    normed = self.norm("pre_self_attention_layer_norm")(x_RLD)
    x_RLD = self.add(x_RLD, attend(normed, visible_RLL, bias_HLL))
    look_up = self.attention(AncestorAttention, "encoder_decoder_attention")
    normed = self.norm("pre_cross_attention_layer_norm")(x_RLD)
    x_RLD = self.add(x_RLD, look_up(normed, context))
    return self.add(x_RLD, self.mlp()(self.norm("pre_mlp_layer_norm")(x_RLD)))


T5 = Family(
  encoder_block=T5EncoderBlock,
  decoder_block=T5DecoderBlock,
  position_bias=RelativePositionBias,
  final_norm=RMSNorm,
)
