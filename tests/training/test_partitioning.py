from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from flax.linen.partitioning import AxisMetadata
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from commentree.errors import UserError
from commentree.launch.settings import gin_cli
from commentree.training import partitioning
from commentree.training.config import (
  DEFAULT_AXIS_RULES,
  MESH_AXES,
  PRESETS,
  PartitioningConfig,
)

MESH = AbstractMesh((1, 1, 2, 4), MESH_AXES)


def place(shape, axes, config=None, mesh=MESH):
  return partitioning.parameter_shardings(
    {"mlp": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}},
    {"mlp": {"kernel_axes": AxisMetadata(names=PartitionSpec(*axes))}},
    mesh,
    config or PartitioningConfig(),
  )["mlp"]["kernel"]


def rules(**changed):
  return PartitioningConfig(
    logical_axis_rules=(
      *changed.items(),
      *(rule for rule in DEFAULT_AXIS_RULES if rule[0] not in changed),
    )
  )


def test_a_parameter_lies_as_the_rules_say():
  assert place((6, 8), ("embed", "mlp")).spec == PartitionSpec(None, "model")
  # Two axes of one parameter cannot both go to one axis of the mesh.
  assert place((8, 8), ("mlp", "vocab")).spec == PartitionSpec(None, "model")


def test_rules_of_ones_own_come_before_the_automatic_choice():
  spec = place((6, 8), ("embed", "mlp"), rules(embed="fsdp")).spec
  assert spec == PartitionSpec("fsdp", "model")
  spec = place((8, 6), ("embed", "mlp"), rules(embed=("fsdp", "model"))).spec
  assert spec == PartitionSpec(("fsdp", "model"), None)


@pytest.mark.parametrize(
  ("shape", "axes", "spec"),
  [
    ((512, 1024), ("embed", "mlp"), ("fsdp", "model")),
    # The largest dimension that divides, which is not the largest.
    ((1025, 512), ("embed", "kv"), (None, "fsdp")),
    ((512, 1024), ("embed", "kv"), (None, "fsdp")),
    # A scan needs every layer on every device.
    ((512, 32, 256), ("layers", "embed", "kv"), (None, None, "fsdp")),
    ((16, 16), ("embed", "kv"), (None, None)),
    ((1025, 513), ("embed", "kv"), (None, None)),
  ],
)
def test_large_parameters_are_shared_out_along_their_largest_dimension_that_divides(
  shape, axes, spec
):
  assert place(shape, axes).spec == PartitionSpec(*spec)


def test_the_size_from_which_parameters_are_shared_out_is_a_setting():
  config = PartitioningConfig(fsdp_min_elements=256)
  assert place((16, 16), ("embed", "kv"), config).spec == PartitionSpec("fsdp", None)


def test_a_rule_that_nothing_matches_is_named_with_the_nearest_axis():
  with pytest.raises(UserError, match=r"'joined_kw'; did you mean joined_kv\?"):
    place((6, 8), ("embed", "mlp"), rules(joined_kw="model"))


def test_a_large_parameter_left_whole_is_reported_by_name():
  config = PartitioningConfig(replicated_max_elements=100)
  params = {
    name: jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )
    for name, shape, spec, mesh in (
      ("odd", (501, 501), (), MESH),
      ("shared", (502, 501), ("fsdp",), MESH),
      ("small", (5, 5), (), MESH),
    )
  }
  (line,) = partitioning.report_unsharded(params, MESH, config)
  assert line.startswith("parameter odd (501, 501): 1 MB whole on every device")
  data_parallel = AbstractMesh((1, 8, 1, 1), MESH_AXES)
  assert partitioning.report_unsharded(params, data_parallel, config) == []


@pytest.mark.parametrize(
  ("shape", "axes", "message"),
  [
    ((6, 8), ("embed", "mpl"), "mlp.kernel has the logical axis 'mpl'"),
    ((6, 8), ("embed",), "mlp.kernel has logical axes .'embed',., but shape"),
    ((6, 6), ("embed", "mlp"), "mlp.kernel: its axis 'mlp' of 6 does not divide"),
  ],
)
def test_a_parameter_that_cannot_be_placed_is_named(shape, axes, message):
  with pytest.raises(UserError, match=message):
    place(shape, axes)


def test_a_parameter_without_axes_is_named():
  leaf = jax.ShapeDtypeStruct((2,), jnp.float32)
  with pytest.raises(UserError, match=r"parameter a\.b has no logical axes"):
    partitioning.parameter_shardings({"a": {"b": leaf}}, {}, MESH, PartitioningConfig())


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("shape", [(256, 512), (512, 256), (256, 256)])
def test_optimizer_state_lies_as_the_parameter_it_belongs_to(name, shape):
  params = {"w": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}
  axes = {"w": {"kernel_axes": AxisMetadata(names=PartitionSpec("embed", "mlp"))}}
  config = PartitioningConfig(fsdp_min_elements=1)
  placed = partitioning.parameter_shardings(params, axes, MESH, config)
  assert placed["w"]["kernel"].spec == PartitionSpec("fsdp", "model")
  state = jax.eval_shape(getattr(optax, name)(0.1).init, params)
  found = partitioning.optimizer_shardings(state, params, placed, MESH)
  seen = set()
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found)
  ):
    kind = next(
      (k for k in map(jax.tree_util.keystr, [path]) if "v_row" in k or "v_col" in k),
      "",
    )
    expected: tuple = ()
    if leaf.shape == shape:
      expected = ("fsdp", "model")
    elif leaf.ndim == 1 and leaf.size > 1:
      # optax sums the rows' statistics over the larger dimension, the last if equal.
      larger = 0 if shape[0] > shape[1] else 1
      reduced = larger if "v_row" in kind else 1 - larger
      expected = (("fsdp", "model")[1 - reduced],)
      assert leaf.shape == (shape[1 - reduced],)
    assert sharding.spec == PartitionSpec(*expected), path
    seen.add(expected)
  mirrored = {("fsdp", "model")}
  assert seen - {()} == (mirrored if name == "adamw" else {("fsdp",), ("model",)})


@pytest.mark.parametrize(
  ("shape", "spec", "expected"),
  [
    ((64, 512), (None, None), (None, "data")),
    ((512, 64), (None, "model"), ("data", "model")),
    # The larger is taken, or does not divide.
    ((64, 512), (None, "fsdp"), ("data", "fsdp")),
    ((64, 511), (None, None), ("data", None)),
    # No dimension is left; a small one stays whole.
    ((64, 512), ("fsdp", "model"), ("fsdp", "model")),
    ((8, 8), (None, None), (None, None)),
  ],
)
def test_the_optimizer_is_shared_out_over_data_beside_what_parameters_are(
  shape, spec, expected
):
  mesh = AbstractMesh((1, 4, 2, 2), MESH_AXES)
  leaf = jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )
  config = PartitioningConfig(shard_optimizer=True, fsdp_min_elements=100)
  found = partitioning.update_shardings({"kernel": leaf}, config)["kernel"]
  assert found.spec == PartitionSpec(*expected)
  found = partitioning.update_shardings({"kernel": leaf}, PartitioningConfig())
  assert found["kernel"].spec == PartitionSpec(*spec)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"model_parallel": 3}, "model_parallel = 3: must divide the 8 devices here"),
    ({"fsdp_parallel": 3}, "fsdp_parallel = 3: times model_parallel = 1 must divide"),
    ({"fsdp_parallel": 8, "model_parallel": 2}, "fsdp_parallel = 8: times model_par"),
    ({"num_slices": 3}, "num_slices = 3: must divide the 8 devices"),
    (
      {"num_slices": 2, "model_parallel": 8},
      "model_parallel = 8: must divide the 4 devices of a slice",
    ),
  ],
)
def test_devices_that_cannot_be_shared_so_are_refused(config, message):
  with pytest.raises(UserError, match=message):
    partitioning.make_mesh(PartitioningConfig(**config), devices(8))


@pytest.mark.parametrize(
  ("config", "shape"),
  [
    ({}, (1, 8, 1, 1)),
    ({"fsdp_parallel": -1}, (1, 1, 8, 1)),
    ({"fsdp_parallel": 2}, (1, 4, 2, 1)),
    ({"model_parallel": 2}, (1, 4, 1, 2)),
    ({"fsdp_parallel": -1, "model_parallel": 2}, (1, 1, 4, 2)),
    ({"num_slices": 2, "fsdp_parallel": -1, "model_parallel": 2}, (2, 1, 2, 2)),
  ],
)
def test_the_data_axis_takes_the_devices_that_are_left(config, shape):
  mesh = partitioning.make_mesh(PartitioningConfig(**config), devices(8))
  assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize("preset", PRESETS)
def test_a_gin_file_sets_what_its_preset_says(preset):
  required = ["MODEL_DIR = 'm'", "TRAIN_STEPS = 1", "MIXTURE_OR_TASK_NAME = 't'"]
  files = ["runs/pretrain.gin", f"partitioning/{preset}.gin"]
  config = gin_cli.load(files, [*required, "MODEL_PARALLEL = 4"]).train.partitioning
  fields = PRESETS[preset]
  assert config.fsdp_parallel == fields["fsdp_parallel"]
  if preset in ("tp", "fsdp_tp"):
    assert fields["model_parallel"] is None
    config = gin_cli.load(files, required).train.partitioning
    assert config.model_parallel > 1
  else:
    config = gin_cli.load(files, required).train.partitioning
    assert config.model_parallel == fields["model_parallel"]


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh asks of a device."""

  id: int
  process_index: int
  slice_index: int = 0
  platform: str = "cpu"
  device_kind: str = "cpu"


def devices(number, per_host=2, per_slice=None):
  return [Device(i, i // per_host, i // (per_slice or number)) for i in range(number)]


def test_slices_are_found_and_lie_along_their_own_axis():
  mesh = partitioning.make_mesh(PartitioningConfig(), devices(8, per_slice=4))
  assert tuple(mesh.shape.values()) == (2, 4, 1, 1)
  assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
  with pytest.raises(UserError, match="num_slices = 4: the devices form 2 slices"):
    partitioning.make_mesh(PartitioningConfig(num_slices=4), devices(8, per_slice=4))


@pytest.mark.parametrize(
  ("config", "per_host", "shares"),
  [
    ({}, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ({"fsdp_parallel": -1}, 4, [(0, 2), (1, 2)]),
    ({"model_parallel": 2}, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    # A model over two hosts: both need the same examples.
    ({"model_parallel": 4}, 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ({"model_parallel": 8}, 2, [(0, 1)] * 4),
  ],
)
def test_hosts_read_what_their_devices_work_on(config, per_host, shares):
  mesh = partitioning.make_mesh(PartitioningConfig(**config), devices(8, per_host))
  found = [partitioning.data_share(mesh, host) for host in range(8 // per_host)]
  assert [(share.index, share.count) for share in found] == shares


def test_hosts_that_would_share_some_examples_only_are_refused():
  mesh = partitioning.make_mesh(PartitioningConfig(model_parallel=4), devices(12, 6))
  with pytest.raises(
    UserError, match="let model_parallel divide the devices of a host"
  ):
    partitioning.data_share(mesh, 0)
