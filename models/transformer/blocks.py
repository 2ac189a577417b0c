"""What the blocks of all families are made of."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from commentree.models.config import ModelConfig
from commentree.models.layers import Array, constrain, dropout
from commentree.models.transformer.attention import Heads
from commentree.models.transformer.masked_rows import MaskedRows
from commentree.models.transformer.mlp import Mlp


class Block(nn.Module):
  """Parts of an encoder or decoder block; fields as in `stacks.Family`."""

  config: ModelConfig
  deterministic: bool

  def attention(
    self,
    kind: type[Heads],
    name: str,
    **settings: Any,
  ) -> nn.Module:
    """Returns an attention of the set sizes; `settings` are more of its fields."""
    cfg = self.config
    return kind(
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      dropout_rate=cfg.dropout_rate,
      deterministic=self.deterministic,
      dtype=jnp.dtype(cfg.dtype),
      implementation=cfg.attention,
      name=name,
      **settings,
    )

  def mlp(self, **settings: Any) -> Mlp:
    """Returns an MLP of the set sizes; `settings` are more of its fields."""
    cfg = self.config
    return Mlp(
      width=cfg.mlp_dim,
      activations=cfg.mlp_activations,
      dropout_rate=cfg.dropout_rate,
      deterministic=self.deterministic,
      dtype=jnp.dtype(cfg.dtype),
      name="mlp",
      **settings,
    )

  def add(
    self, x_RLD: Array, update_RLD: Array, masked: MaskedRows | None = None
  ) -> Array:
    """The residual connection, with dropout on what is added; of `masked` tokens."""
    drop = dropout(self.config.dropout_rate, deterministic=self.deterministic)
    update_RLD = drop(update_RLD) if masked is None else masked.drop(drop, update_RLD)
    return constrain(x_RLD + update_RLD, "batch", "length", "embed")
