from __future__ import annotations

import pathlib

import pytest

from commentree.tests.support.training import run_training, subprocesses
from commentree.training.reports import metrics_log

# data x fsdp x model, and over two slices.
MESHES = {
  "4 data x 1 fsdp x 1 model": {},
  "1 data x 4 fsdp x 1 model": {"fsdp_parallel": -1},
  "1 data x 1 fsdp x 4 model": {"model_parallel": 4},
  "2 data x 2 fsdp x 1 model": {"fsdp_parallel": 2},
  "2 data x 1 fsdp x 2 model": {"model_parallel": 2, "shard_optimizer": True},
  "2 slice x 1 data x 2 fsdp x 1 model": {"num_slices": 2, "fsdp_parallel": -1},
}


# Each takes a compilation: of those with every axis in use, few.
FEW = (
  "2 data x 1 fsdp x 2 model",
  "2 slice x 1 data x 2 fsdp x 1 model",
)


@pytest.mark.parametrize(
  ("steps", "names"), [(3, FEW), pytest.param(20, MESHES, marks=pytest.mark.slow)]
)
def test_meshes_of_every_shape_train_alike(tmp_path, compiled, steps, names):
  """One device and four; dropout of every kind included, all parameters shared out."""
  options = {
    "model": "real",
    "dropout": 0.1,
    "held_out": False,
    "train_steps": steps,
    "compile_cache_dir": compiled,
  }
  run_training.run_here(model_dir=str(tmp_path / "one"), **options)
  chosen = [(name, MESHES[name]) for name in names]
  meshes = {name: {**fields, "fsdp_min_elements": 1} for name, fields in chosen}
  four = subprocesses.run(4, model_dir=str(tmp_path), meshes=meshes, **options)
  assert four.returncode == 0, four.stderr
  for mesh in names:
    assert f", {mesh};" in four.stdout

  # What takes long to compile is kept for the next start.
  assert any(pathlib.Path(compiled).iterdir())

  def losses(name: str) -> list[float]:
    rows = metrics_log.read(tmp_path / name / "metrics.jsonl", "train")
    return [row[key] for row in rows for key in ("objective", "gradient_norm")]

  expected = losses("one")
  assert len(expected) == 2 * steps
  for mesh in names:
    assert losses(mesh) == pytest.approx(expected, rel=1e-4)
