from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from commentree.console import Console
from commentree.training import parameter_table, state
from commentree.training.config import MESH_AXES, PartitioningConfig

from . import stub

MESH = AbstractMesh((1, 1, 2, 4), MESH_AXES)


@pytest.mark.parametrize(
  ("spec", "held"), [((), 8 * 12 * 4), (("fsdp",), 4 * 12 * 4), (("fsdp", "model"), 48)]
)
def test_a_device_holds_its_part_of_an_array(spec, held):
  sharding = NamedSharding(MESH, PartitionSpec(*spec))
  leaf = jax.ShapeDtypeStruct((8, 12), jnp.float32, sharding=sharding)
  assert state.bytes_per_device({"a": leaf}) == held


def test_every_parameter_is_shown_with_its_axes_and_bytes_before_training(make_config):
  class Model(stub.StubModel):
    def get_initial_variables(self, rng, input_shapes, input_types=None):
      return self.module.init(rng, stub.random_batch(0, 8), True)

  config = make_config(partitioning=PartitioningConfig(fsdp_parallel=-1))
  console = Console(file=io.StringIO(), width=160)
  parameter_table.describe(config, Model(), console)
  lines = console.file.getvalue().splitlines()
  (kernel,) = [line for line in lines if "│ kernel " in line]
  cells = [cell.strip() for cell in kernel.strip("│").split("│")]
  size = stub.WIDTH * 4 * stub.WIDTH * 4
  assert cells[:4] == ["kernel", "8 x 32", "float32", "embed, mlp"]
  assert cells[5] == f"{size:,}"
  (total,) = [line for line in lines if "parameters" in line and "bytes" in line]
  parameters = stub.VOCAB * stub.WIDTH * 5 + stub.WIDTH + stub.WIDTH * 4 * stub.WIDTH
  assert f"{parameters:,} parameters" in total
  # adamw: two moments of each, and counters.
  (optimizer,) = [line for line in lines if "optimizer state" in line]
  held = int(optimizer.strip("│ ").split("│")[-1].replace(",", ""))
  assert 8 * parameters < held < 8 * parameters + 100
