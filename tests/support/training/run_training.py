"""Trains in a process of its own, for tests that kill it or give it more devices.

Where nothing needs a process, `run_here` spares tests its start.

  python run_training.py '{"model_dir": …, "train_steps": …, …}'

Keys beside TrainConfig's: `model` ("stub" or "real"), `dropout`, `held_out` (whether to
evaluate), `partitioning` (fields of its configuration), `meshes` (several of those by
name, to train one after another, each in a folder of its own), `die_in_save` (the step
whose checkpoint is half written when the process kills itself), `die_after` (likewise,
after a step), `signal_after` ([step, signal number]), `place` (of several hosts:
coordinator, hosts, host).
"""

from __future__ import annotations

import json
import os
import signal
import sys

from commentree.models.config import ModelConfig
from commentree.tests.support.training import jax_flags, stub
from commentree.training import config as config_lib
from commentree.training.checkpointing import saving
from commentree.training.cluster import distributed
from commentree.training.cluster.host_settings import HostSettings
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig
from commentree.training.reports import reporting
from commentree.training.train import train


def real_model(dropout: float):
  """The smallest model that has everything, dropout of ancestors included."""
  from commentree.models.model import CommentTreeModel

  return CommentTreeModel(
    ModelConfig(
      vocab_size=stub.VOCAB,
      emb_dim=16,
      num_heads=4,
      head_dim=4,
      mlp_dim=32,
      num_encoder_layers=1,
      num_decoder_layers=1,
      dtype="float32",
      dropout_rate=dropout,
      ancestor_dropout_rate=dropout,
    )
  )


def after_step(step: int, action) -> None:
  """Calls `action` once a step has been taken."""
  original = reporting.Reporter.step

  def wrapped(self, number, sums):
    original(self, number, sums)
    if number == step:
      action()

  reporting.Reporter.step = wrapped


def in_save(step: int) -> None:
  """Kills this process while a checkpoint is half written."""
  original = saving.Writing._commit

  def commit(self):
    if self.step == step:
      os.kill(os.getpid(), signal.SIGKILL)
    original(self)

  saving.Writing._commit = commit


def main() -> None:
  options = json.loads(sys.argv[1])
  settings = HostSettings(*options.pop("place", [None] * 3))
  health = config_lib.HealthConfig(host_timeout_seconds=20)
  with distributed.join_cluster(settings, health, None, options["model_dir"]) as hosts:
    run(options, hosts.watchdog)


def run_here(**options) -> None:
  """Trains in this process; options are as above."""
  with jax_flags.kept():
    run(options)


def run(options, watchdog=None) -> None:
  dropout = options.pop("dropout", 0.0)
  real = options.pop("model", "stub") == "real"
  model = real_model(dropout) if real else stub.StubModel(dropout)
  if "die_in_save" in options:
    in_save(options.pop("die_in_save"))
  if "die_after" in options:
    after_step(options.pop("die_after"), lambda: os.kill(os.getpid(), signal.SIGKILL))
  if "signal_after" in options:
    step, number = options.pop("signal_after")
    after_step(step, lambda: os.kill(os.getpid(), number))
  held_out = options.pop("held_out", True)
  checkpoint = config_lib.CheckpointConfig(**options.pop("checkpoint", {"period": 4}))
  schedule = ScheduleConfig(learning_rate=0.01, warmup_steps=2)
  folder = options.pop("model_dir")
  meshes = options.pop("meshes", None)
  runs = {folder: options.pop("partitioning", {})}
  if meshes:
    runs = {f"{folder}/{name}": fields for name, fields in meshes.items()}
  for model_dir, fields in runs.items():
    config = config_lib.TrainConfig(
      model_dir=model_dir,
      batch_size=8,
      trackers=(),
      checkpoint=checkpoint,
      optimizer=OptimizerConfig(name="adamw", schedule=schedule),
      partitioning=config_lib.PartitioningConfig(**fields),
      **options,
    )
    datasets = {"held_out": stub.held_out()} if held_out else {}
    train(config, model, stub.Batches, datasets, watchdog=watchdog)


if __name__ == "__main__":
  main()
