from __future__ import annotations

import pathlib

import pytest

from commentree.training import metrics_log

from . import subprocesses


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_meshes_of_every_shape_train_alike(tmp_path, compiled, steps):
  """1, 4 x 1, 2 x 2 and 1 x 4 devices, data x model; dropout of every kind included."""
  options = {
    "model": "real",
    "dropout": 0.1,
    "held_out": False,
    "train_steps": steps,
    "compile_cache_dir": compiled,
  }
  one = subprocesses.run(1, model_dir=str(tmp_path / "one"), **options)
  assert one.returncode == 0, one.stderr
  four = subprocesses.run(
    4, model_dir=str(tmp_path / "four"), model_parallel=[1, 2, 4], **options
  )
  assert four.returncode == 0, four.stderr
  for mesh in ("4 data x 1 model", "2 data x 2 model", "1 data x 4 model"):
    assert mesh in four.stdout

  # What takes long to compile is kept for the next start.
  assert any(pathlib.Path(compiled).iterdir())

  def losses(name: str) -> list[float]:
    rows = metrics_log.read(tmp_path / name / "metrics.jsonl", "train")
    return [row[key] for row in rows for key in ("objective", "gradient_norm")]

  expected = losses("one")
  assert len(expected) == 2 * steps
  for model_parallel in (1, 2, 4):
    assert losses(f"four_{model_parallel}") == pytest.approx(expected, rel=1e-4)
