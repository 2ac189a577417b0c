"""Settings of a small model of each family, and parameters drawn for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from commentree.models.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=29,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  # Of one class with the decoder, whose two layers tell what more than one would.
  num_encoder_layers=1,
  num_decoder_layers=2,
  max_ancestor_distance=3,
  dtype="float32",
)


# What makes CONFIG a model of another family; both kinds of it, as RoBERTa and BERT.
FAMILIES = {
  "t5": {},
  "roberta": {
    "family": "roberta",
    "mlp_activations": ("gelu_exact",),
    "num_positions": 14,
  },
  "bert": {
    "family": "roberta",
    "mlp_activations": ("gelu_exact",),
    "num_positions": 12,
    "position_offset": 0,
    "type_vocab_size": 2,
    "layer_norm_epsilon": 1e-12,
  },
}


def draw(shapes, seed=0):
  """Draws parameters of given shapes, none of them at a special value (0 or 1)."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    if path[-1].key == "scale":
      return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), jnp.float32)
    name = path[-1].key
    fan_in = {"bias": 4, "salience": 16, "gate": 16}.get(name, 1)
    if name == "kernel":
      fan_in = shape.shape[-2]
    return jnp.asarray(rng.normal(0, fan_in**-0.5, shape.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)
