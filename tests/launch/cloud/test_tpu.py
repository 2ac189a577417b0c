"""`launch tpu up` over a stand-in gcloud, whose workers run what is sent to them."""

import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from commentree.launch.cloud import worker_scripts
from commentree.tests.support.launch.tpu_runs import (
  ASK,
  WHERE,
  bring_up,
  finish,
  launch,
  newest,
  starts,
  train,
  wait_for,
)

pytestmark = pytest.mark.hosts


@pytest.fixture
def up(cloud, model_dir):
  """Starts `up` in processes of their own."""
  processes = []

  def begin(*flags, steps=100_000, env=()):
    argv = ["up", *WHERE, *ASK, "--poll_s=0.05", *flags, *train(model_dir, steps)]
    processes.append(
      subprocess.Popen(
        [sys.executable, "-m", "commentree.launch.main", "launch", "tpu", *argv],
        env={**os.environ, **dict(env)},
        cwd=cloud.folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
      )
    )
    return processes[-1]

  yield begin
  for process in processes:
    process.kill()
    process.wait()


def test_a_spot_slice_that_is_preempted_is_recreated_and_the_run_resumes(
  cloud, model_dir, up
):
  process = up("--env=SECRET", env={"SECRET": "it's $ecret"}.items())
  # On a busy machine a worker may be lost at first, and both be started again.
  wait_for(
    lambda: newest(model_dir) >= 10 and len(starts(model_dir)) >= 2,
    state=lambda: (newest(model_dir), starts(model_dir), cloud.calls()[-5:]),
  )
  before = len(starts(model_dir))
  cloud.preempt("mine")
  saved = newest(model_dir)
  told = finish(process, model_dir, after=before + 2)
  assert newest(model_dir) > saved
  first, second = starts(model_dir)[:before], starts(model_dir)[before:]
  assert min(s["from"] for s in first) == 0
  assert {s["worker"] for s in second} == {"mine-w0", "mine-w1"}
  assert min(s["from"] for s in second) >= saved
  assert {s["secret"] for s in starts(model_dir)} == {"it's $ecret"}
  assert first[0]["argv"] == train(model_dir, 100_000)[1:]
  verbs = [call[3:5] for call in cloud.calls()]
  assert verbs.count(["queued-resources", "create"]) == 2
  assert verbs.count(["queued-resources", "delete"]) == 1
  assert "the slices are SUSPENDED; asking for new ones" in told
  assert "mine: done (exit code 0)" in told
  assert (
    "end the bill: commentree launch tpu delete --name=mine --zone=us-west4-a" in told
  )
  assert cloud.requests() == ["mine"]


def test_no_secret_is_on_any_command_line_and_its_file_is_the_owners_alone(
  cloud, model_dir, up
):
  up("--env=SECRET", "--env=PLAIN=a b", env={"SECRET": "s3cr3t"}.items())
  records = wait_for(lambda: starts(model_dir))
  assert records[0]["secret"] == "s3cr3t"
  assert "s3cr3t" not in json.dumps(cloud.calls())
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      assert b"s3cr3t" not in (process / "cmdline").read_bytes()
    except OSError:
      continue
  for home in cloud.homes():
    path = home / worker_scripts.FOLDER / worker_scripts.ENV
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "SECRET=s3cr3t\nPLAIN='a b'\n"
    path = home / worker_scripts.FOLDER / worker_scripts.SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_all_workers_read_one_secret_of_the_hosts_that_no_command_line_shows(
  cloud, model_dir
):
  bring_up(cloud, model_dir, steps=1)
  paths = [
    home / worker_scripts.FOLDER / worker_scripts.SECRET for home in cloud.homes()
  ]
  [secret] = {path.read_text().strip() for path in paths}
  assert len(secret) == 64
  records = wait_for(lambda: len(starts(model_dir)) == 2 and starts(model_dir))
  assert {record["secret_file"] for record in records} == set(map(str, paths))
  assert secret not in json.dumps(cloud.calls())
  log = cloud.homes()[0] / worker_scripts.FOLDER / worker_scripts.LOG
  assert secret not in log.read_text()


def test_slices_that_are_done_are_deleted_if_so_asked(cloud, model_dir, up):
  process = up("--delete_when_done", steps=3)
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 0, told
  assert cloud.requests() == []


def test_several_slices_make_one_run(cloud, model_dir, up):
  process = up("--num_slices=2", "--delete_when_done", steps=3)
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 0, told
  [created] = [c for c in cloud.calls() if c[3:5] == ["queued-resources", "create"]]
  assert {"--node-count=2", "--node-prefix=mine"} <= set(created)
  assert {s["worker"] for s in starts(model_dir)} == {
    f"mine-{i}-w{j}" for i in range(2) for j in range(2)
  }


def test_a_users_mistake_ends_the_watch_and_is_told(cloud, model_dir, up):
  model_dir.mkdir()
  (model_dir / "mistake").touch()
  process = up()
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 2
  assert "refused its settings" in told
  assert len(starts(model_dir)) == 2


def test_a_run_that_is_given_up_ends_the_watch(cloud, model_dir, up):
  model_dir.mkdir()
  (model_dir / "crash").touch()
  process = up("--max_restarts=0")
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 1
  assert "failed with a traceback" in told
  assert "given up after 1 start" in told


def test_a_request_that_fails_is_not_asked_again(cloud, model_dir, up):
  cloud.set(workers=1, looks=0, fate="FAILED")
  process = up()
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 2
  assert (
    "mine FAILED: no quota for this; mend that, then `commentree launch tpu delete"
    " --name=mine --zone=us-west4-a --project=a-project` and `up` again" in told
  )
  assert [c[4] for c in cloud.calls()].count("create") == 1


def test_a_worker_whose_supervisor_vanished_starts_again(cloud, model_dir, up):
  up()
  wait_for(lambda: len(starts(model_dir)) == 2)
  home = cloud.homes()[1]
  os.kill(int((home / worker_scripts.FOLDER / "run.pid").read_text()), signal.SIGKILL)
  wait_for(lambda: len(starts(model_dir)) == 3)
  assert starts(model_dir)[2]["worker"] == home.name


def test_slices_that_a_user_deletes_are_not_asked_for_again(cloud, model_dir, up):
  process = up()
  wait_for(lambda: newest(model_dir) >= 2)
  time.sleep(0.5)
  assert launch("delete", *WHERE) == 0
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 143, told
  assert "a user deleted the slices" in told
  assert cloud.requests() == []


def test_slices_that_a_user_deletes_while_they_are_set_up_stay_deleted(cloud, up):
  process = up()
  wait_for(lambda: any("tpu-vm" in call for call in cloud.calls()))
  assert launch("delete", *WHERE) == 0
  told = process.communicate(timeout=60)[1]
  assert process.returncode in (2, 143), told
  assert cloud.requests() == []


def test_a_watch_that_is_interrupted_leaves_the_run_and_another_takes_it_up(
  cloud, model_dir, up
):
  process = up()
  wait_for(lambda: newest(model_dir) >= 2)
  time.sleep(0.5)
  process.send_signal(signal.SIGINT)
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 130
  assert "no longer watched, the run continues, and its bill" in told
  before = newest(model_dir)
  wait_for(lambda: newest(model_dir) > before)
  up()
  wait_for(lambda: cloud.calls()[-1][3:5] == ["tpu-vm", "ssh"])
  time.sleep(1)
  assert len(starts(model_dir)) == 2
  assert [c[4] for c in cloud.calls()].count("create") == 1


def test_a_request_busy_with_being_suspended_is_cleared_all_the_same(
  cloud, model_dir, up
):
  process = up()
  wait_for(lambda: len(starts(model_dir)) == 2)
  cloud.preempt("mine", state="SUSPENDING")
  told = finish(process, model_dir, after=4)
  assert "it is being suspended" in told


def test_a_preempted_vm_is_noticed_before_the_queue_notices(cloud, model_dir, up):
  process = up()
  wait_for(lambda: len(starts(model_dir)) == 2)
  (cloud.folder / "node_state").write_text("PREEMPTED")
  cloud.preempt("mine", state="ACTIVE")
  wait_for(lambda: [c[4] for c in cloud.calls()].count("create") == 2)
  (cloud.folder / "node_state").unlink()
  told = finish(process, model_dir, after=4)
  assert "preempted: mine (PREEMPTED)" in told


def test_vms_that_are_gone_though_their_request_is_active_are_asked_for_anew(
  cloud, model_dir, up
):
  process = up("--patience_s=3")
  wait_for(lambda: len(starts(model_dir)) == 2)
  cloud.preempt("mine", state="ACTIVE")
  told = finish(process, model_dir, after=4)
  assert "mine (not there); looking again in 0.05 s" in told
  assert "s though the request is ACTIVE: mine (not there); asking for new" in told
  assert [c[4] for c in cloud.calls()].count("create") == 2


def test_an_active_request_without_vms_is_not_adopted_for_ever(cloud, model_dir, up):
  cloud.set(workers=2, looks=0)
  assert launch("create", *WHERE, *ASK) == 0
  assert launch("wait", *WHERE, "--poll_s=0.01") == 0
  cloud.preempt("mine", state="ACTIVE")
  process = up("--patience_s=0.5")
  told = finish(process, model_dir, after=2)
  assert "tpu-vm ssh mine failed" in told
  assert "the slices went meanwhile" in told
  assert [c[4] for c in cloud.calls()].count("create") == 2


def test_a_vm_that_is_repaired_is_waited_for_and_its_run_goes_on(cloud, model_dir, up):
  process = up("--patience_s=60")
  wait_for(lambda: len(starts(model_dir)) == 2)
  homes = cloud.homes()
  (cloud.folder / "node_state").write_text("REPAIRING")
  for home in homes:
    home.rename(cloud.folder / home.name)
  wait_for(
    lambda: sum(call[3:5] == ["tpu-vm", "describe"] for call in cloud.calls()) > 3
  )
  for home in homes:
    (cloud.folder / home.name).rename(home)
  (cloud.folder / "node_state").unlink()
  told = finish(process, model_dir, after=2)
  assert "mine (REPAIRING); looking again" in told
  assert [c[4] for c in cloud.calls()].count("create") == 1
