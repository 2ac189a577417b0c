"""Self-attention as Pallas kernels for TPUs, forwards and backwards.

Scores, softmax and masks stay in on-chip memory (VMEM); plain JAX writes the scores of
each layer to HBM and reads them again. Queries, keys and values come as the projections
leave them, `[R, L, H * K]`, so that no heads are split or transposed in HBM. The
gradient computes the scores again, with keys down and queries across, so that sums over
keys add up registers.

Shapes: R rows, L columns, H heads of width K, X = H * K.
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
  ROWS_BY_COLUMNS,
  ROWS_BY_ROWS,
  Heads,
  fewest_groups,
  mask,
  product,
  side_by_side,
  write,
)


def count_groups(length: int, num_heads: int, width: int, itemsize: int) -> int | None:
  """Returns in how few parts of heads the gradient's kernel fits VMEM.

  None if it never does.

  Args:
    length: L.
    num_heads: H.
    width: K.
    itemsize: bytes of a query's element.
  """

  def bytes_of(heads: int) -> int:
    # Two copies of each block, one being read or written while the other is used: of
    # seven operands, the mask, the bias and its gradient. Then some scores.
    operands = 2 * 7 * length * heads * width * itemsize
    return operands + length**2 * (2 * 1 + 2 * 2 * 4 * heads + 6 * 4)

  return fewest_groups(num_heads, width, bytes_of)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
  query_RLX: Array,
  key_RLX: Array,
  value_RLX: Array,
  visible_RLL: Array,
  bias_HLL: Array | None,
  heads: Heads,
) -> Array:
  """Averages values by the softmax of each head's scores; returns `[R, L, X]`.

  Args:
    query_RLX: queries.
    key_RLX: keys.
    value_RLX: values.
    visible_RLL: int8, not 0 where a query sees a key.
    bias_HLL: added to the scores, or None.
    heads: how heads lie in X.
  """
  operands = (query_RLX, key_RLX, value_RLX, visible_RLL, bias_HLL)
  out = jax.ShapeDtypeStruct(query_RLX.shape, query_RLX.dtype)
  (out_RLX,) = _call(_attend_kernel, "self_attention_kernel", heads, operands, [out], 2)
  return out_RLX


def _forward(query_RLX, key_RLX, value_RLX, visible_RLL, bias_HLL, heads):
  operands = (query_RLX, key_RLX, value_RLX, visible_RLL, bias_HLL)
  return attend(*operands, heads), operands


def _backward(heads: Heads, operands: tuple[Any, ...], of_out_RLX: Array):
  *of_rows, visible_RLL, bias_HLL = operands
  results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in of_rows]
  bias_down_HLL = None
  if bias_HLL is not None:
    bias_down_HLL = bias_HLL.swapaxes(1, 2)
    results.append(jax.ShapeDtypeStruct(bias_HLL.shape, jnp.float32))
  operands = (*of_rows, visible_RLL.swapaxes(1, 2), bias_down_HLL, of_out_RLX)
  name = "self_attention_gradient_kernel"
  found = _call(_gradient_kernel, name, heads, operands, results, 5)
  of_bias_HLL = None
  if bias_HLL is not None:
    of_bias_HLL = found[3].swapaxes(1, 2).astype(bias_HLL.dtype)
  return (*found[:3], None, of_bias_HLL)


attend.defvjp(_forward, _backward)


def _call(
  kernel: Any,
  name: str,
  heads: Heads,
  operands: tuple[Array | None, ...],
  results: list[jax.ShapeDtypeStruct],
  products: int,
) -> list[Array]:
  """Calls a kernel for each row and group of heads, rows the fastest.

  Args:
    kernel: called with `heads` and a reference to its part of each operand and result.
    name: of the call in the compiled program.
    heads: how heads lie in X.
    operands: three of rows, the mask, the bias or None, then others of rows.
    results: up to three of rows, then of the bias, to which all rows add.
    products: of matrices `[L, L]` and `[L, K]`, for each head of a row.
  """
  rows, length, joined = results[0].shape
  num_heads = joined // heads.width
  of_rows = pl.BlockSpec(
    (1, length, joined // heads.groups), lambda group, row: (row, 0, group)
  )
  visible = pl.BlockSpec((1, length, length), lambda group, row: (row, 0, 0))
  bias = pl.BlockSpec(
    (num_heads // heads.groups, length, length), lambda group, row: (group, 0, 0)
  )
  blocks = [of_rows, of_rows, of_rows, visible, bias, *[of_rows] * (len(operands) - 5)]
  given = [(block, x) for block, x in zip(blocks, operands) if x is not None]
  adds_up = len(results) == 4

  def body(*refs):
    no_bias = (None,) if operands[4] is None else ()
    kernel(heads, *refs[:4], *no_bias, *refs[4:])

  scores = rows * num_heads * length**2
  arrays: list[Any] = [*(x for _, x in given), *results]
  return pl.pallas_call(
    body,
    out_shape=results,
    grid=(heads.groups, rows),
    in_specs=[block for block, _ in given],
    out_specs=[of_rows, of_rows, of_rows, bias][: len(results)],
    interpret=heads.interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary" if adds_up else "parallel")
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * scores * heads.width,
      transcendentals=scores,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    ),
    name=name,
  )(*[x for _, x in given])


def _attend_kernel(setting: Heads, query, key, value, visible, bias, out) -> None:
  """Computes a row of `attend`, for the heads of a group."""
  visible_LL = visible[0].astype(jnp.int32) != 0
  for heads in side_by_side(query.shape[-1], setting.width):
    scores = [
      product(head.alone(query), head.with_others(key), ROWS_BY_ROWS) for head in heads
    ]
    weights, totals = [], []
    for head, scores_LL in zip(heads, scores):
      bias_LL = None if bias is None else bias[head.number]
      scores_LL = mask(setting, scores_LL, bias_LL, visible_LL)
      weights_LL = jnp.exp(scores_LL - scores_LL.max(axis=1, keepdims=True))
      totals.append(weights_LL.sum(axis=1, keepdims=True))
      weights.append(weights_LL.astype(value.dtype))
    found = [
      product(weights_LL, head.with_others(value), ROWS_BY_COLUMNS) / total_L1
      for head, weights_LL, total_L1 in zip(heads, weights, totals)
    ]
    write(out, heads, found)


def _gradient_kernel(
  setting: Heads, query, key, value, visible, bias, of_out, *results
) -> None:
  """Computes a row's gradients; mask and bias have keys down and queries across."""
  of_query, of_key, of_value, *of_bias = results
  dtype = query.dtype
  visible_LL = visible[0].astype(jnp.int32) != 0
  if of_bias:

    @pl.when(pl.program_id(1) == 0)
    def _():
      of_bias[0][...] = jnp.zeros_like(of_bias[0])

  for heads in side_by_side(query.shape[-1], setting.width):
    scores = [
      product(head.with_others(key), head.alone(query), ROWS_BY_ROWS) for head in heads
    ]
    weights = []
    for head, scores_LL in zip(heads, scores):
      bias_LL = None if bias is None else bias[head.number]
      scores_LL = mask(setting, scores_LL, bias_LL, visible_LL)
      weights_LL = jnp.exp(scores_LL - scores_LL.max(axis=0, keepdims=True))
      weights.append(weights_LL * (1 / weights_LL.sum(axis=0, keepdims=True)))
    of_weights = [
      product(head.with_others(value), head.alone(of_out), ROWS_BY_ROWS)
      for head in heads
    ]
    found = [
      product(weights_LL.astype(dtype), head.with_others(of_out), ROWS_BY_COLUMNS)
      for head, weights_LL in zip(heads, weights)
    ]
    write(of_value, heads, found)
    of_scores = []
    for head, weights_LL, of_weights_LL in zip(heads, weights, of_weights):
      change_1L = (weights_LL * of_weights_LL).sum(axis=0, keepdims=True)
      # Weights are not 0 where a query sees nothing; gradients are.
      of_scores_LL = jnp.where(visible_LL, weights_LL * (of_weights_LL - change_1L), 0)
      if of_bias:
        of_bias[0][head.number] += of_scores_LL
      if setting.scale != 1:
        of_scores_LL *= setting.scale
      of_scores.append(of_scores_LL.astype(dtype))
    found = [
      product(of_scores_LL, head.with_others(key), COLUMNS_BY_COLUMNS)
      for head, of_scores_LL in zip(heads, of_scores)
    ]
    write(of_query, heads, found)
    found = [
      product(of_scores_LL, head.with_others(query), ROWS_BY_COLUMNS)
      for head, of_scores_LL in zip(heads, of_scores)
    ]
    write(of_key, heads, found)
