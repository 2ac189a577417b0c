"""optax's Adafactor, reading each parameter once for its root mean square.

`optax.scale_by_param_block_rms` computes it a second time, of parameters that are not
near 0 the same, so that its own gradient is defined; nothing differentiates it here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

# optax's own.
_LEAST_SCALE = 1e-3


def adafactor(
  learning_rate: Any = None,
  *,
  min_dim_size_to_factor: int = 128,
  decay_rate: float = 0.8,
  decay_offset: int = 0,
  multiply_by_parameter_scale: bool = True,
  clipping_threshold: float | None = 1.0,
  momentum: float | None = None,
  dtype_momentum: Any = jnp.float32,
  weight_decay_rate: Any = None,
  eps: float = 1e-30,
  factored: bool = True,
  weight_decay_mask: Any = None,
) -> optax.GradientTransformation:
  """Returns `optax.adafactor` of the same arguments, with equal results and state."""
  steps = [
    optax.scale_by_factored_rms(
      factored, decay_rate, decay_offset, min_dim_size_to_factor, eps
    )
  ]
  if clipping_threshold is not None:
    steps.append(optax.clip_by_block_rms(clipping_threshold))
  if learning_rate is not None:
    steps.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
  if multiply_by_parameter_scale:
    steps.append(optax.stateless(_scale_by_parameters))
  if momentum is not None:
    steps.append(optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
  if weight_decay_rate is not None:
    steps.append(optax.add_decayed_weights(weight_decay_rate, mask=weight_decay_mask))
  return optax.chain(*steps, optax.scale(-1))


def _scale_by_parameters(updates: optax.Updates, params: optax.Params) -> optax.Updates:
  def scaled(update: jax.Array, param: jax.Array) -> jax.Array:
    size = jnp.sqrt(jnp.mean(jnp.square(param)))
    return update * jnp.maximum(size, _LEAST_SCALE)

  return jax.tree.map(scaled, updates, params)
