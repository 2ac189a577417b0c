"""`launch tpu` over a stand-in gcloud, whose workers run what is sent to them."""

import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from commentree.launch import main, remote

pytestmark = pytest.mark.hosts

WHERE = ["--name=mine", "--zone=us-west4-a", "--project=a-project"]
ASK = ["--accelerator_type=v5litepod-16", "--spot"]


def launch(*argv):
  return main.main(["launch", "tpu", *argv])


@pytest.fixture
def model_dir(tmp_path):
  return tmp_path / 'all hosts\' "models" `id` $PATH'


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


def wait_for(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.05)
  return found


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


def test_a_spot_slice_that_is_preempted_is_recreated_and_the_run_resumes(
  cloud, model_dir, up
):
  process = up("--env=SECRET", env={"SECRET": "it's $ecret"}.items())
  wait_for(lambda: newest(model_dir) >= 10 and len(starts(model_dir)) == 2)
  cloud.preempt("mine")
  saved = newest(model_dir)
  told = finish(process, model_dir, after=4)
  assert newest(model_dir) > saved
  first, second = starts(model_dir)[:2], starts(model_dir)[2:]
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
    path = home / remote.FOLDER / remote.ENV
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "SECRET=s3cr3t\nPLAIN='a b'\n"
    path = home / remote.FOLDER / remote.SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_all_workers_read_one_secret_of_the_hosts_that_no_command_line_shows(
  cloud, model_dir
):
  bring_up(cloud, model_dir, steps=1)
  paths = [home / remote.FOLDER / remote.SECRET for home in cloud.homes()]
  [secret] = {path.read_text().strip() for path in paths}
  assert len(secret) == 64
  records = wait_for(lambda: len(starts(model_dir)) == 2 and starts(model_dir))
  assert {record["secret_file"] for record in records} == set(map(str, paths))
  assert secret not in json.dumps(cloud.calls())
  log = cloud.homes()[0] / remote.FOLDER / remote.LOG
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
  os.kill(int((home / remote.FOLDER / "run.pid").read_text()), signal.SIGKILL)
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
  assert "no longer watched, the run goes on, and its bill" in told
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
  process = up("--patience_s=1")
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


@pytest.fixture
def hanging_up_ends():
  """SIGHUP has its usual effect, even if the tests run under nohup."""
  previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, previous)


def test_a_run_outlives_the_connection_that_started_it(
  cloud, model_dir, hanging_up_ends
):
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

  # The worker may write its line after the other has reached the step.
  wait_for(lambda: "step 3" in shown())
  assert "--worker=1" in cloud.calls()[-1]


def test_setup_copies_the_source_and_installs_it_with_the_tpu_extra(cloud, capfd):
  cloud.set(workers=2, looks=0)
  launch("create", *WHERE, *ASK)
  launch("wait", *WHERE, "--poll_s=0.01")
  assert launch("setup", *WHERE) == 0
  for home in cloud.homes():
    folder = home / remote.FOLDER
    assert (folder / "pip.txt").read_text().split() == ["--upgrade", "./source[tpu]"]
    assert (folder / "source" / "launch" / "tpu.py").is_file()
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
    assert (home / remote.FOLDER / mine.name).read_text() == "TRAIN_STEPS = 3"
    assert (home / remote.FOLDER / "some data").read_text() == f"it's {home.name}\n"
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
  folder = cloud.homes()[0] / remote.FOLDER
  assert (folder / "pip.txt").read_text().splitlines() == ["--upgrade", asked]
  assert (folder / given).is_file() == given.endswith(".whl")


def test_a_failed_install_shows_its_last_lines(cloud, capfd):
  cloud.set(workers=1, looks=0)
  launch("create", *WHERE, *ASK)
  launch("wait", *WHERE, "--poll_s=0.01")
  folder = cloud.homes()[0] / remote.FOLDER
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
