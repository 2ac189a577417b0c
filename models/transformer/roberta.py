"""The family of RoBERTa and BERT: LayerNorm after sums, learned positions, biases.

Devlin et al. 2019, Liu et al. 2019. Parameters are named as T5's where they have a
counterpart. The decoder's blocks are the encoder's, with attention to the ancestors
added before the norm of self-attention; or, by a setting, those of Hugging Face's
`RobertaLayer` with cross-attention, which has a norm of its own.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from commentree.errors import UserError
from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorContext
from commentree.models.config import ModelConfig
from commentree.models.layers import (
  ACTIVATIONS,
  Array,
  Dense,
  LayerNorm,
  add_bias,
  constrain,
  look_up,
  parameter,
  project,
  small_normal,
)
from commentree.models.transformer.attention import AncestorAttention, SelfAttention
from commentree.models.transformer.blocks import Block
from commentree.models.transformer.masked_rows import MaskedRows
from commentree.models.transformer.mlp import Mlp
from commentree.models.transformer.stacks import Family


class RobertaEmbedder(nn.Module):
  """Token, position and type vectors, summed and normalized.

  Both stacks share it, and the logits its table of tokens.
  """

  config: ModelConfig

  def setup(self):
    """Declares the tables and the norm."""
    cfg = self.config
    width = cfg.emb_dim
    self.table_VD = parameter(
      "embedding", small_normal, (cfg.vocab_size, width), ("vocab", "embed")
    )
    self.positions_XD = parameter(
      "position_embedding",
      small_normal,
      (cfg.num_positions, width),
      ("positions", "embed"),
    )
    if cfg.type_vocab_size:
      self.types_XD = parameter(
        "type_embedding", small_normal, (cfg.type_vocab_size, width), ("types", "embed")
      )
    self.norm = LayerNorm(jnp.dtype(cfg.dtype), cfg.layer_norm_epsilon)

  def __call__(self, ids: Array, positions: Array, added: Array | None) -> Array:
    """Maps ids `[...]` at `positions` of their comments to vectors `[..., D]`."""
    cfg = self.config
    x = look_up(self.table_VD, ids, jnp.float32)
    x += look_up(self.positions_XD, positions + cfg.position_offset, jnp.float32)
    if cfg.type_vocab_size:
      x = add_bias(x, self.types_XD[0])
    if added is not None:
      x += added
    return self.norm(x)

  def attend(self, x: Array) -> Array:
    """Returns the products of `x` `[..., D]` with the table, `[..., V]` float32."""
    return project(x, self.table_VD.T, jnp.float32)


def check_length(config: ModelConfig, length: int) -> None:
  """Makes sure that a comment as long as a row has a position for each token.

  Raises:
    UserError: if it has not.
  """
  positions = config.num_positions - config.position_offset
  if length > positions:
    raise UserError(
      f"rows of {length} tokens, but ModelConfig.num_positions = {config.num_positions}"
      f" leaves {positions} positions after ModelConfig.position_offset ="
      f" {config.position_offset}: shorten the rows (TASK_FEATURE_LENGTHS) or raise"
      " num_positions"
    )


def roberta_logits(
  config: ModelConfig,
  x_BGMD: Array,
  embedder: RobertaEmbedder,
  added_BGMD: Array | None,
) -> Array:
  """Returns logits by a hidden layer, the table of tokens and a bias for each."""
  dtype = jnp.dtype(config.dtype)
  x_BGMD = Dense(
    config.emb_dim,
    ("embed", "mlp"),
    dtype,
    kernel_init=small_normal,
    use_bias=True,
    name="logits_transform",
  )(x_BGMD)
  x_BGMD = LayerNorm(dtype, config.layer_norm_epsilon, name="logits_norm")(
    ACTIVATIONS[config.mlp_activations[0]](x_BGMD)
  )
  if added_BGMD is not None:
    x_BGMD += added_BGMD
  bias_V = parameter(
    "logits_bias", nn.initializers.zeros, (config.vocab_size,), ("vocab",)
  )
  return add_bias(embedder.attend(x_BGMD), bias_V)


class _Block(Block):
  """A norm after each sum, and biases everywhere."""

  def biased(
    self, kind: type[SelfAttention] | type[AncestorAttention], name: str
  ) -> nn.Module:
    return self.attention(
      kind, name, divide_scores=True, kernel_init=small_normal, use_bias=True
    )

  def biased_mlp(self) -> Mlp:
    return self.mlp(kernel_init=small_normal, use_bias=True)

  def add_and_norm(
    self,
    x_RLD: Array,
    update_RLD: Array,
    name: str,
    masked: MaskedRows | None = None,
  ) -> Array:
    cfg = self.config
    norm = LayerNorm(jnp.dtype(cfg.dtype), cfg.layer_norm_epsilon, name=name)
    x_RLD = norm(self.add(x_RLD, update_RLD, masked))
    return constrain(x_RLD, "batch", "length", "embed")


class RobertaEncoderBlock(_Block):
  """Self-attention and MLP, each added and then normalized."""

  @nn.compact
  def __call__(self, x_RLD: Array, visible_RLL: Array, bias_HLL: Array | None) -> Array:
    """Returns the next layer's `x_RLD`."""
    attend = self.biased(SelfAttention, "attention")
    x_RLD = self.add_and_norm(
      x_RLD, attend(x_RLD, visible_RLL, bias_HLL), "post_attention_layer_norm"
    )
    return self.add_and_norm(x_RLD, self.biased_mlp()(x_RLD), "post_mlp_layer_norm")


class RobertaDecoderBlock(_Block):
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
    attend = self.biased(SelfAttention, "self_attention")
    update_RLD = attend(x_RLD, visible_RLL, bias_HLL)
    if self.config.norm_before_ancestors:
      x_RLD = self.add_and_norm(x_RLD, update_RLD, "post_self_attention_layer_norm")
    else:
      x_RLD = self.add(x_RLD, update_RLD)
    if masked is not None:
      x_RLD, context = masked.pick(x_RLD), masked.context
    attend = self.biased(AncestorAttention, "encoder_decoder_attention")
    update_RLD = attend(x_RLD, context)
    diagnostics.note_update(self, x_RLD, update_RLD, context)
    x_RLD = self.add_and_norm(
      x_RLD, update_RLD, "post_cross_attention_layer_norm", masked
    )
    update_RLD = self.biased_mlp()(x_RLD, masked)
    return self.add_and_norm(x_RLD, update_RLD, "post_mlp_layer_norm", masked)


ROBERTA = Family(
  embedder=RobertaEmbedder,
  check_length=check_length,
  encoder_block=RobertaEncoderBlock,
  decoder_block=RobertaDecoderBlock,
  position_bias=None,
  final_norm=None,
  logits=roberta_logits,
)
