"""Hosts killed at random, over and over: nothing is lost beyond the last checkpoint.

Takes many minutes: part of `make slow`. On real trees where they lie beside the
checkout, else on generated ones.
"""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from commentree.launch.supervision import local
from commentree.tests.support.real_data import DATA
from commentree.training.checkpointing import checkpoints
from commentree.training.reports import metrics_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

HOSTS = 4
STEPS = 300
KILLS = 5
SAVE_PERIOD = 25
STEP_SECONDS = 600
SETTINGS = {
  "TRAIN_STEPS": STEPS,
  "BATCH_SIZE": 8,
  "EVAL_PERIOD": 0,
  "EVAL_BATCHES": 2,
  "CHECKPOINT_PERIOD": SAVE_PERIOD,
  "WARMUP_STEPS": 50,
  "ForestLayout.decoder_rows": 4,
  "ForestLayout.encoder_rows": 8,
  "ForestLayout.lookahead": 64,
  "MAX_ANCESTORS": 8,
  "ModelConfig.dtype": "float32",
  "DROPOUT_RATE": 0.1,
  "TrainConfig.log_period": 5,
  "TrainConfig.trackers": (),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  folder = tmp_path_factory.mktemp("chaos")
  data = {"MIXTURE_OR_TASK_NAME": "commentree_generated"}
  trees = DATA / "4forums.jsonl.gz"
  if trees.exists():
    vocabulary = folder / "trees.model"
    flags = [f"--input={trees}", f"--output={vocabulary}", "--size=8000"]
    subprocess.run([*local.program(), "vocab", *flags], check=True)
    data = {
      "MIXTURE_OR_TASK_NAME": "commentree_files",
      "FILES": str(trees),
      "VOCABULARY": str(vocabulary),
    }
  return {**SETTINGS, **data, "CACHE_DIR": str(folder / "cache")}


def start(model_dir: pathlib.Path, settings, hosts=HOSTS, devices=1, **more):
  """Starts a run over local hosts; their output goes to files beside MODEL_DIR."""
  settings = {**settings, **more, "MODEL_DIR": str(model_dir)}
  command = [*local.program(), "launch", "local", f"--hosts={hosts}"]
  command += [f"--devices_per_host={devices}", f"--log_dir={model_dir}.output"]
  command += ["--", "train", "--gin_file=runs/pretrain.gin"]
  command += [f"--gin.{key}={value!r}" for key, value in settings.items()]
  with pathlib.Path(f"{model_dir}.out").open("a") as output:
    return subprocess.Popen(command, stdout=output, stderr=output)


def said(model_dir: pathlib.Path) -> str:
  return pathlib.Path(f"{model_dir}.out").read_text()


def pid_of(model_dir: pathlib.Path, host: int) -> int | None:
  """Finds the process of a host."""
  for entry in pathlib.Path("/proc").iterdir():
    if not entry.name.isdigit():
      continue
    try:
      words = (entry / "cmdline").read_bytes().decode().split("\0")
    except OSError:
      continue
    mine = f"--gin.MODEL_DIR={str(model_dir)!r}" in words
    if mine and f"--process_index={host}" in words and "launch" not in words:
      return int(entry.name)
  return None


def last_step(model_dir: pathlib.Path) -> int:
  try:
    return metrics_log.read(model_dir / "metrics.jsonl", "train")[-1]["step"]
  except (OSError, IndexError, ValueError):
    return 0


def saving(model_dir: pathlib.Path) -> bool:
  return any(model_dir.glob("checkpoint_*.orbax-checkpoint-tmp*"))


def wait_for(condition, launcher: subprocess.Popen) -> None:
  end = time.monotonic() + STEP_SECONDS
  while not condition():
    assert time.monotonic() < end, "the run does not get on"
    assert launcher.poll() is None, "the run ended before it could be killed"
    time.sleep(0.005)


def losses(model_dir: pathlib.Path) -> list[tuple]:
  """What every step came to, bit by bit."""
  rows = metrics_log.read(model_dir / "metrics.jsonl", "train")
  names = ("step", "loss", "accuracy", "gradient_norm", "learning_rate", "comments")
  return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
  model_dir = tmp_path_factory.mktemp("undisturbed") / "run"
  assert start(model_dir, settings).wait() == 0, said(model_dir)
  return losses(model_dir)


@pytest.fixture(scope="module")
def killed(settings, tmp_path_factory):
  """Folder of a run of which five times a host was killed."""
  model_dir = tmp_path_factory.mktemp("killed") / "run"
  seed = int(os.environ.get("CHAOS_SEED", time.time()))
  print(f"CHAOS_SEED={seed}")
  draw = random.Random(seed)
  launcher = start(model_dir, settings)
  try:
    # In each fifth of the run once; the second and fourth while a save is under way.
    for number in range(KILLS):
      span = STEPS // KILLS
      step = draw.randrange(span * number, span * (number + 1) - 10)
      host = draw.randrange(HOSTS)
      wait_for(lambda step=step: last_step(model_dir) >= step, launcher)
      if number % 2:
        wait_for(lambda: saving(model_dir), launcher)
      wait_for(lambda host=host: pid_of(model_dir, host) is not None, launcher)
      pid = pid_of(model_dir, host)
      in_save = saving(model_dir)
      os.kill(pid, signal.SIGKILL)
      where = "during a save" if in_save else "between saves"
      print(f"killed host {host} after step {last_step(model_dir)}, {where}")
      wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists(), launcher)  # noqa: B023
    assert launcher.wait(STEP_SECONDS) == 0, said(model_dir)
  finally:
    launcher.terminate()
    launcher.wait()
  return model_dir


def test_a_run_whose_hosts_are_killed_has_the_undisturbed_runs_losses_bit_by_bit(
  killed, undisturbed
):
  assert losses(killed) == undisturbed
  assert [row[0] for row in undisturbed] == list(range(1, STEPS + 1))
  output = said(killed)
  assert output.count("was killed by SIGKILL") == KILLS, output
  # Each start continues from the newest checkpoint there was.
  assert output.count("restored step") + output.count("drew parameters") == KILLS + 1


def test_the_killed_run_goes_on_with_half_the_hosts_and_twice_the_devices(
  killed, settings
):
  more = {"TRAIN_STEPS": STEPS + 20, "BATCH_SIZE": 8}
  launcher = start(killed, settings, hosts=2, devices=4, **more)
  assert launcher.wait(STEP_SECONDS) == 0, said(killed)
  assert f"restored step {STEPS}" in said(killed)
  assert "8 x cpu (cpu) on 2 hosts" in said(killed)
  assert [row[0] for row in losses(killed)] == list(range(1, STEPS + 21))


def test_sigterm_to_one_host_saves_the_same_step_on_all_and_the_run_goes_on(
  settings, undisturbed, tmp_path
):
  model_dir = tmp_path / "run"
  launcher = start(model_dir, settings, CHECKPOINT_PERIOD=1000)
  try:
    wait_for(lambda: last_step(model_dir) >= 20, launcher)
    os.kill(pid_of(model_dir, 2), signal.SIGTERM)
    wait_for(lambda: checkpoints.steps_in(model_dir), launcher)
    (saved,) = checkpoints.steps_in(model_dir)
    wait_for(lambda: f"restored step {saved:,}" in said(model_dir), launcher)
    for host in range(HOSTS):
      log = (model_dir / "logs" / f"host_{host}.log").read_text()
      assert f"step {saved:,} saved as" in log
      assert "end: exit code 143" in log
    wait_for(lambda: last_step(model_dir) >= saved + 20, launcher)
  finally:
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(STEP_SECONDS)
  assert losses(model_dir) == undisturbed[: last_step(model_dir)]


if __name__ == "__main__":
  sys.exit(pytest.main([__file__, "-s", "-m", "slow", *sys.argv[1:]]))
