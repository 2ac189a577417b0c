"""The whole command over hosts and meshes: the same run, regardless of the devices.

Takes minutes: part of `make slow`. The trainer alone is tested so, shorter, in
`tests/training/test_meshes.py` and `tests/training/test_train_on_hosts.py`.
"""

from __future__ import annotations

import pytest

from commentree.launch import main
from commentree.training.reports import metrics_log

pytestmark = pytest.mark.slow

STEPS = 50
SETTINGS = {
  "MIXTURE_OR_TASK_NAME": "commentree_generated",
  "TRAIN_STEPS": STEPS,
  "WARMUP_STEPS": 10,
  "BATCH_SIZE": 4,
  "EVAL_PERIOD": 0,
  "EVAL_BATCHES": 2,
  "CHECKPOINT_PERIOD": 1000,
  "TASK_FEATURE_LENGTHS": {"encoder": 64, "decoder": 64},
  "MAX_ANCESTORS": 6,
  "ForestLayout.decoder_rows": 8,
  "SubtreeConfig.max_tree_size": 32,
  "SubtreeConfig.max_comment_tokens": 64,
  "ModelConfig.dtype": "float32",
  "GeneratedTreesConfig.num_train_trees": 500,
  "GeneratedTreesConfig.num_validation_trees": 20,
  "TrainConfig.trackers": (),
  # The tiny model has few parameters that are worth sharing out otherwise.
  "PartitioningConfig.fsdp_min_elements": 1,
}
RUNS = {
  # hosts x devices of each
  "1x4": (1, 4, {}),
  "2x2": (2, 2, {}),
  "4x1": (4, 1, {}),
  # data x fsdp x model, on one host and over several
  "1x4x1": (1, 4, {"FSDP_PARALLEL": -1}),
  "1x1x4": (1, 4, {"MODEL_PARALLEL": 4}),
  "2x2x1": (2, 2, {"FSDP_PARALLEL": 2}),
  "2x1x2": (4, 1, {"MODEL_PARALLEL": 2}),
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")

  def run(name: str) -> list[dict]:
    hosts, devices, own = RUNS[name]
    settings = {**SETTINGS, **own, "MODEL_DIR": str(folder / name)}
    settings["CACHE_DIR"] = str(folder / "cache")
    flags = [f"--gin.{key}={value!r}" for key, value in settings.items()]
    command = ["launch", "local", f"--hosts={hosts}", f"--devices_per_host={devices}"]
    command += [f"--log_dir={folder / 'output'}", "--", "train"]
    assert main.main([*command, "--gin_file=runs/pretrain.gin", *flags]) == 0
    return metrics_log.read(folder / name / "metrics.jsonl", "train")

  return run


@pytest.fixture(scope="module")
def expected(train):
  return train("1x4")


@pytest.mark.parametrize("name", [name for name in RUNS if name != "1x4"])
def test_hosts_and_meshes_of_every_shape_train_alike(train, expected, name):
  found = train(name)
  assert len(found) == STEPS
  for key in ("comments", "masked_tokens", "encoder_tokens", "decoder_tokens"):
    assert [row[key] for row in found] == [row[key] for row in expected], key
  losses = [row["loss"] for row in found]
  worst = max(
    abs(a - b["loss"]) / b["loss"] for a, b in zip(losses, expected, strict=True)
  )
  print(f"{name}: losses differ by {worst:.1e} at most, relative")
  assert worst < 1e-5
