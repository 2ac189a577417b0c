"""Attention to ancestors' vectors as Pallas kernels for TPUs, forwards and backwards.

As `attention_kernels`, but keys are the vectors of the example that a row is of. What a
token sees of them, and their bias, are its target's: kernels read them by target and
find each token's by a product with its target, one of a column's elements being 1.
Plain JAX has both of every token, and scores beside them, in HBM.

Shapes: R rows of L tokens, R / B of each of B examples; S vectors of an example, U
target ids; H heads of width K, X = H * K.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from commentree.models.layers import Array
from commentree.models.transformer.kernel_parts import (
  COLUMNS_BY_COLUMNS,
  LANES,
  ROWS_BY_COLUMNS,
  ROWS_BY_ROWS,
  Head,
  Heads,
  add,
  fewest_groups,
  mask,
  product,
  side_by_side,
  write,
)

# What the rows of a register hold of bfloat16.
_VECTORS_MULTIPLE = 16


def count_groups(
  length: int,
  num_vectors: int,
  num_targets: int,
  num_heads: int,
  width: int,
  itemsize: int,
) -> int | None:
  """Returns in how few parts of heads the gradient's kernel fits VMEM.

  None if it never does.

  Args:
    length: L.
    num_vectors: S.
    num_targets: U.
    num_heads: H.
    width: K.
    itemsize: bytes of a query's element.
  """
  vectors = _up(num_vectors, _VECTORS_MULTIPLE)
  targets = _up(num_targets, LANES)

  def bytes_of(heads: int) -> int:
    # Two copies of each block: three of rows, keys and values, their gradients in
    # float32, the bias and its gradient, what is visible. Then some scores.
    lanes = heads * width
    rows = 2 * 3 * length * lanes * itemsize
    of_vectors = 2 * 2 * vectors * lanes * (itemsize + 4)
    by_target = 2 * vectors * targets * (heads * (itemsize + 4) + itemsize)
    return rows + of_vectors + by_target + 6 * 4 * vectors * max(length, targets)

  return fewest_groups(num_heads, width, bytes_of)


def attend_to_vectors(
  query_RLX: Array,
  key_BSX: Array,
  value_BSX: Array,
  visible_BUS: Array,
  bias_BHUS: Array | None,
  target_RL: Array,
  heads: Heads,
) -> Array:
  """Averages values by the softmax of each head's scores; returns `[R, L, X]`.

  Args:
    query_RLX: queries.
    key_BSX: keys.
    value_BSX: values.
    visible_BUS: which vectors each target sees.
    bias_BHUS: added to the scores, or None.
    target_RL: target id of each token.
    heads: how heads lie in X.
  """
  dtype = query_RLX.dtype
  vectors = _up(key_BSX.shape[1], _VECTORS_MULTIPLE) - key_BSX.shape[1]
  targets = _up(visible_BUS.shape[1], LANES) - visible_BUS.shape[1]
  of_vectors = ((0, 0), (0, vectors), (0, 0))
  padded_visible = jnp.pad(
    visible_BUS.swapaxes(1, 2).astype(dtype), ((0, 0), (0, vectors), (0, targets))
  )
  padded_bias = None
  if bias_BHUS is not None:
    padded_bias = jnp.pad(
      bias_BHUS.swapaxes(2, 3).astype(dtype),
      ((0, 0), (0, 0), (0, vectors), (0, targets)),
    )
  return _attend(
    query_RLX,
    jnp.pad(key_BSX, of_vectors),
    jnp.pad(value_BSX, of_vectors),
    padded_visible,
    padded_bias,
    target_RL[:, None].astype(jnp.int32),
    heads,
  )


def _up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(
  query_RLX, key_BSX, value_BSX, visible_BSU, bias_BHSU, target_R1L, heads
) -> Array:
  operands = (query_RLX, key_BSX, value_BSX, visible_BSU, bias_BHSU, target_R1L)
  out = jax.ShapeDtypeStruct(query_RLX.shape, query_RLX.dtype)
  return _call(_attend_kernel, "ancestor_attention_kernel", heads, operands, [out])[0]


def _forward(query_RLX, key_BSX, value_BSX, visible_BSU, bias_BHSU, target_R1L, heads):
  operands = (query_RLX, key_BSX, value_BSX, visible_BSU, bias_BHSU, target_R1L)
  return _attend(*operands, heads), operands


def _backward(heads: Heads, operands: tuple[Any, ...], of_out_RLX: Array):
  query_RLX, key_BSX, value_BSX, _, bias_BHSU, _ = operands
  results = [
    jax.ShapeDtypeStruct(query_RLX.shape, query_RLX.dtype),
    # To which the rows of an example add.
    jax.ShapeDtypeStruct(key_BSX.shape, jnp.float32),
    jax.ShapeDtypeStruct(value_BSX.shape, jnp.float32),
  ]
  if bias_BHSU is not None:
    results.append(jax.ShapeDtypeStruct(bias_BHSU.shape, jnp.float32))
  name = "ancestor_attention_gradient_kernel"
  found = _call(_gradient_kernel, name, heads, (*operands, of_out_RLX), results)
  of_query_RLX, of_key_BSX, of_value_BSX, *of_bias = found
  return (
    of_query_RLX,
    of_key_BSX.astype(key_BSX.dtype),
    of_value_BSX.astype(value_BSX.dtype),
    jnp.zeros_like(operands[3]),
    of_bias[0].astype(bias_BHSU.dtype) if of_bias else None,
    None,
  )


_attend.defvjp(_forward, _backward)


def _call(
  kernel: Any,
  name: str,
  heads: Heads,
  operands: tuple[Array | None, ...],
  results: list[jax.ShapeDtypeStruct],
) -> list[Array]:
  """Calls a kernel for each row and group of heads, rows the fastest.

  Args:
    kernel: called with `heads`, how many rows an example has, and a reference to its
      part of each operand and result.
    name: of the call in the compiled program.
    heads: how heads lie in X.
    operands: those of `_attend`, then others of rows.
    results: of rows; then, to which the rows of an example add, of keys, of values and
      of the bias.
  """
  rows, length, joined = results[0].shape
  bias_BHSU = operands[4]
  arrays: list[Any] = [x for x in operands if x is not None]
  examples, vectors, targets = arrays[3].shape
  per_example = rows // examples
  num_heads = joined // heads.width
  lanes = joined // heads.groups

  def example(row):
    return jax.lax.div(row, per_example)

  of_rows = pl.BlockSpec((1, length, lanes), lambda group, row: (row, 0, group))
  of_vectors = pl.BlockSpec(
    (1, vectors, lanes), lambda group, row: (example(row), 0, group)
  )
  visible = pl.BlockSpec((1, vectors, targets), lambda group, row: (example(row), 0, 0))
  bias = pl.BlockSpec(
    (1, num_heads // heads.groups, vectors, targets),
    lambda group, row: (example(row), group, 0, 0),
  )
  of_tokens = pl.BlockSpec((1, 1, length), lambda group, row: (row, 0, 0))
  no_bias = bias_BHSU is None
  blocks = [of_rows, of_vectors, of_vectors, visible, *([] if no_bias else [bias])]
  blocks += [of_tokens, *[of_rows] * (len(operands) - 6)]
  adds_up = len(results) > 1

  def body(*refs):
    gap = (None,) if no_bias else ()
    kernel(heads, per_example, *refs[:4], *gap, *refs[4:])

  scores = rows * num_heads * length * vectors
  products = 5 if adds_up else 2
  by_target = 0 if no_bias else (2 if adds_up else 1) * scores * targets
  return pl.pallas_call(
    body,
    out_shape=results,
    grid=(heads.groups, rows),
    in_specs=blocks,
    out_specs=[of_rows, of_vectors, of_vectors, bias][: len(results)],
    interpret=heads.interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary" if adds_up else "parallel")
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * (products * scores * heads.width + by_target),
      transcendentals=scores,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results)),
    ),
    name=name,
  )(*arrays)


def _targets_of(target: Any, num_targets: int, dtype: Any) -> Array:
  """Returns 1 at each token's target, 0 elsewhere, `[U, L]`."""
  target_1L = target[0]
  shape = (num_targets, target_1L.shape[-1])
  id_UL = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  return jnp.where(id_UL == target_1L, 1.0, 0.0).astype(dtype)


def _weights(
  setting: Heads, heads: list[Head], query, key, bias, is_target_UL, visible_SL
) -> list[Array]:
  """Returns the softmax of some heads' scores, keys down and queries across."""
  scores = [
    product(head.with_others(key), head.alone(query), ROWS_BY_ROWS) for head in heads
  ]
  biases: list[Array | None] = [None] * len(heads)
  if bias is not None:
    biases = [
      product(bias[0, head.number], is_target_UL, ROWS_BY_COLUMNS) for head in heads
    ]
  weights = []
  for scores_SL, bias_SL in zip(scores, biases):
    scores_SL = mask(setting, scores_SL, bias_SL, visible_SL)
    weights_SL = jnp.exp(scores_SL - scores_SL.max(axis=0, keepdims=True))
    weights.append(weights_SL * (1 / weights_SL.sum(axis=0, keepdims=True)))
  return weights


def _attend_kernel(
  setting: Heads, per_example: int, query, key, value, visible, bias, target, out
) -> None:
  """Computes a row of `_attend`, for the heads of a group."""
  del per_example
  is_target_UL = _targets_of(target, visible.shape[-1], query.dtype)
  visible_SL = product(visible[0], is_target_UL, ROWS_BY_COLUMNS) > 0.5
  for heads in side_by_side(query.shape[-1], setting.width):
    weights = _weights(setting, heads, query, key, bias, is_target_UL, visible_SL)
    found = [
      product(
        weights_SL.astype(value.dtype), head.with_others(value), COLUMNS_BY_COLUMNS
      )
      for head, weights_SL in zip(heads, weights)
    ]
    write(out, heads, found)


def _gradient_kernel(
  setting: Heads,
  per_example: int,
  query,
  key,
  value,
  visible,
  bias,
  target,
  of_out,
  of_query,
  of_key,
  of_value,
  *of_bias,
) -> None:
  """Computes a row's gradients, and adds to those of its example."""
  dtype = query.dtype
  is_target_UL = _targets_of(target, visible.shape[-1], dtype)
  visible_SL = product(visible[0], is_target_UL, ROWS_BY_COLUMNS) > 0.5

  @pl.when(jax.lax.rem(pl.program_id(1), per_example) == 0)
  def _():
    for ref in (of_key, of_value, *of_bias):
      ref[...] = jnp.zeros_like(ref)

  for heads in side_by_side(query.shape[-1], setting.width):
    weights = _weights(setting, heads, query, key, bias, is_target_UL, visible_SL)
    of_weights = [
      product(head.with_others(value), head.alone(of_out), ROWS_BY_ROWS)
      for head in heads
    ]
    found = [
      product(weights_SL.astype(dtype), head.with_others(of_out), ROWS_BY_COLUMNS)
      for head, weights_SL in zip(heads, weights)
    ]
    add(of_value, heads, found)
    of_scores = []
    for head, weights_SL, of_weights_SL in zip(heads, weights, of_weights):
      change_1L = (weights_SL * of_weights_SL).sum(axis=0, keepdims=True)
      of_scores_SL = weights_SL * (of_weights_SL - change_1L)
      if of_bias:
        of_bias_SU = product(of_scores_SL.astype(dtype), is_target_UL, ROWS_BY_ROWS)
        of_bias[0][0, head.number] += of_bias_SU
      if setting.scale != 1:
        of_scores_SL *= setting.scale
      of_scores.append(of_scores_SL.astype(dtype))
    found = [
      product(of_scores_SL, head.with_others(key), COLUMNS_BY_COLUMNS)
      for head, of_scores_SL in zip(heads, of_scores)
    ]
    write(of_query, heads, found)
    found = [
      product(of_scores_SL, head.with_others(query), ROWS_BY_COLUMNS)
      for head, of_scores_SL in zip(heads, of_scores)
    ]
    add(of_key, heads, found)
