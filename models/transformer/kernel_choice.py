"""Whether self-attention is computed by kernels, and which devices compute what of it.

A kernel is a program of its own that XLA does not divide over devices: each computes
the rows and the heads that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax.linen import partitioning
from jax.sharding import AbstractMesh, PartitionSpec

from commentree.errors import UserError
from commentree.models.config import Attention
from commentree.models.layers import Array

# Rows of other lengths would leave registers partly empty, and are not tried.
ROW_MULTIPLE = 128

# Tests set it: kernels run as plain JAX, on any device.
INTERPRET = False

Attend = Callable[[Array, Array, Array, Array, Array | None], Array]


def kernel_for(
  setting: Attention,
  query_RLX: Array,
  num_heads: int,
  scale: float,
) -> Attend | None:
  """Returns what computes self-attention by kernels, None where plain JAX is to.

  Called with queries, keys and values `[R, L, X]`, where queries see keys `[R, L, L]`,
  and the bias `[H, L, L]` or None, it returns `[R, L, X]`.

  Args:
    setting: `ModelConfig.attention`.
    query_RLX: queries.
    num_heads: H.
    scale: what products of queries and keys are multiplied by.

  Raises:
    UserError: if kernels are asked for and cannot compute this.
  """
  if setting == "xla":
    return None
  mesh = jax.sharding.get_abstract_mesh()
  spec = _spec()
  reason = _reason_against(mesh, spec, query_RLX, num_heads)
  if reason is None:
    # Imported where it is needed: Pallas takes a quarter of a second.
    from commentree.models.transformer import attention_kernels

    local_heads = num_heads // _parts(mesh, spec[2])
    width = query_RLX.shape[-1] // num_heads
    groups = attention_kernels.count_groups(
      query_RLX.shape[1], local_heads, width, query_RLX.dtype.itemsize
    )
    if groups is not None:
      heads = attention_kernels.Heads(width, scale, groups, INTERPRET)

      def attend(*operands: Array | None) -> Array:
        return attention_kernels.attend(*operands, heads)

      return _on_each_device(mesh, spec, attend)
    reason = f"rows of {query_RLX.shape[1]} tokens do not fit a TPU's on-chip memory"
  if setting == "pallas":
    raise UserError(
      f"ModelConfig.attention = 'pallas': {reason}; set ModelConfig.attention = 'auto'"
    )
  return None


def _spec() -> tuple[Any, Any, Any]:
  """Returns mesh axes of rows, of their columns, and of heads, by the rules in force.

  The last is that of whole heads: `joined_kv` could be cut within one.
  """
  spec = partitioning.logical_to_mesh_axes(("batch", "length", "heads"))
  batch, length, heads = spec or (None, None, None)
  return batch, length, heads


def _reason_against(
  mesh: AbstractMesh, spec: tuple[Any, Any, Any], query_RLX: Array, num_heads: int
) -> str | None:
  """Returns why kernels cannot compute this here, None if they can."""
  device = mesh.abstract_device
  platform = jax.default_backend() if device is None else device.platform
  rows, length, _ = query_RLX.shape
  if platform != "tpu" and not INTERPRET:
    return f"its kernels are for TPUs, and this is a {platform}"
  if mesh.empty and jax.device_count() > 1 and not INTERPRET:
    return "several devices, and no mesh in force that tells which computes what"
  if length % ROW_MULTIPLE and not INTERPRET:
    return f"rows of {length} tokens are not a multiple of {ROW_MULTIPLE}"
  if rows % _parts(mesh, spec[0]) or _parts(mesh, spec[1]) > 1:
    return f"{rows} rows of tokens do not divide over the mesh {dict(mesh.shape)}"
  if num_heads % _parts(mesh, spec[2]):
    return f"{num_heads} heads do not divide over the mesh {dict(mesh.shape)}"
  return None


def _parts(mesh: AbstractMesh, axes: Any) -> int:
  """Returns over how many devices an axis of an array lies."""
  if axes is None or mesh.empty:
    return 1
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[name] for name in names)


def _on_each_device(
  mesh: AbstractMesh, spec: tuple[Any, Any, Any], attend: Attend
) -> Attend:
  """Returns `attend`, done by each device of the rows and heads that it holds."""
  if mesh.empty or mesh.size == 1:
    return attend
  batch, length, of_heads = spec
  of_rows = PartitionSpec(batch, length, of_heads)
  return jax.shard_map(
    attend,
    in_specs=(
      of_rows,
      of_rows,
      of_rows,
      PartitionSpec(batch, length, None),
      PartitionSpec(of_heads, None, None),
    ),
    out_specs=of_rows,
    # The bias's gradient is added up over the devices that hold other rows.
    check_vma=False,
  )
