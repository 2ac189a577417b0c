"""The MLP of a block."""

from __future__ import annotations

import functools
import operator
from typing import Any

import flax.linen as nn

from commentree.models.layers import (
  ACTIVATIONS,
  Array,
  Dense,
  Initializer,
  constrain,
  dropout,
  fan_in_truncated,
)
from commentree.models.transformer.masked_rows import MaskedRows


class Mlp(nn.Module):
  """The product of one or more activated projections, projected back (T5 1.1).

  `out_init` initializes the projection back, if it is another than `kernel_init`.
  """

  width: int
  activations: tuple[str, ...]
  dropout_rate: float
  deterministic: bool
  dtype: Any
  kernel_init: Initializer = fan_in_truncated
  out_init: Initializer | None = None
  use_bias: bool = False

  @nn.compact
  def __call__(self, x_RLD: Array, masked: MaskedRows | None = None) -> Array:
    """Applies the block; returns `[R, L, D]`. Rows may be of `masked` tokens."""

    def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
      out_init = self.out_init if name == "wo" else None
      return Dense(
        features,
        axes,
        self.dtype,
        kernel_init=out_init or self.kernel_init,
        use_bias=self.use_bias,
        name=name,
      )

    gates = []
    for i, activation in enumerate(self.activations):
      name = f"wi_{i}" if len(self.activations) > 1 else "wi"
      gate = dense(self.width, ("embed", "mlp"), name)(x_RLD)
      gates.append(ACTIVATIONS[activation](gate))
    hidden_RLF = functools.reduce(operator.mul, gates)
    drop = dropout(self.dropout_rate, deterministic=self.deterministic)
    hidden_RLF = drop(hidden_RLF) if masked is None else masked.drop(drop, hidden_RLF)
    hidden_RLF = constrain(hidden_RLF, "batch", "length", "mlp")
    return dense(x_RLD.shape[-1], ("mlp", "embed"), "wo")(hidden_RLF)
