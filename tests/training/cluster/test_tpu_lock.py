"""A TPU that is in use: who holds libtpu's lock is named, and a stale file is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from jax._src import cloud_tpu_init

from commentree import compat
from commentree.errors import HostLostError, UserError
from commentree.training.cluster import tpu_lock

_HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path, monkeypatch):
  """Starts processes that hold the lock, on a machine that has a TPU."""
  path = tmp_path / "libtpu_lockfile"
  monkeypatch.setattr(tpu_lock, "PATH", path)
  monkeypatch.setattr(tpu_lock, "_WAIT_SECONDS", 1.0)
  monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(compat, "jax_setting", {"jax_platforms": "tpu,cpu"}.get)
  processes = []

  def start(seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _HOLD, str(path), str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout.readline() == "held\n"
    return process

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def test_the_process_that_has_the_tpu_is_named(hold):
  process = hold(60)
  with pytest.raises(HostLostError) as caught:
    tpu_lock.check({})
  line = str(caught.value)
  assert f"in use by process {process.pid} ({sys.executable} -c" in line
  assert "\n" not in line


def test_a_process_of_an_earlier_start_is_given_time_to_end(hold):
  hold(0.4)
  tpu_lock.check({})


def test_the_file_of_a_killed_process_holds_nobody_up(hold):
  process = hold(60)
  process.kill()
  process.wait()
  assert tpu_lock.PATH.exists()
  tpu_lock.check({})


def test_the_file_of_another_user_is_named_with_the_mend(hold, monkeypatch):
  tpu_lock.PATH.touch()
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  with pytest.raises(UserError, match=r"belongs to user .*`sudo rm .*lockfile`$"):
    tpu_lock.check({})


@pytest.mark.parametrize(
  "variables", [{"TPU_LOAD_LIBRARY": "1"}, {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}]
)
def test_processes_that_share_a_machines_chips_need_no_lock(hold, variables):
  hold(60)
  tpu_lock.check(variables)
