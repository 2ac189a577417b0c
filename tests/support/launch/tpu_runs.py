"""Runs of `launch tpu` over the stand-in gcloud, and what they leave."""

from __future__ import annotations

import json
import time

from commentree.launch import main

WHERE = ["--name=mine", "--zone=us-west4-a", "--project=a-project"]
ASK = ["--accelerator_type=v5litepod-16", "--spot"]


def launch(*argv):
  return main.main(["launch", "tpu", *argv])


def train(model_dir, steps):
  literal = json.dumps(str(model_dir))
  return ["--", "train", f"--gin.MODEL_DIR={literal}", f"--gin.TRAIN_STEPS={steps}"]


def starts(model_dir):
  path = model_dir / "starts.jsonl"
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def newest(model_dir):
  found = [int(p.name.removeprefix("checkpoint_")) for p in model_dir.glob("check*")]
  return max(found, default=0)


def wait_for(condition, seconds=150, state=lambda: ""):
  """Waits until a condition holds; else fails, telling the state."""
  deadline = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < deadline, f"waited in vain: {state()}"
    time.sleep(0.05)
  return found


def finish(process, model_dir, after):
  """Lets a run end well after so many starts; returns what `up` told."""
  wait_for(lambda: len(starts(model_dir)) >= after)
  (model_dir / "enough").touch()
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 0, told
  return told


def bring_up(cloud, model_dir, steps=100_000):
  """Slices with a run under way."""
  cloud.set(workers=2, looks=0)
  assert launch("create", *WHERE, *ASK) == 0
  assert launch("wait", *WHERE, "--poll_s=0.01") == 0
  assert launch("setup", *WHERE) == 0
  assert launch("run", *WHERE, *train(model_dir, steps)) == 0
