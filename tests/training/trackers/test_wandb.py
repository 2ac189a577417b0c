"""The real wandb, in its offline mode."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import pytest
from etils import epath

from commentree.training.trackers import tracker as tracker_lib
from commentree.training.trackers.tracker import TrackedRun

pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
pytestmark = pytest.mark.long

# wandb changes the process it runs in, and reads its variables once.
LOG = """
import json, sys
from etils import epath
from commentree.training.config import TrainConfig
from commentree.training.trackers import background
from commentree.training.trackers.tracker import TrackedRun
folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = TrainConfig(folder, 9, 8, trackers=("wandb",), tracker_project="trees")
lines = []
(tracker,) = background.open_trackers(
  config, TrackedRun(epath.Path(folder), config.tracker_project),
  {"TrainConfig.batch_size": 8}, lines.append)
for step in range(first, last):
  tracker.log_scalars(step, {"train/loss": step / 4})
  tracker.log_scalars(step, {"eval/held_out/loss": step / 8}, "none")
tracker.finish(0)
print("LINES", json.dumps(lines))
"""


def log(folder, first, last, **variables):
  """Reports steps from a process of its own; returns the lines told to the user."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
  done = subprocess.run(
    [sys.executable, "-c", LOG, str(folder), str(first), str(last)],
    env={**kept, "WANDB_MODE": "offline", "WANDB_SILENT": "true", **variables},
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  return json.loads(done.stdout.partition("LINES")[2])


def records(data):
  """Yields the records of a file in the format of LevelDB's logs, after its header."""
  at, parts = 7, []
  while at + 7 <= len(data):
    left = 2**15 - at % 2**15
    if left < 7:
      at += left
      continue
    length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
    parts.append(data[at + 7 : at + 7 + length])
    at += 7 + length
    if kind in (1, 4):  # whole, last
      yield b"".join(parts)
      parts = []


def stored(folder):
  """Returns (project, run id, config, rows) of each offline run below a folder."""
  from wandb.proto import wandb_internal_pb2 as pb

  found = []
  for file in sorted(folder.rglob("run-*.wandb")):
    project, run, config, rows = None, None, {}, []
    for record in map(pb.Record.FromString, records(file.read_bytes())):
      kind = record.WhichOneof("record_type")
      if kind == "run":
        project, run = record.run.project, record.run.run_id
      if kind in ("run", "config"):
        update = record.run.config.update if kind == "run" else record.config.update
        config |= {u.key or ".".join(u.nested_key): u.value_json for u in update}
      if kind == "history":
        items = record.history.item
        rows.append(
          {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
        )
    found.append((project, run, config, rows))
  return found


def test_a_run_is_logged_and_goes_on_in_the_same_one_after_a_restart(tmp_path):
  assert log(tmp_path, 1, 3) == []
  assert log(tmp_path, 3, 4) == []
  first, second = stored(tmp_path)
  assert first[0] == second[0] == "trees"
  assert first[1] == second[1]
  assert first[1] == tracker_lib.kept_id(TrackedRun(epath.Path(tmp_path)), "wandb")
  assert json.loads(first[2]["TrainConfig.batch_size"]) == 8
  rows = [
    (row["_step"], row["train/loss"], row["eval/held_out/loss/none"])
    for row in first[3] + second[3]
    if "train/loss" in row
  ]
  assert rows == [(step, step / 4, step / 8) for step in (1, 2, 3)]


def test_trials_of_a_sweep_have_the_runs_that_its_agent_made(tmp_path):
  # As an agent starts them, here with one MODEL_DIR for both.
  for trial in ("trial1", "trial2"):
    sweep = {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": trial, "WANDB_PROJECT": "swept"}
    assert log(tmp_path, 1, 2, **sweep) == []
  assert sorted((project, run) for project, run, *_ in stored(tmp_path)) == [
    ("swept", "trial1"),
    ("swept", "trial2"),
  ]
  # Started again by hand, the last goes on.
  assert log(tmp_path, 2, 3) == []
  assert [run for _, run, *_ in stored(tmp_path)].count("trial2") == 2


def test_what_wandb_refuses_is_one_line(tmp_path):
  (line,) = log(tmp_path, 1, 2, WANDB_RUN_ID="no/such:id")
  assert line.startswith("tracker 'wandb' (")
  assert line.endswith("): training continues without it")
