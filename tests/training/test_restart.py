from __future__ import annotations

import pathlib
import signal

import pytest

from commentree.tests.support.training import run_training, subprocesses
from commentree.training.reports import metrics_log

STEPS = 14


@pytest.fixture(scope="module")
def options(compiled):
  return {
    "train_steps": STEPS,
    "log_period": 3,
    "eval_period": 6,
    "dropout": 0.2,
    "compile_cache_dir": compiled,
  }


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory):
  """Rows of metrics.jsonl of a run that nobody disturbed."""
  folder = tmp_path_factory.mktemp("uninterrupted")
  run_training.run_here(model_dir=str(folder), **options)
  return rows(folder)


def rows(folder: pathlib.Path) -> list[dict]:
  found = metrics_log.read(folder / "metrics.jsonl")
  # Seconds differ from run to run.
  return [row for row in found if row["kind"] not in ("start", "speed")]


def test_killed_twice_a_run_repeats_the_same_losses_bit_by_bit(
  options, uninterrupted, tmp_path, capsys
):
  options = {**options, "model_dir": str(tmp_path)}

  # While the checkpoint of step 8 is being written: the one before it is good.
  result = subprocesses.run(**options, die_in_save=8)
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert (tmp_path / "checkpoint_6").is_dir()
  assert not (tmp_path / "checkpoint_8").exists()

  # Between checkpoints, with rows on disk that the restart must not repeat.
  result = subprocesses.run(**options, die_after=11)
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert "checkpoint 8 was still being written when the run was killed" in result.stdout
  assert f"restored step 6 from {tmp_path}/checkpoint_6 (rule 1" in result.stdout
  assert rows(tmp_path)[-1]["step"] == 9

  run_training.run_here(**options)
  # Step 8, or 6 where the disk was slow: either way rows 7 or 9 come a second time.
  assert "restored step" in capsys.readouterr().out
  assert rows(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_run_saves_and_says_how_it_ended(
  options, uninterrupted, tmp_path, number, capsys
):
  options = {**options, "model_dir": str(tmp_path)}
  result = subprocesses.run(**options, signal_after=[5, int(number)])
  assert result.returncode == 128 + number, result.stderr
  assert f"step 5 saved as {tmp_path}/checkpoint_5" in result.stdout
  if number == signal.SIGTERM:
    run_training.run_here(**options)
    assert "restored step 5" in capsys.readouterr().out
    assert rows(tmp_path) == uninterrupted


def test_a_run_may_go_on_with_other_devices(options, uninterrupted, tmp_path):
  options = {**options, "model_dir": str(tmp_path), "held_out": False}
  mesh = {"fsdp_parallel": 2, "model_parallel": 2, "fsdp_min_elements": 1}
  run_training.run_here(**{**options, "train_steps": 4})
  result = subprocesses.run(4, **{**options, "train_steps": 8, "partitioning": mesh})
  assert "restored step 4" in result.stdout
  assert "1 data x 2 fsdp x 2 model" in result.stdout
  losses = [row["loss"] for row in rows(tmp_path)]
  expected = [row["loss"] for row in uninterrupted if row["kind"] == "train"][:8]
  assert losses == pytest.approx(expected, rel=1e-4)


def test_every_step_is_logged_once_and_in_order(uninterrupted):
  steps = [row["step"] for row in uninterrupted if row["kind"] == "train"]
  assert steps == list(range(1, STEPS + 1))
