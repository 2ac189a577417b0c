"""Several processes that save and restore one folder; see `run_hosts.py`."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from commentree.tests.support import training as support
from commentree.tests.support.folders import names
from commentree.tests.support.training.host_processes import free_port

pytestmark = pytest.mark.hosts

_SCRIPT = pathlib.Path(support.__file__).with_name("run_hosts.py")
_SECONDS = 120


def run(hosts: int, devices: int, **options) -> list[dict]:
  """Runs so many hosts; returns what each came to, with its `exit_code`."""
  options |= {"coordinator": f"127.0.0.1:{free_port()}", "hosts": hosts}
  count = f"--xla_force_host_platform_device_count={devices}"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {count}"
  processes = [
    subprocess.Popen(
      [sys.executable, str(_SCRIPT), json.dumps({**options, "host": host})],
      env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in range(hosts)
  ]
  outcomes = []
  try:
    for process in processes:
      out, errors = process.communicate(timeout=_SECONDS)
      assert out, errors
      outcomes.append({**json.loads(out), "exit_code": process.returncode})
  finally:
    for process in processes:
      process.kill()
  return outcomes


def test_what_many_hosts_save_any_number_of_hosts_restores(tmp_path):
  folder = str(tmp_path)
  # One host, then two: its data state comes back to both.
  assert run(1, 4, model_dir=folder, saves=[1])[0]["newest"] == "checkpoint_1"
  # The disk of host 1 is full for once, so that both know of a save that failed; then
  # a save by both is committed once.
  first, second = run(2, 2, model_dir=folder, saves=[2, 3], fail=[1, 1])
  assert first == second
  assert first["from"] == "checkpoint_1"
  assert first["data"] == {"stream 0": 1}
  assert "checkpoint 2 was not saved (host 1" in first["lines"][0]
  assert names(tmp_path) == ["checkpoint_1", "checkpoint_3"]
  # Host 1 alone cannot read the newest: both take the one before.
  run(2, 2, model_dir=folder, saves=[4])
  first, second = run(2, 2, model_dir=folder, saves=[], damage=1)
  assert first == second
  assert first["from"] == "checkpoint_3"
  assert first["data"] == {"stream 0": 3, "stream 1": 3}
  assert "checkpoint_4 cannot be read (host 1" in first["lines"][0]
  # Two hosts, then one, with other devices.
  (alone,) = run(1, 1, model_dir=folder, saves=[])
  assert alone["from"] == "checkpoint_3"
  assert alone["data"] == {"stream 0": 3, "stream 1": 3}


def test_all_hosts_stop_where_one_cannot_save(tmp_path):
  first, second = run(2, 1, model_dir=str(tmp_path), saves=[1, 2, 3], fail=[1, 9])
  assert first == second
  assert first["exit_code"] == 74
  assert "no checkpoint is there" in first["error"]
  assert names(tmp_path) == []


def test_all_hosts_stop_in_time_where_one_hangs_in_a_save(tmp_path):
  settings = {"save_timeout_seconds": 2.0}
  first, second = run(
    2, 1, model_dir=str(tmp_path), saves=[1, 2], hang=1, checkpoint=settings
  )
  for outcome in (first, second):
    assert outcome["exit_code"] == 74
    assert f"checkpoint 1 is not in {tmp_path} after" in outcome["error"]
  assert "host 1 has not answered in time" in first["error"]


def test_a_folder_that_not_all_hosts_see_is_said_at_the_start(tmp_path):
  outcomes = run(2, 1, model_dir=str(tmp_path / "run"), saves=[1], hide=1)
  for outcome in outcomes:
    assert outcome["exit_code"] == 2
    assert "not one folder for all hosts: host 1 (" in outcome["error"]
    assert "give gs://" in outcome["error"]
  assert names(tmp_path / "run") == []
