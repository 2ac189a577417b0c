"""The verbs of `launch tpu`, one by one, over a stand-in gcloud and its workers."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from commentree.launch.cloud import worker_scripts
from commentree.tests.support.launch.tpu_runs import (
  ASK,
  WHERE,
  bring_up,
  launch,
  newest,
  starts,
  train,
  wait_for,
)

pytestmark = pytest.mark.hosts


def test_stop_saves_on_all_workers_and_says_how_each_ended(cloud, model_dir, capfd):
  bring_up(cloud, model_dir)
  wait_for(lambda: newest(model_dir) >= 2)
  assert launch("status", *WHERE) == 0
  assert capfd.readouterr().out.count("running: step") == 2
  assert launch("stop", *WHERE) == 0
  told = capfd.readouterr().out
  assert told.count("ended with exit code 143") == 2
  assert launch("status", *WHERE) == 0
  assert capfd.readouterr().out.count("stopped (143)") == 2
  stopped_at = newest(model_dir)
  time.sleep(0.3)
  assert newest(model_dir) == stopped_at
  assert len(starts(model_dir)) == 2


def test_a_run_outlives_the_connection_that_started_it(cloud, model_dir):
  bring_up(cloud, model_dir)
  # The stand-in's ssh has returned; hang up, as a dropped connection does.
  for record in wait_for(lambda: len(starts(model_dir)) == 2 and starts(model_dir)):
    supervisor = int(pathlib.Path(f"/proc/{record['pid']}/stat").read_text().split()[3])
    assert os.getsid(supervisor) != os.getsid(0)
    os.kill(supervisor, signal.SIGHUP)
  before = newest(model_dir)
  wait_for(lambda: newest(model_dir) > before + 2)
  assert len(starts(model_dir)) == 2


def test_a_second_run_beside_the_first_is_refused(cloud, model_dir, capfd):
  bring_up(cloud, model_dir)
  assert launch("run", *WHERE, *train(model_dir, 5)) == 2
  assert "a run is under way; stop it first" in capfd.readouterr().err
  assert len(wait_for(lambda: starts(model_dir))) <= 2


def test_logs_show_a_workers_end_of_log(cloud, model_dir, capfd):
  bring_up(cloud, model_dir, steps=3)
  wait_for(lambda: newest(model_dir) == 3)
  code = "from commentree.launch import main; import sys; sys.exit(main.main())"

  def shown() -> str:
    return subprocess.run(
      [sys.executable, "-c", code, "launch", "tpu", "logs", *WHERE, "--worker=1"],
      capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

  # The other worker may have taken the step alone.
  wait_for(lambda: "step 3" in shown())
  assert "--worker=1" in cloud.calls()[-1]


def test_setup_copies_the_source_and_installs_it_with_the_tpu_extra(cloud, capfd):
  cloud.set(workers=2, looks=0)
  launch("create", *WHERE, *ASK)
  launch("wait", *WHERE, "--poll_s=0.01")
  assert launch("setup", *WHERE) == 0
  for home in cloud.homes():
    folder = home / worker_scripts.FOLDER
    assert (folder / "pip.txt").read_text().split() == ["--upgrade", "./source[tpu]"]
    assert (folder / "source" / "launch" / "cloud" / "tpu.py").is_file()
    assert (folder / "source" / "gin" / "runs" / "demo.gin").is_file()
    assert (folder / "source" / "setup.py").is_file()
    assert not (folder / "source" / "tests").exists()
    assert not (folder / "source" / ".git").exists()


def test_files_and_data_are_put_where_the_run_starts(cloud, tmp_path):
  cloud.set(workers=2, looks=0)
  launch("create", *WHERE, *ASK)
  launch("wait", *WHERE, "--poll_s=0.01")
  mine = tmp_path / "it's my $HOME.gin"
  mine.write_text("TRAIN_STEPS = 3")
  fetch = """echo "it's $(basename "$HOME")" >'some data'"""
  assert launch("setup", *WHERE, f"--copy={mine}", f"--prepare={fetch}") == 0
  for home in cloud.homes():
    assert (home / worker_scripts.FOLDER / mine.name).read_text() == "TRAIN_STEPS = 3"
    assert (
      home / worker_scripts.FOLDER / "some data"
    ).read_text() == f"it's {home.name}\n"
  assert launch("setup", *WHERE, "--prepare=false; true") == 2


@pytest.mark.parametrize(
  ("given", "asked"),
  [
    ("it's-1.0-py3-none-any.whl", "./it's-1.0-py3-none-any.whl[tpu]"),
    ("git+https://host/a b.git", "commentree[tpu] @ git+https://host/a b.git"),
    ("commentree>=0.1, <2", "commentree[tpu]>=0.1, <2"),
    ("commentree[tpu,wandb]", "commentree[tpu,wandb]"),
  ],
)
def test_other_packages_are_installed_as_pip_takes_them(
  given, asked, cloud, tmp_path, monkeypatch
):
  cloud.set(workers=1, looks=0)
  launch("create", *WHERE, *ASK)
  launch("wait", *WHERE, "--poll_s=0.01")
  monkeypatch.chdir(tmp_path)
  (tmp_path / "it's-1.0-py3-none-any.whl").write_text("a wheel")
  assert launch("setup", *WHERE, f"--package={given}") == 0
  folder = cloud.homes()[0] / worker_scripts.FOLDER
  assert (folder / "pip.txt").read_text().splitlines() == ["--upgrade", asked]
  assert (folder / given).is_file() == given.endswith(".whl")


def test_a_failed_install_shows_its_last_lines(cloud, capfd):
  cloud.set(workers=1, looks=0)
  launch("create", *WHERE, *ASK)
  launch("wait", *WHERE, "--poll_s=0.01")
  folder = cloud.homes()[0] / worker_scripts.FOLDER
  folder.mkdir()
  (folder / "pip_fails").touch()
  assert launch("setup", *WHERE) == 2
  told = capfd.readouterr().err
  assert "no matching distribution" in told
  assert "tpu-vm ssh mine failed with exit code 1" in told


@pytest.mark.parametrize("verb", ["create", "status", "stop", "delete"])
def test_a_dry_run_prints_what_would_run_and_runs_nothing(verb, cloud, capsys):
  if verb != "create":
    cloud.set(workers=1, looks=0)
    launch("create", *WHERE, *ASK)
    launch("wait", *WHERE, "--poll_s=0.01")
  flags = [*WHERE, *(ASK if verb == "create" else [])]
  before = cloud.calls()
  capsys.readouterr()
  assert launch(verb, *flags, "--dry_run") == 0
  shown = capsys.readouterr().out
  assert cloud.calls() == before
  assert launch(verb, *flags) == 0
  run = cloud.calls()[len(before) :]
  if verb == "create":
    cloud.change("mine", state="DELETED")
    (cloud.folder / "requests" / "mine").unlink()
  pasted_from = len(cloud.calls())
  subprocess.run(["bash", "-c", shown], check=False, capture_output=True)
  assert cloud.calls()[pasted_from:] == run


def test_a_dry_run_of_up_survives_a_shell_and_shows_no_secret(
  cloud, model_dir, capsys, monkeypatch
):
  monkeypatch.setenv("SECRET", "s3cr3t")
  flags = [*WHERE, *ASK, "--env=SECRET", "--dry_run"]
  assert launch("up", *flags, *train(model_dir, 7)) == 0
  shown = capsys.readouterr().out
  assert "s3cr3t" not in shown
  assert cloud.calls() == []
  recorder = f'gcloud() {{ {sys.executable} -c {DUMP!r} "$@"; }}; tar() {{ :; }}\n'
  done = subprocess.run(
    ["bash", "-c", recorder + shown], capture_output=True, text=True, check=True
  )
  calls = [json.loads(line) for line in done.stdout.splitlines()]
  assert [call[2:4] for call in calls] == [
    ["queued-resources", "create"],
    ["queued-resources", "describe"],
    ["tpu-vm", "ssh"],
    ["tpu-vm", "scp"],
    ["tpu-vm", "ssh"],
    ["tpu-vm", "scp"],
    ["tpu-vm", "ssh"],
  ]
  assert calls[0][4:] == [
    "mine",
    "--zone=us-west4-a",
    "--project=a-project",
    "--node-id=mine",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
  ]


DUMP = "import json, sys; print(json.dumps(sys.argv[1:]))"


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["create", "--name=Mine", *ASK], "--name=Mine: write small letters"),
    (["create", "--name=m", "--accelerator_type=v7-8"], "--accelerator_type=v7-8"),
    (["create", "--name=m", "--accelerator_type=tpu7x-8"], "by GKE alone"),
    (["create", "--name=m", "--accelerator_type=v4-7"], "TensorCores, two a chip"),
    (["create", "--name=m"], "give either --accelerator_type"),
    (["create", "--name=m", *ASK, "--reserved"], "--spot and --reserved"),
    (["create", "--name=m", "--type=v4", "--topology=2x2x2"], "--runtime_version"),
    (["up", "--name=m", *ASK, "--env=NO_SUCH", "--", "train"], "--env=NO_SUCH"),
    (["up", "--name=m", *ASK, "--env=1=2", "--", "train"], "--env=1"),
    (["setup", "--name=m", "--package=no.whl"], "--package=no.whl: no such file"),
    (["setup", "--name=m", "--copy=no.gin"], "--copy=no.gin: no such file"),
    (["run", "--name=m"], "there is no command"),
    (["wait", "--name=m"], "m is not there"),
  ],
)
def test_a_users_mistake_is_one_line_told_before_anything_is_asked_for(
  argv, said, cloud, capfd
):
  assert launch(*argv) == 2
  told = capfd.readouterr().err.strip().splitlines()
  assert said in told[-1]
  assert all("create" not in call for call in cloud.calls())


def test_a_missing_gcloud_is_named(cloud, capsys, monkeypatch):
  monkeypatch.setenv("PATH", "/nowhere")
  assert launch("delete", *WHERE) == 2
  assert "gcloud: no such program on PATH" in capsys.readouterr().err
