"""Whether attention is computed by kernels, and which devices compute what of it.

A kernel is a program of its own that XLA does not divide over devices: each computes
the rows and the heads that it holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax.linen import partitioning
from jax.sharding import AbstractMesh, PartitionSpec

from commentree.errors import UserError
from commentree.models.ancestor_context import ByTarget
from commentree.models.config import Attention
from commentree.models.layers import Array

# Rows of other lengths would leave registers partly empty, and are not tried.
ROW_MULTIPLE = 128
# Their matrix units take no bfloat16 from a kernel: Mosaic refuses to compile it.
_TOO_OLD = ("TPU v2", "TPU v3")

_NO_MEMORY = "rows of {} tokens do not fit a TPU's on-chip memory"

# Tests set it: kernels run as plain JAX, on any device.
INTERPRET = False

Attend = Callable[..., Array]


def kernel_for(
  setting: Attention, query_RLX: Array, num_heads: int, scale: float
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
  place = _place(setting, query_RLX, len(query_RLX), num_heads)
  if place is None:
    return None
  # Imported where it is needed: Pallas takes a quarter of a second.
  from commentree.models.transformer import attention_kernels
  from commentree.models.transformer.kernel_parts import Heads

  width = query_RLX.shape[-1] // num_heads
  groups = attention_kernels.count_groups(
    query_RLX.shape[1], place.num_heads, width, query_RLX.dtype.itemsize
  )
  if groups is None:
    _check_allowed(setting, _NO_MEMORY.format(query_RLX.shape[1]))
    return None
  heads = Heads(width, scale, groups, INTERPRET)

  def attend(*operands: Any) -> Array:
    return attention_kernels.attend(*operands, heads)

  rows, columns = place.rows, place.heads
  of_rows = PartitionSpec(rows, None, columns)
  return place.on_each_device(
    attend,
    of_rows,
    (
      of_rows,
      of_rows,
      of_rows,
      PartitionSpec(rows, None, None),
      PartitionSpec(columns, None, None),
    ),
  )


def ancestor_kernel_for(
  setting: Attention,
  query_RLX: Array | jax.ShapeDtypeStruct,
  num_heads: int,
  scale: float,
  by_target: ByTarget,
) -> Attend | None:
  """As `kernel_for`, of attention to ancestors' vectors.

  Called with queries `[R, L, X]`, keys and values `[B, S, X]`, and `by_target`'s, it
  returns `[R, L, X]`.
  """
  examples, targets, vectors = by_target.visible_BUS.shape
  place = _place(setting, query_RLX, examples, num_heads)
  if place is None:
    return None
  from commentree.models.transformer import ancestor_kernels
  from commentree.models.transformer.kernel_parts import Heads

  width = query_RLX.shape[-1] // num_heads
  itemsize = query_RLX.dtype.itemsize
  groups = ancestor_kernels.count_groups(
    query_RLX.shape[1], vectors, targets, place.num_heads, width, itemsize
  )
  if groups is None:
    _check_allowed(setting, _NO_MEMORY.format(query_RLX.shape[1]))
    return None
  heads = Heads(width, scale, groups, INTERPRET)

  attend = functools.partial(ancestor_kernels.attend_to_vectors, heads=heads)
  rows, columns = place.rows, place.heads
  of_rows = PartitionSpec(rows, None, columns)
  return place.on_each_device(
    attend,
    of_rows,
    (
      of_rows,
      of_rows,
      of_rows,
      PartitionSpec(rows, None, None),
      PartitionSpec(rows, columns, None, None),
      PartitionSpec(rows, None),
    ),
  )


class _Place(NamedTuple):
  """Where kernels run.

  Attributes:
    mesh: devices.
    rows: mesh axes that rows lie on.
    heads: mesh axes that heads lie on.
    num_heads: those of a device.
  """

  mesh: AbstractMesh
  rows: Any
  heads: Any
  num_heads: int

  def on_each_device(
    self, attend: Attend, of_result: PartitionSpec, of_operands: tuple[Any, ...]
  ) -> Attend:
    """Returns `attend`, done by each device of the rows and heads that it holds."""
    if self.mesh.empty or self.mesh.size == 1:
      return attend
    return jax.shard_map(
      attend,
      in_specs=of_operands,
      out_specs=of_result,
      # Gradients of what all rows share are added up over the devices that hold them.
      check_vma=False,
    )


def _place(
  setting: Attention,
  query_RLX: Array | jax.ShapeDtypeStruct,
  num_examples: int,
  num_heads: int,
) -> _Place | None:
  """Returns where kernels compute this, None where plain JAX is to.

  Args:
    setting: `ModelConfig.attention`.
    query_RLX: queries.
    num_examples: what devices share out.
    num_heads: H.

  Raises:
    UserError: if kernels are asked for and cannot compute this.
  """
  if setting == "xla":
    return None
  mesh = jax.sharding.get_abstract_mesh()
  batch, length, heads = _spec()
  reason = _reason_against(mesh, query_RLX.shape[1])
  if reason is None and (
    num_examples % _parts(mesh, batch) or _parts(mesh, length) > 1
  ):
    reason = f"{num_examples} rows do not divide over the mesh {dict(mesh.shape)}"
  if reason is None and num_heads % _parts(mesh, heads):
    reason = f"{num_heads} heads do not divide over the mesh {dict(mesh.shape)}"
  if reason is None:
    return _Place(mesh, batch, heads, num_heads // _parts(mesh, heads))
  _check_allowed(setting, reason)
  return None


def _check_allowed(setting: Attention, reason: str) -> None:
  """Raises UserError with the `reason` against kernels if they are asked for."""
  if setting == "pallas":
    raise UserError(
      f"ModelConfig.attention = 'pallas': {reason}; set ModelConfig.attention = 'auto'"
    )


def _spec() -> tuple[Any, Any, Any]:
  """Returns mesh axes of rows, of their columns, and of heads, by the rules in force.

  The last is that of whole heads: `joined_kv` could be cut within one.
  """
  spec = partitioning.logical_to_mesh_axes(("batch", "length", "heads"))
  batch, length, heads = spec or (None, None, None)
  return batch, length, heads


def _reason_against(mesh: AbstractMesh, length: int) -> str | None:
  """Returns why no kernel can compute rows of `length` here, None if one can."""
  if INTERPRET:
    return None
  device = mesh.abstract_device or jax.devices()[0]
  if device.platform != "tpu":
    return f"its kernels are for TPUs, and this is a {device.platform}"
  if device.device_kind in _TOO_OLD:
    return f"its kernels are for TPUs from v4 on, and this is a {device.device_kind}"
  if mesh.empty and jax.device_count() > 1:
    return "several devices, and no mesh in force that tells which computes what"
  if length % ROW_MULTIPLE:
    return f"rows of {length} tokens are not a multiple of {ROW_MULTIPLE}"
  return None


def _parts(mesh: AbstractMesh, axes: Any) -> int:
  """Returns over how many devices an axis of an array lies."""
  if axes is None or mesh.empty:
    return 1
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[name] for name in names)
