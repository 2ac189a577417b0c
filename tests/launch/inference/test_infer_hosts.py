"""`commentree infer` as real processes that are killed, and on a model that learned."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time

import pytest

from commentree.launch import main
from commentree.launch.settings import gin_cli
from commentree.launch.supervision import local
from commentree.tasks.sources import generated
from commentree.tests.support.launch import made_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  return made_runs.make(tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def file(model_dir):
  found = made_runs.trees(model_dir, 60)
  return made_runs.write(model_dir / "trees.jsonl", found)


def command(model_dir, file, output, *launcher):
  flags = [f"--model_dir={model_dir}", "--mode=score", "--input", str(file)]
  own = ["infer", *flags, f"--output={output}", "--chunk_trees=2"]
  return [*local.program(), *launcher, *own]


def on_hosts(count, folder, devices=1):
  flags = ["--hosts", str(count), "--devices_per_host", str(devices)]
  return ["launch", "local", *flags, "--max_restarts=0", f"--log_dir={folder}", "--"]


def test_hosts_killed_at_any_moment_and_started_in_other_numbers_lose_nothing(
  tmp_path, model_dir, file
):
  whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
  subprocess.run(command(model_dir, file, whole), check=True)
  parts = tmp_path / "out.jsonl.parts"
  rng = random.Random(0)
  for count, devices in ((1, 1), (3, 1), (2, 2), (1, 3)):
    launcher = on_hosts(count, tmp_path / "logs", devices)
    process = subprocess.Popen(
      command(model_dir, file, output, *launcher), start_new_session=True
    )
    before = len(list(parts.glob("*-*-*")))
    while process.poll() is None and len(list(parts.glob("*-*-*"))) == before:
      time.sleep(0.002)
    time.sleep(rng.random())
    for pid in [process.pid, *children(process.pid)]:
      kill(pid)
    process.wait()
  done = subprocess.run(
    command(model_dir, file, output, *on_hosts(2, tmp_path / "logs"))
  )
  assert done.returncode == 0
  assert output.read_bytes() == whole.read_bytes()
  assert not parts.exists()


def children(pid):
  found = subprocess.run(
    ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
  )
  own = [int(child) for child in found.stdout.split()]
  return [*own, *(below for child in own for below in children(child))]


def kill(pid):
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)


def test_a_signal_to_one_host_ends_all_and_the_rest_is_done_later(
  tmp_path, model_dir, file
):
  output, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
  launcher = on_hosts(2, tmp_path / "logs")
  process = subprocess.Popen(command(model_dir, file, output, *launcher))
  while process.poll() is None and not list(parts.glob("*-*-*")):
    time.sleep(0.002)
  os.kill(children(process.pid)[-1], signal.SIGTERM)
  assert process.wait(timeout=60) == 143
  assert not output.exists()
  subprocess.run(command(model_dir, file, output), check=True)
  subprocess.run(command(model_dir, file, tmp_path / "whole.jsonl"), check=True)
  assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_trained_model_fills_in_what_ancestors_decide(tmp_path):
  settings = {
    "MODEL_DIR": str(tmp_path / "model"),
    "CACHE_DIR": str(tmp_path / "cache"),
    "TRAIN_STEPS": 2000,
    "EVAL_BATCHES": 1,
    "GeneratedTreesConfig.noise": 0.0,
  }
  flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
  assert main.main(["train", "--gin_file=runs/demo.gin", *flags]) == 0
  config = gin_cli.load([str(tmp_path / "model" / "config.gin")]).data.generated
  recalls = generated.words(config).recalls.values()
  recalled = {word for words in recalls for word in words}

  def hide(text):
    return " ".join("<mask>" if word in recalled else word for word in text.split())

  first = config.num_train_trees
  held_out = [
    made_runs.as_object(generated.generate_tree(config, config.seed, first + i))
    for i in range(200)
  ]
  source = made_runs.write(
    tmp_path / "hidden.jsonl", [made_runs.map_texts(hide, tree) for tree in held_out]
  )
  texts = {
    comment["id"]: comment["body"] for tree in held_out for comment in tree["comments"]
  }

  def accuracy(ancestors):
    output = tmp_path / f"{ancestors}.jsonl"
    flags = [f"--model_dir={tmp_path / 'model'}", "--mode=fill", "--input", source]
    flags += [f"--output={output}", f"--ancestors={ancestors}"]
    assert main.main(["infer", *flags]) == 0
    right = []
    for line in map(json.loads, output.read_text().splitlines()):
      if line["masks"]:
        words = zip(line["filled"].split(), texts[line["comment"]].split())
        right += [filled == word for filled, word in words if word in recalled]
    return sum(right) / len(right)

  assert accuracy("true") >= 0.99
  # One fact of eight may be guessed.
  assert accuracy("none") < 0.2
