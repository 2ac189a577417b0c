"""What happens to the other hosts when one does not come, dies, hangs or differs."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from commentree.tests.support.training.host_processes import (
  Hosts,
  at_step,
  ends,
  free_port,
)

pytestmark = pytest.mark.hosts

_NAME = socket.gethostname()


@pytest.fixture
def hosts(tmp_path):
  started = Hosts(tmp_path / "logs")
  yield started
  started.kill_all()


def every(count: int, **own: dict) -> list[dict]:
  """Options of each host; those of `host_1=…` for host 1 alone."""
  return [{"index": i, **own.get(f"host_{i}", {})} for i in range(count)]


def test_hosts_that_finish_at_different_times_end_well(hosts):
  each = every(3, host_0={"linger": 1}, host_2={"linger": 2})
  for index, host in enumerate(ends(*hosts.start(3, *each, steps=2))):
    assert host.code == 0
    assert host.err == []
    # Host 0 alone speaks on the console; all keep logs.
    assert ("the end" in host.out) == (index == 0)
    assert "start: " in hosts.log(index)
    assert hosts.log(index).endswith("INFO end\n")


def test_a_command_started_on_one_host_says_so(hosts):
  options = {"wait_seconds": 2}
  here, elsewhere = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
  first = hosts.start(3, {"index": 0, "address": here}, **options)
  second = hosts.start(3, {"index": 1, "address": elsewhere}, **options)
  lost = hosts.start(3, {"index": 1, "address": "nowhere.invalid:8476"}, **options)
  alone, without_first, misled = ends(*first, *second, *lost)
  assert [host.code for host in (alone, without_first, misled)] == [75] * 3
  assert alone.err == [
    f"commentree: host 0 ({_NAME}) waited 2 s at {here} for hosts 1, 2 of 3 in vain:"
    " start the same command on every host of the slice, and see that they reach that"
    " address"
  ]
  assert without_first.err == [
    f"commentree: host 1 ({_NAME}) found no host 0 at {elsewhere} within 2 s"
    " (connection refused): start the same command on every host of the slice, and"
    " check that --coordinator_address names host 0"
  ]
  assert len(misled.err) == 1
  assert "no host 0 at nowhere.invalid:8476" in misled.err[0]
  assert "the name is not known here" in misled.err[0]


def test_hosts_whose_flags_do_not_fit_are_told_so(hosts):
  twins = hosts.start(3, *every(2), {"index": 1})
  for host in ends(*twins):
    assert host.code == 2
    (line,) = host.err
    assert "--process_index=1 was given to two processes" in line
    assert all(str(twin.pid) in line for twin in twins[1:])
  for host in ends(*hosts.start(3, *every(2, host_1={"count": 4}))):
    assert host.code == 2
    assert host.err == [
      f"commentree: host 1 ({_NAME}) was started with --process_count=4, host 0 with"
      " --process_count=3: give all hosts the same"
    ]


def test_a_port_that_is_taken_is_named(hosts):
  with socket.create_server(("", 0)) as other:
    port = other.getsockname()[1]
    (host,) = ends(
      *hosts.start(2, {"index": 0}, address=f"127.0.0.1:{port}", wait_seconds=1)
    )
  assert host.code == 2
  assert f"cannot listen on port {port} (address already in use)" in host.err[0]


def test_hosts_with_other_settings_are_named_with_what_differs(hosts):
  each = every(2, host_1={"facts": {"BATCH_SIZE": 16, "x": 1}})
  for host in ends(*hosts.start(2, *each, facts={"BATCH_SIZE": 8, "x": 1})):
    assert host.code == 2
    assert host.err == [
      f"commentree: hosts differ in settings: host 1 ({_NAME}) has BATCH_SIZE = 16"
      " (host 0: 8); start the same command on every host, with the same files and"
      " packages"
    ]


@pytest.mark.parametrize(("count", "victim"), [(2, 0), (3, 1)])
def test_a_killed_host_ends_the_others_at_once_by_its_name(hosts, count, victim):
  run = hosts.start(count, *every(count), steps=1000)
  at_step(run[-1], 3)
  run[victim].kill()
  others = [process for i, process in enumerate(run) if i != victim]
  for host in ends(*others):
    assert host.code == 75
    assert host.seconds < 20
    (line,) = host.err
    assert line.startswith(f"commentree: host {victim} ({_NAME})")
    assert "is gone: its process ended without a word" in line


@pytest.mark.parametrize(("count", "victim"), [(2, 0), (3, 1)])
def test_a_frozen_host_ends_the_others_in_time_by_its_name(hosts, count, victim):
  health = {"host_timeout_seconds": 4}
  run = hosts.start(count, *every(count), steps=1000, health=health)
  at_step(run[-1], 3)
  os.kill(run[victim].pid, signal.SIGSTOP)
  others = [process for i, process in enumerate(run) if i != victim]
  for host in ends(*others):
    assert host.code == 75
    assert 3 < host.seconds < 30
    (line,) = host.err
    assert line.startswith(f"commentree: host {victim} ({_NAME})")
    assert "has not been heard of for 4 s" in line
    assert "at step" in line


def test_a_host_in_which_no_python_runs_shows_where(hosts):
  wedged = {"wedge_in": [3, 7]}
  health = {"host_timeout_seconds": 3}
  run = hosts.start(2, *every(2, host_1=wedged), steps=1000, health=health)
  first, other = ends(*run)
  assert first.code == other.code == 75
  assert f"host 1 ({_NAME}) has not been heard of for 3 s" in first.err[0]
  assert "run_host.py" in hosts.log(1).partition("Timeout")[2]


def test_the_error_of_one_host_ends_the_others_with_its_message(hosts):
  failing = {"raise_at": [3, "ValueError"]}
  run = hosts.start(3, *every(3, host_1=failing), steps=1000)
  first, broken, other = ends(*run)
  assert broken.code == 1
  assert broken.err[-1] == "ValueError: it broke"
  assert "ValueError: it broke" in hosts.log(1)
  for host in (first, other):
    assert host.code == 75
    assert host.err == [
      f"commentree: host 1 ({_NAME}) failed at step 3, in input: ValueError: it broke"
    ]


def test_the_mistake_that_one_host_finds_ends_all_with_its_exit_code(hosts):
  failing = {"raise_at": [2, "UserError"]}
  run = hosts.start(2, *every(2, host_0=failing), steps=1000)
  first, other = ends(*run)
  assert (first.code, first.err) == (2, ["commentree: it broke"])
  assert other.code == 2
  assert other.err == [
    f"commentree: host 0 ({_NAME}) failed at step 2, in input: it broke"
  ]


def test_a_host_that_stands_still_is_named_and_shows_where(hosts):
  stuck = {"sleep_in": [3, 100]}
  health = {"stall_timeout_seconds": 2}
  run = hosts.start(2, *every(2, host_1=stuck), steps=1000, health=health)
  for host in ends(*run):
    assert host.code == 75
    (line,) = host.err
    assert line.startswith(f"commentree: host 1 ({_NAME}), at step 3, in input, stands")
  # The line of the script that it sleeps in.
  assert "run_host.py" in hosts.log(1).partition("stands still")[2]


def test_a_process_that_is_alone_and_stands_still_ends(hosts):
  stuck = {"index": 0, "sleep_in": [1, 100]}
  (host,) = ends(*hosts.start(1, stuck, steps=1, health={"stall_timeout_seconds": 1}))
  assert host.code == 75
  (line,) = host.err
  assert line.startswith("commentree: no progress for")
  assert "at step 1, in input" in line
