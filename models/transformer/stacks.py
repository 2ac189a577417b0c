"""The encoder stack and the decoder stack, regardless of the family of their blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning

from commentree.models import diagnostics
from commentree.models.ancestor_context import AncestorContext
from commentree.models.config import ModelConfig
from commentree.models.layers import Array, at_positions, dropout
from commentree.models.transformer.attention import ATTENTION_OUTPUT
from commentree.models.transformer.kernel_choice import ancestor_kernel_for
from commentree.models.transformer.masked_rows import MaskedRows, drop_by_row


@dataclasses.dataclass(frozen=True)
class Family:
  """What tells one family of transformers from another.

  Attributes:
    embedder: module with the field `config`, called with ids and positions in their
      comments `[R, L]` and vectors to add to theirs `[R, L, D]` or None.
    encoder_block: module with fields `config, deterministic`, called with
      `(x_RLD, visible_RLL, bias_HLL)`.
    decoder_block: likewise, called with the ancestors' `AncestorContext` as well; and
      with `MaskedRows` where what follows self-attention is to be of these alone.
    position_bias: module with fields `num_heads, dtype, causal` that gives the bias of
      self-attention for a row length; None for no bias.
    final_norm: module with the field `dtype` that ends a stack; None for no end.
    logits: called inside the decoder with `(config, x_BGMD, embedder, added_BGMD)`, the
      last added to what the vocabulary's products are taken of, or None; returns logits
      `[B, G, M, V]`, float32.
  """

  embedder: Callable[..., nn.Module]
  check_length: Callable[[ModelConfig, int], None]
  encoder_block: Callable[..., nn.Module]
  decoder_block: Callable[..., nn.Module]
  position_bias: Callable[..., nn.Module] | None
  final_norm: Callable[..., nn.Module] | None
  logits: Callable[[ModelConfig, Array, Any, Array | None], Array]


_POLICIES = jax.checkpoint_policies
_KERNEL_OUTPUTS = _POLICIES.save_only_these_names(ATTENTION_OUTPUT)
# What layers keep for the backward pass, by `ModelConfig.remat_policy`. Attention in
# plain JAX, whose gradient needs its weights, is computed again by all of them.
_SAVED: dict[str, Any] = {
  "full": None,
  "attention": _KERNEL_OUTPUTS,
  "minimal": _POLICIES.save_from_both_policies(
    _POLICIES.checkpoint_dots_with_no_batch_dims, _KERNEL_OUTPUTS
  ),
}


def run_layers(
  block: Any,
  num_layers: int,
  config: ModelConfig,
  x: Array,
  *rest: Array | None,
  deterministic: bool,
  scan: bool,
  last: tuple[Any, ...] = (),
) -> Array:
  """Applies `num_layers` blocks in the current module, `scan`ned and remat as set.

  Unrolled layers are named `layers_<i>`; scanned ones share the name `layers`, and
  their parameters have a leading axis "layers". The last one is called with what is in
  `last` as well, if they are unrolled.
  """
  if config.remat_policy != "none":
    policy = _SAVED[config.remat_policy]
    block = nn.remat(block, policy=policy, prevent_cse=not scan)
  if not scan:
    for i in range(num_layers):
      more = last if i == num_layers - 1 else ()
      x = block(config, deterministic, name=f"layers_{i}")(x, *rest, *more)
    return x

  class Step(nn.Module):
    """A block as `scan` wants it."""

    @nn.compact
    def __call__(self, x, *rest):
      layer = block(config, deterministic, name="block")
      nn.share_scope(self, layer)
      return layer(x, *rest), None

  scanned = partitioning.scan_with_axes(
    Step,
    variable_axes={"params": 0, "cache": 0, diagnostics.COLLECTION: 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast,) * len(rest),
    length=num_layers,
    axis_name="layers",
  )
  return scanned(name="layers")(x, *rest)[0]


class _Stack(nn.Module):
  """Fields and parts common to both stacks."""

  config: ModelConfig
  family: Family
  deterministic: bool

  def run(
    self,
    block: Any,
    num_layers: int,
    x_RLD: Array,
    visible_RLL: Array,
    *rest,
    position: Array | None = None,
    causal: bool = False,
    last: tuple[Any, ...] = (),
  ):
    """Runs the layers, each token seeing what is `visible_RLL` to it.

    Given a `position`, `x_R1D` is the token there of each row, see `attention`. If
    `causal`, the family's relative positions are those before a token. Of `last`, see
    `run_layers`.
    """
    cfg = self.config
    drop = dropout(cfg.dropout_rate, deterministic=self.deterministic)
    bias_HLL = None
    if self.family.position_bias is not None:
      bias_HLL = self.family.position_bias(
        cfg.num_heads, jnp.dtype(cfg.dtype), causal=causal, name="relpos_bias"
      )(visible_RLL.shape[-1], position)
    return run_layers(
      block,
      num_layers,
      cfg,
      drop(x_RLD),
      visible_RLL,
      bias_HLL,
      *rest,
      deterministic=self.deterministic,
      scan=cfg.scan_layers,
      last=last,
    )

  def end(self, x: Array, name: str, drop: Callable[[Array], Array]) -> Array:
    """Applies what ends a stack: the norm `name` and dropout, or nothing."""
    if self.family.final_norm is None:
      return x
    dtype = jnp.dtype(self.config.dtype)
    return drop(self.family.final_norm(dtype, name=name)(x))


def same_segment(segment_ids_RL: Array) -> Array:
  """Returns which tokens `[R, L, L]` are of one segment.

  Padding is a segment of its own: defined, never read.
  """
  return segment_ids_RL[:, :, None] == segment_ids_RL[:, None, :]


def in_order(prefix_RL: Array, positions_RL: Array) -> Array:
  """Returns what each token sees `[R, L, L]` of a segment that is read in order.

  Itself, what is before it, and the segment's prefix, which is seen as a whole.

  Args:
    prefix_RL: length of the prefix of the segment that a token is of.
    positions_RL: positions of tokens in their segments.
  """
  earlier_RLL = positions_RL[:, None, :] <= positions_RL[:, :, None]
  return earlier_RLL | (positions_RL < prefix_RL)[:, None, :]


class EncoderStack(_Stack):
  """Embedded comments to contextual token vectors."""

  @nn.compact
  def __call__(self, x_RLD: Array, segment_ids_RL: Array) -> Array:
    """Returns the token vectors `[R, L, D]`."""
    cfg = self.config
    x_RLD = self.run(
      self.family.encoder_block,
      cfg.num_encoder_layers,
      x_RLD,
      same_segment(segment_ids_RL),
    )
    drop = nn.Dropout(cfg.dropout_rate, deterministic=self.deterministic)
    return self.end(x_RLD, "encoder_norm", drop)


class DecoderStack(_Stack):
  """Embedded masked comments and their ancestors to logits at masked positions."""

  @nn.compact
  def __call__(
    self,
    x_RLD: Array,
    visible_RLL: Array,
    context: AncestorContext,
    masked_positions_BGM: Array | None,
    embedder: nn.Module,
    position: Array | None = None,
  ) -> tuple[Array, Array | None]:
    """Returns the states `[B, G, M, D]` at masked positions and logits there.

    Logits are `[B, G, M, V]`, float32. Without `masked_positions_BGM`, the states
    `[R, L, D]` of all tokens, and None.

    Args:
      x_RLD: the embedded rows.
      visible_RLL: which tokens of its row each token sees.
      context: the ancestors of the targets.
      masked_positions_BGM: where to give logits, each in the rows of its group side
        by side; None for states. The rows are those of B examples.
      embedder: what embedded the rows, whose table logits may share.
      position: of the only token in `x_R1D`, of rows that are read token by token.
    """
    cfg = self.config
    num_rows, length, _ = x_RLD.shape
    of_layers = self._of_layers(context, x_RLD, position)
    masked = None
    if masked_positions_BGM is not None and position is None:
      masked = self._masked_rows(masked_positions_BGM, context, x_RLD)
    x = self.run(
      self.family.decoder_block,
      cfg.num_decoder_layers,
      x_RLD,
      visible_RLL,
      of_layers,
      position=position,
      causal=cfg.causal_position_buckets,
      last=() if masked is None else (masked,),
    )
    drop = dropout(cfg.dropout_rate, deterministic=self.deterministic)
    if masked_positions_BGM is None:
      return self.end(x, "decoder_norm", drop), None
    # Six of seven positions are not masked: leave them out of the vocabulary
    # projection, the largest product of a small model.
    if masked is not None:
      x_BGMD = masked.in_groups(x, masked_positions_BGM.shape[-1])
    else:
      x_BGND = x.reshape(*masked_positions_BGM.shape[:2], -1, x.shape[-1])
      x_BGMD = at_positions(x_BGND, masked_positions_BGM)
    x_BGMD = self.end(
      x_BGMD,
      "decoder_norm",
      lambda x_BGMD: drop_by_row(drop, x_BGMD, masked_positions_BGM, num_rows, length),
    )
    added_BGMD = context.logit_changes_BQD
    if added_BGMD is not None:
      added_BGMD = added_BGMD.reshape(x_BGMD.shape)
    return x_BGMD, self.family.logits(cfg, x_BGMD, embedder, added_BGMD)

  def _masked_rows(
    self, positions_BGM: Array, context: AncestorContext, x_RLD: Array
  ) -> MaskedRows | None:
    """Returns the tokens that the last layer is computed of.

    None for all, which diagnostics are of.
    """
    if not self.config.last_layer_of_masked_tokens or context.watched is not None:
      return None
    num_rows, length, _ = x_RLD.shape
    masked = MaskedRows.of(positions_BGM, context, num_rows, length)
    if masked is None:
      return None
    x_WLD = jax.eval_shape(masked.pick, x_RLD)
    of_last_layer = self._of_layers(masked.context, x_WLD, None)
    return dataclasses.replace(masked, context=of_last_layer)

  def _of_layers(
    self,
    context: AncestorContext,
    x_RLD: Array | jax.ShapeDtypeStruct,
    position: Array | None,
  ) -> AncestorContext:
    """Returns what layers need of the context, as kernels or as plain JAX read it.

    Diagnostics need all scores, which kernels keep to themselves.
    """
    context = dataclasses.replace(context, tokens=None, logit_changes_BQD=None)
    cfg, by_target = self.config, context.by_target
    if by_target is not None:
      shape = (*x_RLD.shape[:2], cfg.num_heads * cfg.head_dim)
      kernel = None
      if position is None and context.watched is None and not self.is_initializing():
        query_RLX = jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.dtype))
        kernel = ancestor_kernel_for(
          cfg.attention, query_RLX, cfg.num_heads, 1.0, by_target
        )
      if kernel is not None:
        # Not of every token: a scan would add up even gradients of what is not used.
        return dataclasses.replace(context, bias_BHNS=None)
    return dataclasses.replace(context, by_target=None)
