"""Dense layers, norms, look-ups and position biases, with logical axis names.

Parameter names, shapes and axis names are T5X's, so that its partitioning rules
and its T5 1.1 checkpoints apply. Parameters are float32; `dtype` is that of the
computation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning

# T5's relative positions: how many biases a head has, and up to which distance.
NUM_BUCKETS = 32
MAX_DISTANCE = 128

# Its exponential is exactly 0 in float32 next to any score, so what a mask hides
# has no influence at all; finite, so that fully masked rows stay defined.
MASKED_SCORE = -1e9

Array = jax.Array
Initializer = Callable[..., Array]

fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# RoBERTa and BERT draw all kernels and tables with this standard deviation.
small_normal = nn.initializers.normal(0.02)
fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  # T5 1.1 and its successors were trained with the tanh form.
  "gelu": functools.partial(jax.nn.gelu, approximate=True),
  # BERT and RoBERTa with the error function.
  "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "linear": lambda x: x,
}


def parameter(
  name: str, init: Initializer, shape: tuple[int, ...], axes: tuple[str, ...]
) -> Array:
  """Declares a float32 parameter of the current module with logical `axes`."""
  return partitioning.param_with_axes(name, init, shape, jnp.float32, axes=axes)


def constrain(x: Array, *axes: str) -> Array:
  """Pins the logical axes of an activation; nothing outside a mesh with rules."""
  return partitioning.with_sharding_constraint(x, axes)


class Dense(nn.Module):
  """A linear map of the last axis.

  Attributes:
    features: width of the output.
    kernel_axes: logical names of the kernel's two axes.
    dtype: dtype of the multiplication.
    output_dtype: dtype of accumulation and output; `dtype` if None.
    kernel_init: initializer of the kernel.
    use_bias: whether a bias is added.
  """

  features: int
  kernel_axes: tuple[str, str]
  dtype: Any
  output_dtype: Any = None
  kernel_init: Initializer = fan_in_truncated
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Array, *, with_bias: bool = True) -> Array:
    """Maps `[..., inputs]` to `[..., features]`, without the bias if so asked."""
    shape = (x.shape[-1], self.features)
    kernel = parameter("kernel", self.kernel_init, shape, self.kernel_axes)
    y = project(x.astype(self.dtype), kernel, self.output_dtype or self.dtype)
    if not (self.use_bias and with_bias):
      return y
    axes = self.kernel_axes[1:]
    return add_bias(y, parameter("bias", nn.initializers.zeros, shape[1:], axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, output_dtype: Any) -> Array:
  """Returns `x @ kernel`, multiplied in the dtype of `x`.

  JAX's own gradient for the kernel would be rounded to the compute dtype, and
  would have the wider operand transposed, for which XLA's CPU backend copies it.
  """
  return _product(x, kernel, output_dtype)


def _product(x: Array, kernel: Array, output_dtype: Any) -> Array:
  return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=output_dtype)


def _project_forward(x: Array, kernel: Array, output_dtype: Any):
  # Not `project`, in which rematerialization would not see the product to save.
  return _product(x, kernel, output_dtype), (x, kernel)


def _project_backward(output_dtype: Any, saved: tuple[Array, Array], of_y: Array):
  del output_dtype
  x, kernel = saved
  of_y = of_y.astype(x.dtype)
  of_x = jnp.dot(of_y, kernel.astype(x.dtype).T)
  narrow, wide = (x, of_y) if x.shape[-1] <= of_y.shape[-1] else (of_y, x)
  of_kernel = jnp.dot(
    narrow.reshape(-1, narrow.shape[-1]).T,
    wide.reshape(-1, wide.shape[-1]),
    preferred_element_type=kernel.dtype,
  )
  return of_x, of_kernel if narrow is x else of_kernel.T


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
  """Returns `x + bias` in the dtype of `x`.

  JAX's own gradient for the bias would be rounded to that dtype, and would be a sum
  over the leading axes, at which XLA's CPU backend is slow; this one is a product.
  """
  return x + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))


def _add_bias_forward(x: Array, bias: Array):
  return add_bias(x, bias), bias


def _add_bias_backward(bias: Array, of_y: Array):
  of_y_XF = of_y.reshape(-1, of_y.shape[-1])
  ones_X = jnp.ones(of_y_XF.shape[0], of_y.dtype)
  return of_y, jnp.dot(
    ones_X,
    of_y_XF,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=bias.dtype,
  )


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class RMSNorm(nn.Module):
  """Divides by the root mean square and scales (T5's LayerNorm), in float32."""

  dtype: Any
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalizes the last axis."""
    scale = parameter("scale", nn.initializers.ones, (x.shape[-1],), ("embed",))
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class LayerNorm(nn.Module):
  """Standardizes the last axis, scales and shifts it, in float32 (Ba et al. 2016)."""

  dtype: Any
  epsilon: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalizes the last axis."""
    shape = (x.shape[-1],)
    scale = parameter("scale", nn.initializers.ones, shape, ("embed",))
    bias = parameter("bias", nn.initializers.zeros, shape, ("embed",))
    x = x.astype(jnp.float32)
    x -= jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    x *= jax.lax.rsqrt(variance + self.epsilon) * scale
    return add_bias(x, bias).astype(self.dtype)


def look_up(table: Array, ids: Array, dtype: Any) -> Array:
  """Returns the rows of a table `[rows, features]` for ids `[...]`, by gather."""
  return jnp.take(table, ids, axis=0, mode="clip").astype(dtype)


@jax.custom_vjp
def at_positions(x_BGND: Array, positions_BGM: Array) -> Array:
  """Returns the vectors at some of N positions, `[B, G, M, D]`.

  On TPUs by a product, as the gradient of a gather is a scatter, at which they are
  slow; elsewhere by a gather, which computes nothing.
  """
  return jax.lax.platform_dependent(
    x_BGND, positions_BGM, tpu=_at_by_product, default=_at_by_gather
  )


def _at_by_product(x_BGND: Array, positions_BGM: Array) -> Array:
  at_BGMN = jax.nn.one_hot(positions_BGM, x_BGND.shape[2], dtype=x_BGND.dtype)
  # At a precision at which one times a value is that value.
  exact = jax.lax.Precision.HIGHEST
  return jnp.einsum("bgmn,bgnd->bgmd", at_BGMN, x_BGND, precision=exact)


def _at_by_gather(x_BGND: Array, positions_BGM: Array) -> Array:
  return jnp.take_along_axis(x_BGND, positions_BGM[..., None], axis=2)


def _at_positions_forward(x_BGND: Array, positions_BGM: Array):
  # Of `x` only the shape is needed again.
  nothing_N0 = jnp.zeros((x_BGND.shape[2], 0), x_BGND.dtype)
  return at_positions(x_BGND, positions_BGM), (nothing_N0, positions_BGM)


def _at_positions_backward(saved: tuple[Array, Array], of_y_BGMD: Array):
  nothing_N0, positions_BGM = saved
  size = len(nothing_N0)

  def by_product(of_y_BGMD: Array, positions_BGM: Array) -> Array:
    at_BGMN = jax.nn.one_hot(positions_BGM, size, dtype=of_y_BGMD.dtype)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("bgmn,bgmd->bgnd", at_BGMN, of_y_BGMD, precision=exact)

  def by_scatter(of_y_BGMD: Array, positions_BGM: Array) -> Array:
    def of_group(of_y_MD: Array, positions_M: Array) -> Array:
      zeros_ND = jnp.zeros((size, of_y_MD.shape[-1]), of_y_MD.dtype)
      return zeros_ND.at[positions_M].add(of_y_MD)

    return jax.vmap(jax.vmap(of_group))(of_y_BGMD, positions_BGM)

  of_x_BGND = jax.lax.platform_dependent(
    of_y_BGMD, positions_BGM, tpu=by_product, default=by_scatter
  )
  return of_x_BGND, None


at_positions.defvjp(_at_positions_forward, _at_positions_backward)


def dropout(rate: float, *, deterministic: bool) -> nn.Dropout:
  """Returns T5's dropout: one draw per row and feature, shared along its columns."""
  return nn.Dropout(rate, broadcast_dims=(-2,), deterministic=deterministic)


def relative_position_buckets(
  offsets: np.ndarray,
  num_buckets: int,
  max_distance: int,
  *,
  bidirectional: bool = True,
) -> np.ndarray:
  """Returns T5's bucket of offsets (key minus query), int32.

  If bidirectional, half of the buckets are for keys to the right; otherwise these
  count as the query itself. Of the buckets of a side, the first half holds one distance
  each and the others widen logarithmically up to `max_distance` (Raffel et al. 2020).
  """
  side = num_buckets // 2 if bidirectional else num_buckets
  exact = side // 2
  distance = np.abs(offsets) if bidirectional else np.maximum(-offsets, 0)
  ratio = np.log(np.maximum(distance, 1) / exact + np.finfo(np.float32).eps)
  wide = exact + (ratio / np.log(max_distance / exact) * (side - exact)).astype(int)
  bucket = np.where(distance < exact, distance, np.minimum(wide, side - 1))
  return (bucket + side * (bidirectional & (offsets > 0))).astype(np.int32)


class RelativePositionBias(nn.Module):
  """T5's learned attention bias by relative position, shared by a stack's layers.

  A comment is contiguous in its row, so that columns do for positions. A causal table,
  all of whose buckets are for keys before the query, has a name of its own, so that
  parameters tell which they hold.
  """

  num_heads: int
  dtype: Any
  num_buckets: int = NUM_BUCKETS
  max_distance: int = MAX_DISTANCE
  causal: bool = False

  @nn.compact
  def __call__(self, length: int, position: Array | None = None) -> Array:
    """Returns the bias of rows of `length` columns, `[H, L, L]`.

    Given the `position` of a query, that of its row alone, `[H, 1, L]`.
    """
    table_HP = parameter(
      "causal_rel_embedding" if self.causal else "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (self.num_heads, self.num_buckets),
      ("heads", "relpos_buckets"),
    )
    # 2 L offsets, the last one unused; a product with a constant, as the gradient of
    # a gather would be a scatter.
    buckets = relative_position_buckets(
      np.arange(2 * length) - (length - 1),
      self.num_buckets,
      self.max_distance,
      bidirectional=not self.causal,
    )
    onehot = jnp.asarray(buckets == np.arange(self.num_buckets)[:, None], self.dtype)
    by_offset = table_HP.astype(self.dtype) @ onehot
    if position is not None:
      start = length - 1 - position
      row_HL = jax.lax.dynamic_slice_in_dim(by_offset, start, length, axis=1)
      return row_HL[:, None]
    # The row of query q is that vector from L - 1 - q on. Repeating 2 L values and
    # cutting them every 2 L - 1 shifts each row by one, without L * L look-ups.
    repeated = jnp.tile(by_offset, (1, length))[:, : length * (2 * length - 1)]
    shifted = repeated.reshape(self.num_heads, length, 2 * length - 1)
    return shifted[:, :, length - 1 :]
