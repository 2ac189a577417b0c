"""A warm start of several processes, each of which reads what its devices hold."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from commentree.tests.support.training import stub, subprocesses
from commentree.tests.support.training.warm_starts import written_by_t5x
from commentree.training.reports import metrics_log

pytestmark = pytest.mark.hosts

OPTIONS = {
  "train_steps": 2,
  "log_period": 1,
  "eval_period": 0,
  "held_out": False,
  "partitioning": {"fsdp_parallel": 4, "fsdp_min_elements": 0},
}


@pytest.fixture
def checkpoint(tmp_path):
  """A checkpoint whose arrays are in four parts along the axis that is shared out."""
  rng = np.random.default_rng(5)
  shapes = {
    "embedding": (stub.VOCAB, stub.WIDTH),
    "scale": (stub.WIDTH,),
    "kernel": (stub.WIDTH, 4 * stub.WIDTH),
    "out": (4 * stub.WIDTH, stub.VOCAB),
  }
  arrays = {
    f"target.{name}": rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }

  def parts(shape):
    return [n // 4 if n == max(shape) else n for n in shape]

  return written_by_t5x.write(tmp_path / "checkpoint_9", arrays, (), parts)


def losses(folder: pathlib.Path) -> list[float]:
  return [row["loss"] for row in metrics_log.read(folder / "metrics.jsonl", "train")]


@pytest.mark.slow
def test_two_hosts_start_as_one_does_and_note_it_once(checkpoint, compiled, tmp_path):
  options = {
    **OPTIONS,
    "compile_cache_dir": compiled,
    "initial_checkpoint_path": str(checkpoint),
  }
  one, two = tmp_path / "one", tmp_path / "two"
  result = subprocesses.run(4, model_dir=str(one), **options)
  assert result.returncode == 0, result.stderr
  hosts = subprocesses.run_hosts(2, 2, model_dir=str(two), **options)
  assert [host.returncode for host in hosts] == [0, 0], hosts
  assert "took parameters from" in hosts[0].stdout
  assert "took parameters from" not in hosts[1].stdout
  np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
  (start,) = json.loads((two / "run.json").read_text())["starts"]
  assert start["warm_start"]["loaded"] == 4


@pytest.mark.slow
def test_a_part_that_one_host_cannot_read_stops_all_with_its_reason(
  checkpoint, compiled, tmp_path
):
  # The last quarter is of the second host.
  (checkpoint / "target.embedding" / "3.0").write_bytes(b"no gzip")
  hosts = subprocesses.run_hosts(
    2,
    2,
    model_dir=str(tmp_path / "run"),
    compile_cache_dir=compiled,
    initial_checkpoint_path=str(checkpoint),
    **OPTIONS,
  )
  assert all(host.returncode != 0 for host in hosts), hosts
  for host in hosts:
    assert "array target.embedding cannot be read" in host.stderr
