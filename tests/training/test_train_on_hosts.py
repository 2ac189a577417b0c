"""The trainer over several processes; `tests/launch` runs the whole command so."""

from __future__ import annotations

import pathlib
import signal

import pytest

from commentree.tests.support.training import subprocesses
from commentree.training.checkpointing import checkpoints
from commentree.training.reports import metrics_log

pytestmark = pytest.mark.hosts

STEPS = 8


@pytest.fixture(scope="module")
def options(compiled):
  return {
    "train_steps": STEPS,
    "log_period": 2,
    "eval_period": 4,
    "dropout": 0.2,
    "checkpoint": {"period": 100, "keep_best": 0},
    "compile_cache_dir": compiled,
  }


def rows(folder: pathlib.Path, kind: str) -> list[dict]:
  return metrics_log.read(folder / "metrics.jsonl", kind)


@pytest.fixture(scope="module")
def on_one_host(options, tmp_path_factory):
  folder = tmp_path_factory.mktemp("one_host")
  result = subprocesses.run(4, model_dir=str(folder), **options)
  assert result.returncode == 0, result.stderr
  return folder


def test_two_hosts_stop_at_the_same_step_and_one_goes_on_to_the_same_end(
  options, on_one_host, tmp_path
):
  """SIGTERM reaches host 1 alone; then four devices of one host take over."""
  options = {**options, "model_dir": str(tmp_path), "partitioning": MESH}
  hosts = subprocesses.run_hosts(
    2, 2, **options, only={1: {"signal_after": [5, int(signal.SIGTERM)]}}
  )
  assert [host.returncode for host in hosts] == [143, 143], hosts
  (stopped,) = checkpoints.steps_in(tmp_path)
  assert 5 <= stopped < STEPS
  assert f"step {stopped} saved as {tmp_path}/checkpoint_{stopped}" in hosts[0].stdout
  assert "on 2 hosts" in hosts[0].stdout
  # Host 0 alone speaks; each host keeps its log.
  assert "saved as" not in hosts[1].stdout
  for host in (0, 1):
    log = (tmp_path / "logs" / f"host_{host}.log").read_text()
    assert f"step {stopped} saved as" in log

  result = subprocesses.run(4, **options)
  assert result.returncode == 0, result.stderr
  assert f"restored step {stopped}" in result.stdout
  for kind, keys in (("train", ("loss", "comments")), ("eval", ("results",))):
    expected = rows(on_one_host, kind)
    found = rows(tmp_path, kind)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for mine, theirs in zip(found, expected):
      for key in keys:
        check_close(mine[key], theirs[key])


# Every parameter in parts on both hosts.
MESH = {"fsdp_parallel": -1, "fsdp_min_elements": 1}


def check_close(found, expected) -> None:
  if isinstance(expected, dict):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
      check_close(found[key], value)
  else:
    # A difference of equal losses is what rounding leaves.
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
