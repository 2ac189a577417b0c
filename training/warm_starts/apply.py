"""Parameters filled as a plan says, each host reading what its devices hold."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from commentree.training import partitioning
from commentree.training.warm_starts.formats.array_source import (
  ArraySource,
  ArraySpec,
  Index,
  concrete,
  extent,
)
from commentree.training.warm_starts.rules import PlanEntry, SourceSlice, WarmStartPlan

PyTree = Any
Draw = Callable[[Sequence[str]], Mapping[str, jax.Array]]
"""Draws the parameters of some names as a new run would, where they are to lie."""

_THREADS = 4


def specs_of(params: PyTree) -> dict[str, ArraySpec]:
  """Returns what parameters are, by dotted name."""
  return {
    name: ArraySpec(tuple(leaf.shape), np.dtype(leaf.dtype))
    for name, leaf in partitioning.flatten_names(params).items()
  }


def fill(plan: WarmStartPlan, source: ArraySource, like: PyTree, draw: Draw) -> PyTree:
  """Returns the parameters.

  Args:
    plan: made for `source` and `like`.
    source: the arrays.
    like: the abstract parameters, with shardings.
    draw: makes those that are fresh.

  Raises:
    UserError: if the files do not hold what they claim.
  """
  loaded = load(plan, source, like)
  return complete(plan, loaded, like, draw)


def load(
  plan: WarmStartPlan, source: ArraySource, like: PyTree
) -> dict[str, jax.Array]:
  """Reads what this host's devices hold; hosts need not do so together.

  Args:
    plan: made for `source` and `like`.
    source: the arrays.
    like: the abstract parameters, with shardings.

  Returns:
    Arrays by name; those that are grown hold 0 where they are new.

  Raises:
    UserError: if the files do not hold what they claim.
  """
  leaves = partitioning.flatten_names(like)

  def load_line(line: PlanEntry) -> jax.Array:
    return _load(line, source, leaves[line.parameter])

  lines = plan.of("loaded", "grown")
  # Reading waits for the storage; what is in flight is a part of a few arrays.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    arrays = list(pool.map(load_line, lines))
  return dict(zip([line.parameter for line in lines], arrays))


def complete(
  plan: WarmStartPlan, loaded: Mapping[str, jax.Array], like: PyTree, draw: Draw
) -> PyTree:
  """Returns the parameters, grown and with fresh ones; all hosts do so together.

  Args:
    plan: the plan.
    loaded: what `load` returned; of no use afterwards.
    like: the abstract parameters, with shardings.
    draw: makes those that are fresh.
  """
  leaves = partitioning.flatten_names(like)
  arrays = dict(loaded)
  for line in plan.of("grown"):
    axis, length = _growth(line)
    grow = functools.partial(_with_mean, axis=axis, length=length)
    sharding = leaves[line.parameter].sharding
    jitted = jax.jit(grow, out_shardings=sharding, donate_argnums=0)
    arrays[line.parameter] = jitted(arrays[line.parameter])
  for line in plan.of("zero"):
    leaf = leaves[line.parameter]
    zeros = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
    arrays[line.parameter] = jax.jit(zeros, out_shardings=leaf.sharding)()
  fresh = [line.parameter for line in plan.of("fresh")]
  if fresh:
    arrays |= draw(fresh)
  return flax.traverse_util.unflatten_dict({n: arrays[n] for n in leaves}, sep=".")


def _load(
  line: PlanEntry, source: ArraySource, leaf: jax.ShapeDtypeStruct
) -> jax.Array:
  @functools.cache
  def part(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
    index = tuple(slice(*bound) for bound in bounds)
    return read_part(line, source, index)

  def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
    # Devices that hold copies of one part share what was read.
    assert index is not None
    return part(tuple((s.start, s.stop) for s in concrete(index, leaf.shape)))

  return jax.make_array_from_callback(leaf.shape, leaf.sharding, of_device)


def read_part(line: PlanEntry, source: ArraySource, index: Index) -> np.ndarray:
  """Returns a part of a parameter, of its type; where it is grown, 0.

  Args:
    line: of a plan.
    source: the arrays.
    index: which part.
  """
  dtype = line.spec.dtype
  if line.stacked:
    layers = line.slices[index[0].start : index[0].stop]
    stack = np.empty(extent(index), dtype)
    for slot, part in zip(stack, layers):
      slot[...] = _read_slice(part, source, index[1:])
    return stack
  (part,) = line.slices
  if line.fate != "grown":
    return _read_slice(part, source, index).astype(dtype, copy=False)
  axis, length = _growth(line)
  there = slice(index[axis].start, min(index[axis].stop, length))
  padded = np.zeros(extent(index), dtype)
  if there.start < there.stop:
    wanted = (*index[:axis], there, *index[axis + 1 :])
    into = (*[slice(None)] * axis, slice(0, there.stop - there.start))
    padded[into] = _read_slice(part, source, wanted)
  return padded


def _growth(line: PlanEntry) -> tuple[int, int]:
  """Returns along which axis a parameter is grown, and from which length."""
  axis, length = line.slices[0].chain.grow, line.length
  assert axis is not None
  assert length is not None
  return axis, length


def _read_slice(part: SourceSlice, source: ArraySource, index: Index) -> np.ndarray:
  return part.chain.read(
    functools.partial(source.read, part.source),
    index,
    source.arrays[part.source].shape,
  )


def _with_mean(array: jax.Array, axis: int, length: int) -> jax.Array:
  """Returns an array whose entries from `length` on are the mean of those before.

  A new row of an embedding table starts amid the others, and a new column of logits
  as likely as a token is on average (Hewitt 2021): one drawn anew would outdo all
  tokens that a trained model holds for unlikely.
  """
  mean = jnp.sum(array, axis, keepdims=True) / length
  is_new = jax.lax.broadcasted_iota(jnp.int32, array.shape, axis) >= length
  return jnp.where(is_new, mean, array)
