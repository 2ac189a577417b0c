"""Floating point operations of a train step, and what devices could do at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from commentree.models.config import ModelConfig
from commentree.models.interface import Model
from commentree.models.transformer import masked_rows
from commentree.training.partitioning import data_share, flatten_names
from commentree.training.tpu_compile import tpu_chips

# Dense bfloat16 FLOP/s of GPUs, from the vendors' data sheets; those of TPUs are in
# `tpu_chips`. The first that the device's name contains counts.
_GPU_PEAK_FLOPS: tuple[tuple[str, float], ...] = (
  ("V100", 125e12),
  ("A100", 312e12),
  ("H100 PCIe", 756e12),
  ("H100", 989e12),
  ("H200", 989e12),
  ("B200", 2250e12),
)

# Kernels of heads that are applied where something is predicted, not to all tokens.
_AT_LABELS = ("head.hidden.kernel", "head.logits.kernel")


def peak_flops(device: jax.Device) -> float | None:
  """Returns the most bfloat16 FLOP/s of a device, None if it is not known."""
  if (chip := tpu_chips.of_device_kind(device.device_kind)) is not None:
    return chip.peak_flops
  for name, peak in _GPU_PEAK_FLOPS:
    if name in device.device_kind:
      return peak
  return None


def utilization_per_rate(
  model: Model, params: Any, batch: Mapping[str, Any], mesh: Mesh
) -> float | None:
  """Returns the model FLOP utilization at one step a second; None if unknown.

  Args:
    model: the model.
    params: parameters, or anything with their shapes.
    batch: this process's part of a batch.
    mesh: the devices.
  """
  peak = peak_flops(mesh.devices.flat[0])
  if peak is None:
    return None
  needed = train_step_flops(model.config, params, batch)
  return needed * data_share(mesh).count / (peak * mesh.size)


def train_step_flops(
  config: ModelConfig, params: Any, batch: Mapping[str, Any]
) -> float:
  """Returns the FLOPs that a step needs, padding included, recomputation not.

  Counts the products with kernels and those of attention, forwards once and backwards
  twice, from the names and shapes of the parameters; pooling and elementwise work are
  left out.

  Args:
    config: the model's settings.
    params: parameters, or anything with their shapes.
    batch: a global batch, or anything with its shapes.
  """
  *_, encoder_length = encoder_shape = batch["encoder_input_tokens"].shape
  *_, decoder_length = decoder_shape = batch["decoder_input_tokens"].shape
  decoder_rows = int(np.prod(decoder_shape))
  masked = int(np.prod(batch["decoder_target_tokens"].shape))
  targets = int(np.prod(batch["target_depths"].shape))
  # Where cross-attention has keys, and queries for as many keys as it has in a set.
  examples, slots = batch["encoder_slot_depths"].shape
  sets = examples
  vectors = slots * config.vectors_per_comment
  keys_in_set, queries = 1 + vectors, decoder_rows
  if config.context == "concatenated":
    encoder_length = config.max_context_tokens
    sets = targets
    encoder_shape = (sets, encoder_length)
    keys_in_set, queries = 1 + encoder_length, sets * decoder_length
  encoder_rows, keys = int(np.prod(encoder_shape)), sets * keys_in_set
  if config.context == "none":
    encoder_rows = 0
  if config.nearest_context_tokens:
    sets, ancestors = targets, batch["ancestor_slots"].shape[-1]
    keys_in_set = 1 + ancestors * config.vectors_per_comment
    keys_in_set += config.nearest_context_tokens
    keys, queries = sets * keys_in_set, sets * decoder_length

  in_last_layer = _tokens_of_last_layer(config, batch)
  last_layer = f"decoder.layers_{config.num_decoder_layers - 1}."
  after_self_attention = (
    f"{last_layer}encoder_decoder_attention.",
    f"{last_layer}mlp.",
  )

  def positions(name: str) -> int:
    if ".logits_" in name or name in _AT_LABELS or name == "pointer.query.kernel":
      return masked
    if name.startswith(("reply_matcher.", "vectors_to_logits.")):
      return targets
    if name.startswith("thread_transformer."):
      return examples * vectors
    if "encoder_decoder_attention.key" in name or (
      "encoder_decoder_attention.value" in name
    ):
      return keys
    if in_last_layer is not None and name.startswith(after_self_attention):
      return in_last_layer
    of_encoder = name.startswith("encoder.") or name == "pointer.key.kernel"
    return encoder_rows if of_encoder else decoder_rows

  def attended(name: str) -> int:
    """Returns how many pairs of a query and a key there are."""
    if "encoder_decoder_attention" in name:
      if in_last_layer is not None and name.startswith(after_self_attention):
        return in_last_layer * keys_in_set
      return queries * keys_in_set
    if name.startswith("thread_transformer."):
      return examples * vectors**2
    if name.startswith("encoder."):
      return encoder_rows * encoder_length
    return decoder_rows * decoder_length

  products = 0
  leaves = flatten_names(params)
  by_table = config.family == "roberta" or config.logits_via_embedding
  if by_table and config.head == "masked_lm":
    products += int(np.prod(leaves["token_embedder.embedding"].shape)) * masked
  for name, leaf in leaves.items():
    if not name.endswith((".kernel", ".recurrent_kernel")):
      continue
    products += int(np.prod(leaf.shape)) * positions(name)
    if name == "pointer.query.kernel":
      # Of each example its masked tokens with its encoder tokens.
      products += leaf.shape[-1] * masked * encoder_rows // examples
    if name == "reply_matcher.reply.kernel":
      # Every thread with every reply.
      products += leaf.shape[-1] * targets**2
    if name.endswith("attention.query.kernel"):
      # Scores and mixing: a product each, as wide as all heads; scanned layers stack.
      layers = int(np.prod(leaf.shape[:-2]))
      products += 2 * layers * leaf.shape[-1] * attended(name)
  return 3 * 2.0 * products


def _tokens_of_last_layer(config: ModelConfig, batch: Mapping[str, Any]) -> int | None:
  """Returns of how many tokens the last layer is computed, None for all."""
  if not config.last_layer_of_masked_tokens:
    return None
  *rows, length = batch["decoder_input_tokens"].shape
  masked_shape = batch["decoder_masked_positions"].shape
  found = masked_rows.count_rows(masked_shape, int(np.prod(rows)), length)
  return None if found is None else found * length
