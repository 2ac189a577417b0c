"""One mesh over all devices, and where each array lies on it.

The mesh has four axes (`config.MESH_AXES`): `slice`, joined by the data-centre
network; `data` and `fsdp`, which share out examples; `model`, which shares the work on
each. Parameters carry names of logical axes; rules map those to axes of the mesh, and
XLA does the rest. One device is a mesh of 1 x 1 x 1 x 1 and takes the same path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax
import jax
from flax.linen import partitioning as flax_partitioning
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from commentree.errors import UserError, suggestion
from commentree.training.config import (
  BATCH_AXES,
  DEFAULT_AXIS_RULES,
  MESH_AXES,
  PartitioningConfig,
)

PyTree = Any
_AXES_SUFFIX = "_axes"


def make_mesh(
  config: PartitioningConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of all devices, with the axes `MESH_AXES`.

  Slices are cut along the data-centre network, and within a slice neighbours share a
  model: they talk most.

  Args:
    config: sizes of the axes.
    devices: the devices; all there are if None.

  Raises:
    UserError: if the devices cannot be shared so.
  """
  devices = jax.devices() if devices is None else list(devices)
  told = {getattr(device, "slice_index", None) for device in devices}
  found = len(told) if None not in told else 1
  slices = config.num_slices or found
  if found not in (1, slices):
    raise UserError(
      f"PartitioningConfig.num_slices = {slices}: the devices form {found} slices"
    )
  shape = (slices, *_slice_shape(config, len(devices), slices))
  if found > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (1, *shape[1:]), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
  else:
    # One slice, or hosts that play several: in order, so that each is contiguous.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES)


def _slice_shape(
  config: PartitioningConfig, num_devices: int, slices: int
) -> tuple[int, int, int]:
  """Returns the sizes of `data`, `fsdp` and `model` within a slice."""
  if num_devices % slices:
    raise UserError(
      f"PartitioningConfig.num_slices = {slices}: must divide the {num_devices} devices"
    )
  left = num_devices // slices
  here = f"the {left} devices of a slice" if slices > 1 else f"the {left} devices here"
  if left % config.model_parallel:
    raise UserError(
      f"PartitioningConfig.model_parallel = {config.model_parallel}: must divide {here}"
    )
  left //= config.model_parallel
  fsdp = left if config.fsdp_parallel == -1 else config.fsdp_parallel
  if left % fsdp:
    raise UserError(
      f"PartitioningConfig.fsdp_parallel = {fsdp}: times model_parallel ="
      f" {config.model_parallel} must divide {here}"
    )
  return left // fsdp, fsdp, config.model_parallel


def describe(mesh: Mesh) -> str:
  """Returns one line about the mesh."""
  device = mesh.devices.flat[0]
  shape = dict(mesh.shape)
  if shape["slice"] == 1:
    del shape["slice"]
  axes = " x ".join(f"{size} {axis}" for axis, size in shape.items())
  hosts = len({device.process_index for device in mesh.devices.flat})
  where = f" on {hosts} hosts" if hosts > 1 else ""
  return f"{mesh.size} x {device.device_kind} ({device.platform}){where}, {axes}"


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch's features, by their leading axis."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parallel(mesh: Mesh) -> int:
  """Returns over how many groups of devices a batch is shared out."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class ProcessShard:
  """Which part of every global batch a process reads.

  Attributes:
    index: the part, from 0.
    count: how many parts there are. Processes whose devices work on the same
      examples read the same part.
  """

  index: int
  count: int


def data_share(mesh: Mesh, process: int | None = None) -> ProcessShard:
  """Returns a process's share of every global batch.

  Args:
    mesh: the mesh.
    process: which; this one if None.

  Raises:
    UserError: if processes would share some of their examples but not all.
  """
  process = jax.process_index() if process is None else process
  groups: dict[int, set[int]] = {}
  for group, devices in enumerate(mesh.devices.reshape(batch_parallel(mesh), -1)):
    for device in devices:
      groups.setdefault(device.process_index, set()).add(group)
  parts = sorted({tuple(sorted(mine)) for mine in groups.values()})
  # Equal parts that together are every group once.
  whole = sum(map(len, parts)) == batch_parallel(mesh)
  if not whole or len({len(part) for part in parts}) > 1:
    raise UserError(
      "PartitioningConfig: hosts would share some examples and not others with"
      f" {dict(mesh.shape)}: let model_parallel divide the devices of a host, or be a"
      " multiple of them"
    )
  return ProcessShard(parts.index(tuple(sorted(groups[process]))), len(parts))


def flatten_names(tree: PyTree) -> dict[str, Any]:
  """Returns leaves by dotted path, as T5X names parameters."""
  tree = flax.core.unfreeze(tree)
  return flax.traverse_util.flatten_dict(tree, sep=".")


def axis_names(axes: PyTree) -> dict[str, tuple[str | None, ...]]:
  """Returns the logical axes of each parameter by its dotted path.

  Args:
    axes: `params_axes` as the model returns them: `AxisMetadata` under each
      parameter's name plus `_axes`.
  """
  return {
    name.removesuffix(_AXES_SUFFIX): tuple(metadata.names)
    for name, metadata in flatten_names(axes).items()
  }


def parameter_shardings(
  shapes: PyTree, axes: PyTree, mesh: Mesh, config: PartitioningConfig
) -> PyTree:
  """Returns the sharding of every parameter.

  The rules come first; what they leave whole and is large is shared out over `fsdp`
  along the largest dimension that divides.

  Args:
    shapes: parameters, or anything with their shapes.
    axes: `params_axes` as the model returns them.
    mesh: the mesh.
    config: the rules.

  Raises:
    UserError: naming the parameter, if it has no axes, the wrong number of axes,
      an axis that no rule covers, or one that the mesh does not divide; naming the
      rule, if nothing has its logical axis.
  """
  names_of = axis_names(axes)
  _check_rules(config, {axis for names in names_of.values() for axis in names if axis})
  shardings = {}
  for name, leaf in flatten_names(shapes).items():
    names = names_of.get(name)
    if names is None:
      raise UserError(f"parameter {name} has no logical axes: declare it with axes")
    if len(names) != len(leaf.shape):
      raise UserError(
        f"parameter {name} has logical axes {names}, but shape {leaf.shape}:"
        " name one axis for each dimension"
      )
    spec = _by_rules(name, names, leaf.shape, mesh, config)
    spec = _with_fsdp(names, leaf.shape, spec, mesh, config)
    shardings[name] = NamedSharding(mesh, PartitionSpec(*spec))
  return flax.traverse_util.unflatten_dict(shardings, sep=".")


def _check_rules(config: PartitioningConfig, in_use: set[str]) -> None:
  """Refuses a rule for an axis that neither parameters nor activations have."""
  known = in_use | {logical for logical, _ in DEFAULT_AXIS_RULES}
  for logical, _ in config.logical_axis_rules:
    if logical not in known:
      hint = suggestion(logical, known) or f"; there are {sorted(known)}"
      raise UserError(
        "PartitioningConfig.logical_axis_rules: nothing has the logical axis"
        f" {logical!r}{hint}"
      )


def _by_rules(
  name: str,
  names: tuple[str | None, ...],
  shape: tuple[int, ...],
  mesh: Mesh,
  config: PartitioningConfig,
) -> list[Any]:
  """Returns the mesh axes of each dimension, as the rules have it."""
  known = {logical for logical, _ in config.logical_axis_rules}
  unknown = [axis for axis in names if axis is not None and axis not in known]
  if unknown:
    raise UserError(
      f"parameter {name} has the logical axis {unknown[0]!r}, which no rule knows:"
      " add it to PartitioningConfig.logical_axis_rules"
    )
  spec = logical_to_mesh_axes(names, config.logical_axis_rules) or PartitionSpec()
  for axis, size, target in zip(names, shape, spec):
    if size % (parts := _size(target, mesh)):
      raise UserError(
        f"parameter {name}: its axis {axis!r} of {size} does not divide over the"
        f" {parts} devices of mesh axis {target!r}"
      )
  return [*spec, *[None] * (len(shape) - len(spec))]


def _with_fsdp(
  names: tuple[str | None, ...],
  shape: tuple[int, ...],
  spec: list[Any],
  mesh: Mesh,
  config: PartitioningConfig,
) -> list[Any]:
  """Returns the mesh axes with `fsdp` added where that is worth its messages."""
  # A layer of a scan is picked by its index: every device needs all of them.
  whole = [dimension for dimension, axis in enumerate(names) if axis == "layers"]
  return _with_axis("fsdp", shape, spec, mesh, config, whole)


def _with_axis(
  axis: str,
  shape: tuple[int, ...],
  spec: list[Any],
  mesh: Mesh | AbstractMesh,
  config: PartitioningConfig,
  whole: Sequence[int] = (),
) -> list[Any]:
  """Returns a spec that shares an array's largest free dimension out over an axis.

  Args:
    axis: the mesh axis.
    shape: the array's shape.
    spec: mesh axes of every dimension so far.
    mesh: the mesh.
    config: what is too small for it.
    whole: dimensions to leave whole.
  """
  parts = mesh.shape[axis]
  if parts == 1 or axis in _mesh_axes(spec):
    return spec
  if math.prod(shape) < config.fsdp_min_elements:
    return spec
  free = [
    dimension
    for dimension, size in enumerate(shape)
    if spec[dimension] is None and size % parts == 0 and dimension not in whole
  ]
  if not free:
    return spec
  largest = max(free, key=lambda dimension: shape[dimension])
  return [*spec[:largest], axis, *spec[largest + 1 :]]


def update_shardings(params: PyTree, config: PartitioningConfig) -> PyTree:
  """Returns how gradients, optimizer state and new parameters lie in an update.

  As the parameters do; with `config.shard_optimizer` shared out over `data` too.

  Args:
    params: abstract parameters with their shardings.
    config: whether, and what is too small for it.
  """

  def of(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    if not config.shard_optimizer:
      return leaf.sharding
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    spec = [*spec, *[None] * (len(leaf.shape) - len(spec))]
    spec = _with_axis("data", leaf.shape, spec, mesh, config)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(of, params)


def _mesh_axes(spec: Iterable[Any]) -> set[str]:
  """Returns the axes of the mesh that a spec uses."""
  targets = ((t,) if isinstance(t, str) else t for t in spec if t is not None)
  return {axis for target in targets for axis in target}


def _size(target: Any, mesh: Mesh | AbstractMesh) -> int:
  """Returns the devices along one mesh axis, several or none."""
  return math.prod(mesh.shape[axis] for axis in _mesh_axes([target]))


def devices_per_copy(sharding: NamedSharding) -> int:
  """Returns over how many devices one copy of an array is shared out."""
  return _size(tuple(_mesh_axes(sharding.spec)), sharding.mesh)


def report_unsharded(
  params: PyTree, mesh: Mesh, config: PartitioningConfig
) -> list[str]:
  """Returns a line for each large parameter that every device holds whole.

  Nothing where that is what was asked for: a mesh of `data` and `slice` alone.

  Args:
    params: abstract parameters with their shardings.
    mesh: the mesh.
    config: how large is large.
  """
  if mesh.shape["fsdp"] * mesh.shape["model"] == 1:
    return []
  return [
    f"parameter {name} {leaf.shape}: {leaf.size * leaf.dtype.itemsize / 1e6:,.0f} MB"
    f" whole on every device; no dimension divides over {mesh.shape['fsdp']} fsdp, nor"
    " is one named by a rule of PartitioningConfig.logical_axis_rules"
    for name, leaf in flatten_names(params).items()
    if leaf.size > config.replicated_max_elements
    and devices_per_copy(leaf.sharding) == 1
  ]


def optimizer_shardings(
  optimizer_state: PyTree, shapes: PyTree, shardings: PyTree, mesh: Mesh
) -> PyTree:
  """Returns the sharding of every leaf of an optimizer's state.

  What no parameter's axes are for is small (counters) and whole on every device; see
  `optimizer_specs`.

  Args:
    optimizer_state: the state, or its shapes.
    shapes: the parameters' shapes.
    shardings: the parameters' shardings.
    mesh: the mesh.
  """
  specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
  return jax.tree.map(
    lambda spec: replicated(mesh) if spec is None else NamedSharding(mesh, spec),
    optimizer_specs(optimizer_state, shapes, specs),
    is_leaf=lambda spec: spec is None or isinstance(spec, PartitionSpec),
  )


def optimizer_specs(optimizer_state: PyTree, shapes: PyTree, specs: PyTree) -> PyTree:
  """Returns the axes of every leaf of an optimizer's state, None where it has none.

  A leaf belongs to the parameter whose path its own ends in. Of the parameter's shape,
  it lies as the parameter does; of that shape less one dimension (Adafactor's row and
  column statistics), as the dimensions that are left do.

  Args:
    optimizer_state: the state, or its shapes.
    shapes: the parameters' shapes.
    specs: the parameters' axes, of the mesh or logical.
  """
  shape_of = {name: leaf.shape for name, leaf in flatten_names(shapes).items()}
  spec_of = flatten_names(specs)

  def spec_of_leaf(path, leaf) -> PartitionSpec | None:
    keys = [str(key.key) for key in path if hasattr(key, "key")]
    name = next((n for n in map(".".join, _tails(keys)) if n in shape_of), None)
    if name is None:
      return None
    shape, spec = shape_of[name], spec_of[name]
    if leaf.shape == shape:
      return spec
    less = [i for i in range(len(shape)) if (*shape[:i], *shape[i + 1 :]) == leaf.shape]
    if not less or leaf.size == 1:
      return None
    # Of equal dimensions the rows' statistics sum over the last, the columns' over the
    # first.
    rows = any(getattr(key, "name", None) == "v_row" for key in path)
    reduced = less[-1] if rows else less[0]
    spec = [*spec, *[None] * (len(shape) - len(spec))]
    return PartitionSpec(*spec[:reduced], *spec[reduced + 1 :])

  return jax.tree_util.tree_map_with_path(spec_of_leaf, optimizer_state)


def _tails(keys: Sequence[str]) -> Iterator[Sequence[str]]:
  return (keys[start:] for start in range(len(keys)))
