from __future__ import annotations

import io

import pytest

from commentree.console import Console
from commentree.tests.support.training import jax_flags, stub
from commentree.training import config as config_lib
from commentree.training import partitioning
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig


@pytest.fixture(autouse=True)
def flags_as_before():
  """`train` sets JAX's flags for its process; tests share one."""
  with jax_flags.kept():
    yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
  """Folder of compiled programs, for this process and those it starts."""
  return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def make_config(tmp_path, compiled):
  """Makes settings of a short run."""

  def make(**overrides) -> config_lib.TrainConfig:
    settings = {
      "model_dir": str(tmp_path / "run"),
      "train_steps": 6,
      "batch_size": 8,
      "eval_period": 0,
      "log_period": 2,
      "console_seconds": 0.0,
      "trackers": (),
      "compile_cache_dir": compiled,
      "checkpoint": config_lib.CheckpointConfig(period=100),
      "optimizer": OptimizerConfig(
        name="adamw",
        schedule=ScheduleConfig(learning_rate=0.01, warmup_steps=2),
      ),
    }
    return config_lib.TrainConfig(**{**settings, **overrides})

  return make


@pytest.fixture
def console():
  """A console to read back: `console.file.getvalue()`."""
  return Console(file=io.StringIO(), width=200)


@pytest.fixture
def model():
  return stub.StubModel()


@pytest.fixture(scope="session")
def mesh():
  return partitioning.make_mesh(config_lib.PartitioningConfig())
