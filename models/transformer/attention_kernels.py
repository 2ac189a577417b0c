"""Self-attention as Pallas kernels for TPUs, forwards and backwards.

Scores, softmax and masks stay in on-chip memory (VMEM); plain JAX writes the scores of
each layer to HBM and reads them again. Queries, keys and values come as the projections
leave them, `[R, L, H * K]`, so that no heads are split or transposed in HBM. The
gradient computes the scores again, with keys down and queries across, so that sums over
keys add up registers.

The unit of a register is `LANES` lanes. Heads narrower than that share them: the
products of one take the others' lanes as 0, which costs a matrix unit nothing.

Shapes: R rows, L columns, H heads of width K, X = H * K.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from commentree.models.layers import MASKED_SCORE, Array

LANES = 128
# libtpu grants a kernel 16 MiB of VMEM; the rest is for what the compiler spills.
VMEM_BYTES = 12 * 2**20

# Sums over the second, the first, or the inner axes.
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
_COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))
_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))


class Heads(NamedTuple):
  """How heads lie in the last axis, and what becomes of their scores.

  Attributes:
    width: K.
    scale: what products of queries and keys are multiplied by.
    groups: parts that heads are computed in, one after another.
    interpret: whether kernels run as plain JAX, on any device.
  """

  width: int
  scale: float
  groups: int
  interpret: bool


def count_groups(length: int, num_heads: int, width: int, itemsize: int) -> int | None:
  """Returns in how few parts of heads the gradient's kernel fits VMEM.

  None if it never does.

  Args:
    length: L.
    num_heads: H.
    width: K.
    itemsize: bytes of a query's element.
  """
  for groups in range(1, num_heads + 1):
    heads, rest = divmod(num_heads, groups)
    whole_registers = heads * width % LANES == 0
    if rest or not (whole_registers or groups == 1):
      continue
    # Two copies of each block, one being read or written while the other is used: of
    # seven operands, the mask, the bias and its gradient. Then some scores.
    operands = 2 * 7 * length * heads * width * itemsize
    squares = length**2 * (2 * 1 + 2 * 2 * 4 * heads + 6 * 4)
    if operands + squares <= VMEM_BYTES:
      return groups
  return None


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
  mask = pl.BlockSpec((1, length, length), lambda group, row: (row, 0, 0))
  bias = pl.BlockSpec(
    (num_heads // heads.groups, length, length), lambda group, row: (group, 0, 0)
  )
  blocks = [of_rows, of_rows, of_rows, mask, bias, *[of_rows] * (len(operands) - 5)]
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


def _lanes(joined: int, width: int) -> list[tuple[int, int]]:
  """Returns first and last lane of the parts that whole heads are computed in."""
  together = LANES if LANES % width == 0 else width
  return [
    (first, min(first + together, joined)) for first in range(0, joined, together)
  ]


def _product(x: Array, y: Array, axes: Any) -> Array:
  return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _only(x: Array, first: int, width: int) -> Array:
  """Returns `x` with the lanes of one head and 0 in those of others."""
  if x.shape[-1] == width:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where((lane >= first) & (lane < first + width), x, jnp.zeros_like(x))


def _beside(earlier: Array | None, x: Array, first: int) -> Array:
  """Returns `earlier` with the lanes from `first` on of `x`."""
  if earlier is None:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(lane >= first, x, earlier)


def _attend_kernel(heads: Heads, query, key, value, visible, bias, out) -> None:
  """Computes a row of `attend`, for the heads of a group."""
  width = heads.width
  visible_LL = visible[0].astype(jnp.int32) != 0
  for start, stop in _lanes(query.shape[-1], width):
    query_LX, key_LX, value_LX = (x[0, :, start:stop] for x in (query, key, value))
    out_LX: Any = None
    for first in range(0, stop - start, width):
      head = (start + first) // width
      scores_LL = _product(_only(query_LX, first, width), key_LX, _ROWS_BY_ROWS)
      scores_LL = _masked(heads, scores_LL, bias, head, visible_LL)
      weights_LL = jnp.exp(scores_LL - scores_LL.max(axis=1, keepdims=True))
      total_L1 = weights_LL.sum(axis=1, keepdims=True)
      weights_LL = weights_LL.astype(value_LX.dtype)
      of_head_LX = _product(weights_LL, value_LX, _ROWS_BY_COLUMNS) / total_L1
      out_LX = _beside(out_LX, of_head_LX, first)
    out[0, :, start:stop] = out_LX.astype(out.dtype)


def _masked(heads: Heads, scores_LL: Array, bias, head: int, visible_LL: Array):
  if heads.scale != 1:
    scores_LL *= heads.scale
  if bias is not None:
    scores_LL += bias[head].astype(jnp.float32)
  return jnp.where(visible_LL, scores_LL, MASKED_SCORE)


def _gradient_kernel(
  heads: Heads, query, key, value, visible, bias, of_out, *results
) -> None:
  """Computes a row's gradients; mask and bias have keys down and queries across."""
  of_query, of_key, of_value, *of_bias = results
  width, dtype = heads.width, query.dtype
  visible_LL = visible[0].astype(jnp.int32) != 0
  if of_bias:

    @pl.when(pl.program_id(1) == 0)
    def _():
      of_bias[0][...] = jnp.zeros_like(of_bias[0])

  for start, stop in _lanes(query.shape[-1], width):
    query_LX, key_LX, value_LX, of_out_LX = (
      x[0, :, start:stop] for x in (query, key, value, of_out)
    )
    found: Any = [None, None, None]
    for first in range(0, stop - start, width):
      head = (start + first) // width
      scores_LL = _product(key_LX, _only(query_LX, first, width), _ROWS_BY_ROWS)
      scores_LL = _masked(heads, scores_LL, bias, head, visible_LL)
      weights_LL = jnp.exp(scores_LL - scores_LL.max(axis=0, keepdims=True))
      weights_LL *= 1 / weights_LL.sum(axis=0, keepdims=True)
      of_weights_LL = _product(value_LX, _only(of_out_LX, first, width), _ROWS_BY_ROWS)
      change_1L = (weights_LL * of_weights_LL).sum(axis=0, keepdims=True)
      of_scores_LL = weights_LL * (of_weights_LL - change_1L)
      # Weights are not 0 where a query sees nothing; gradients are.
      of_scores_LL = jnp.where(visible_LL, of_scores_LL, 0)
      if of_bias:
        of_bias[0][head] += of_scores_LL
      if heads.scale != 1:
        of_scores_LL *= heads.scale
      of_scores_LL = of_scores_LL.astype(dtype)
      of_head = (
        _product(of_scores_LL, key_LX, _COLUMNS_BY_COLUMNS),
        _product(of_scores_LL, query_LX, _ROWS_BY_COLUMNS),
        _product(weights_LL.astype(dtype), of_out_LX, _ROWS_BY_COLUMNS),
      )
      found = [_beside(*pair, first) for pair in zip(found, of_head)]
    for ref, of_rows_LX in zip((of_query, of_key, of_value), found):
      ref[0, :, start:stop] = of_rows_LX.astype(ref.dtype)
