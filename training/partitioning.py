"""One mesh over all devices, and where each array lies on it.

Parameters carry names of logical axes; rules map those to the mesh's axes `data` and
`model`, and XLA does the rest. One device is a mesh of 1 x 1 and takes the same path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import flax
import jax
import numpy as np
from flax.linen import partitioning as flax_partitioning
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from .config import PartitioningConfig

PyTree = Any
_AXES_SUFFIX = "_axes"


def make_mesh(config: PartitioningConfig) -> Mesh:
  """Returns the mesh of all devices, data x model.

  Raises:
    UserError: if the devices cannot be shared so.
  """
  devices = jax.devices()
  if len(devices) % config.model_parallel:
    raise UserError(
      f"PartitioningConfig.model_parallel = {config.model_parallel}: must divide the"
      f" {len(devices)} devices here"
    )
  # Neighbours share a model: they talk most.
  grid = np.array(devices).reshape(-1, config.model_parallel)
  return Mesh(grid, ("data", "model"))


def describe(mesh: Mesh) -> str:
  """Returns one line about the mesh."""
  device = mesh.devices.flat[0]
  return (
    f"{mesh.size} x {device.device_kind} ({device.platform}),"
    f" {mesh.shape['data']} data x {mesh.shape['model']} model"
  )


@contextlib.contextmanager
def in_mesh(mesh: Mesh, config: PartitioningConfig) -> Iterator[None]:
  """Within it, the model's logical constraints on activations take effect."""
  with (
    jax.set_mesh(mesh),
    flax_partitioning.axis_rules(config.logical_axis_rules),
  ):
    yield


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def flatten_names(tree: PyTree) -> dict[str, Any]:
  """Returns leaves by dotted path, as T5X names parameters."""
  tree = flax.core.unfreeze(tree)
  return flax.traverse_util.flatten_dict(tree, sep=".")


def parameter_shardings(
  shapes: PyTree, axes: PyTree, mesh: Mesh, config: PartitioningConfig
) -> PyTree:
  """Returns the sharding of every parameter.

  Args:
    shapes: parameters, or anything with their shapes.
    axes: `params_axes` as the model returns them: `AxisMetadata` under each
      parameter's name plus `_axes`.
    mesh: the mesh.
    config: the rules.

  Raises:
    UserError: naming the parameter, if it has no axes, as many as it has not, one
      that no rule knows, or one that the mesh does not divide.
  """
  known = {logical for logical, _ in config.logical_axis_rules}
  axes_by_name = {
    name.removesuffix(_AXES_SUFFIX): tuple(metadata.names)
    for name, metadata in flatten_names(axes).items()
  }
  shardings = {}
  for name, leaf in flatten_names(shapes).items():
    names = axes_by_name.get(name)
    if names is None:
      raise UserError(f"parameter {name} has no logical axes: declare it with axes")
    if len(names) != len(leaf.shape):
      raise UserError(
        f"parameter {name} has logical axes {names}, but shape {leaf.shape}:"
        " name one axis for each dimension"
      )
    unknown = [axis for axis in names if axis is not None and axis not in known]
    if unknown:
      raise UserError(
        f"parameter {name} has the logical axis {unknown[0]!r}, which no rule knows:"
        " add it to PartitioningConfig.logical_axis_rules"
      )
    spec = logical_to_mesh_axes(names, config.logical_axis_rules) or PartitionSpec()
    for axis, size, target in zip(names, leaf.shape, spec):
      if target is not None and size % mesh.shape[target]:
        raise UserError(
          f"parameter {name}: its axis {axis!r} of {size} does not divide over the"
          f" {mesh.shape[target]} devices of mesh axis {target!r}"
        )
    shardings[name] = NamedSharding(mesh, spec)
  return flax.traverse_util.unflatten_dict(shardings, sep=".")


def optimizer_shardings(
  optimizer_state: PyTree, shapes: PyTree, shardings: PyTree, mesh: Mesh
) -> PyTree:
  """Returns the sharding of every leaf of an optimizer's state.

  A leaf that mirrors a parameter (its path ends in the parameter's, and the shapes
  are equal) lies as the parameter does; the rest, counters and Adafactor's row and
  column statistics, is small and whole on every device.

  Args:
    optimizer_state: the state, or its shapes.
    shapes: the parameters' shapes.
    shardings: the parameters' shardings.
    mesh: the mesh.
  """
  shape_of = {name: leaf.shape for name, leaf in flatten_names(shapes).items()}
  sharding_of = flatten_names(shardings)

  def sharding(path, leaf) -> NamedSharding:
    keys = [str(key.key) for key in path if hasattr(key, "key")]
    for start in range(len(keys)):
      name = ".".join(keys[start:])
      if shape_of.get(name) == leaf.shape:
        return sharding_of[name]
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(sharding, optimizer_state)
