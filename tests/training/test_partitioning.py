from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from flax.linen.partitioning import AxisMetadata
from jax.sharding import AbstractMesh, PartitionSpec

from commentree.errors import UserError
from commentree.training import partitioning
from commentree.training.config import DEFAULT_AXIS_RULES, PartitioningConfig

MESH = AbstractMesh((2, 4), ("data", "model"))


def shardings(shape, axes, config=None):
  return partitioning.parameter_shardings(
    {"mlp": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}},
    {"mlp": {"kernel_axes": AxisMetadata(names=PartitionSpec(*axes))}},
    MESH,
    config or PartitioningConfig(),
  )["mlp"]["kernel"]


def test_a_parameter_lies_as_the_rules_say():
  assert shardings((6, 8), ("embed", "mlp")).spec == PartitionSpec(None, "model")
  # Two axes of one parameter cannot both go to one axis of the mesh.
  assert shardings((8, 8), ("mlp", "vocab")).spec == PartitionSpec(None, "model")


def test_rules_of_ones_own_shard_parameters_over_the_data_axis():
  rules = tuple(r for r in DEFAULT_AXIS_RULES if r[0] != "embed")
  config = PartitioningConfig(logical_axis_rules=(*rules, ("embed", "data")))
  spec = shardings((6, 8), ("embed", "mlp"), config).spec
  assert spec == PartitionSpec("data", "model")


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
    shardings(shape, axes)


def test_a_parameter_without_axes_is_named():
  leaf = jax.ShapeDtypeStruct((2,), jnp.float32)
  with pytest.raises(UserError, match=r"parameter a\.b has no logical axes"):
    partitioning.parameter_shardings({"a": {"b": leaf}}, {}, MESH, PartitioningConfig())


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_optimizer_state_lies_as_the_parameter_it_mirrors(name):
  params = {"w": {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)}}
  axes = {"w": {"kernel_axes": AxisMetadata(names=PartitionSpec("embed", "mlp"))}}
  config = PartitioningConfig()
  placed = partitioning.parameter_shardings(params, axes, MESH, config)
  state = jax.eval_shape(getattr(optax, name)(0.1).init, params)
  found = partitioning.optimizer_shardings(state, params, placed, MESH)
  for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(found)):
    mirrors = leaf.shape == (256, 512)
    expected = placed["w"]["kernel"].spec if mirrors else PartitionSpec()
    assert sharding.spec == expected
  sizes = [leaf.shape for leaf in jax.tree.leaves(state)]
  assert (name == "adamw") == ((256, 512) in sizes)


def test_devices_that_a_model_cannot_share_are_refused():
  with pytest.raises(UserError, match="model_parallel = 3: must divide the 1 devices"):
    partitioning.make_mesh(PartitioningConfig(model_parallel=3))
