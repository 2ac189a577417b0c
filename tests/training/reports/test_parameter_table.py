from __future__ import annotations

import io
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from commentree.console import Console
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training import state
from commentree.training.config import MESH_AXES, PartitioningConfig
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.reports import parameter_table

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
  lines = printed(console).splitlines()
  (kernel,) = [line for line in lines if line.startswith(" kernel ")]
  cells = re.split(r" {2,}", kernel.strip())
  size = stub.WIDTH * 4 * stub.WIDTH * 4
  assert cells == ["kernel", "8 embed x 32 mlp", "-, model", f"{size:,}"]
  (total,) = [line for line in lines if "parameters" in line and "bytes" in line]
  parameters = stub.VOCAB * stub.WIDTH * 5 + stub.WIDTH + stub.WIDTH * 4 * stub.WIDTH
  assert f"{parameters:,} parameters" in total
  # adamw: two moments of each, and counters.
  (optimizer,) = [line for line in lines if "optimizer state" in line]
  held = int(optimizer.split()[-1].replace(",", ""))
  assert 8 * parameters < held < 8 * parameters + 100


def test_equal_layers_are_one_row_and_all_fits_a_terminal_of_80_columns(make_config):
  config = ModelConfig(vocab_size=32, num_encoder_layers=3, scan_layers=False)
  optimizer = OptimizerConfig(learning_rate_rules=[(r"token_embedder\..*", 0)])
  console = Console(file=io.StringIO(), width=80)
  parameter_table.describe(
    make_config(optimizer=optimizer), CommentTreeModel(config), console
  )
  lines = printed(console).splitlines()
  shown = [line for line in lines if "automatic" not in line and "whole on" not in line]
  assert max(map(len, shown)) <= 80
  assert not any("…" in line for line in shown)
  (row,) = [line for line in shown if "encoder.layers_{0-2}.mlp.wo." in line]
  size = 4 * config.mlp_dim * config.emb_dim
  assert f" 3 x {size:,} " in row
  assert not any("layers_1" in line for line in shown)
  (frozen,) = [line for line in shown if "token_embedder.embedding" in line]
  assert frozen.rstrip().endswith("frozen")
