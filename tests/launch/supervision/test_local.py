"""`launch local` and its supervisor, over small processes that stand in for hosts."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from commentree.launch import main
from commentree.launch.supervision import local, supervise
from commentree.launch.supervision.supervisor import Settings
from commentree.tests.support import launch as support

pytestmark = pytest.mark.hosts

STAND_IN = str(pathlib.Path(support.__file__).with_name("host_stand_in.py"))
QUICK = Settings(max_restarts=3, grace_s=20, first_delay_s=0.01, longest_delay_s=0.02)
HASTY = dataclasses.replace(QUICK, grace_s=0.3)
DONE = [["exit", 0]]

# A supervisor in a process of its own, for what a signal does to it.
RUN = """
import sys
from commentree.launch.supervision import local
from commentree.launch.supervision.supervisor import Settings
folder, hosts, grace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
sys.exit(local.run(
  [sys.executable, sys.argv[4], folder], hosts, log_dir=folder + "/logs",
  settings=Settings(grace_s=grace, first_delay_s=float(sys.argv[5]))))
"""


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'a folder\'s "name" $HOME'
  path.mkdir()
  return path


def command(folder, *flags):
  return [sys.executable, STAND_IN, str(folder), *flags]


def write_plan(folder, *starts):
  (folder / "plan.json").write_text(json.dumps(starts))


def run(folder, *starts, hosts=2, settings=QUICK, flags=(), **options):
  """Runs hosts by a plan: what each does at each start; the last holds for ever."""
  write_plan(folder, *starts)
  return local.run(
    command(folder, *flags),
    hosts,
    log_dir=folder / "logs",
    settings=settings,
    **options,
  )


def started(folder):
  path = folder / "started.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition, seconds=150):
  deadline = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.02)
  return found


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # A process that no one waits for is dead all the same.
  state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  return state != "Z"


@pytest.fixture
def supervised(folder):
  """Starts supervisors in processes of their own; ends what they leave."""
  processes = []

  def start(*starts, hosts=2, grace=5.0, delay=0.01):
    write_plan(folder, *starts)
    processes.append(
      subprocess.Popen(
        [
          sys.executable,
          "-c",
          RUN,
          str(folder),
          str(hosts),
          str(grace),
          STAND_IN,
          str(delay),
        ],
      )
    )
    return processes[-1]

  yield start
  for process in processes:
    process.kill()
    process.wait()
  for record in started(folder):
    with contextlib.suppress(ProcessLookupError):
      os.kill(record["pid"], signal.SIGKILL)


def serving(folder, hosts):
  wait_for(lambda: len(list(folder.glob("serving_*"))) == hosts)
  return {record["host"]: record["pid"] for record in started(folder)[-hosts:]}


def test_hosts_get_devices_flags_and_one_coordinator(folder):
  env = {**os.environ, "XLA_FLAGS": "--xla_mine=1"}
  env.pop("JAX_PLATFORMS", None)
  assert run(folder, [DONE] * 3, hosts=3, devices_per_host=2, env=env) == 0
  records = sorted(started(folder), key=lambda record: record["host"])
  assert [record["flags"][1:] for record in records] == [
    ["--process_count=3", f"--process_index={i}"] for i in range(3)
  ]
  assert len({record["flags"][0] for record in records}) == 1
  assert re.fullmatch(r"--coordinator_address=127\.0\.0\.1:\d+", records[0]["flags"][0])
  for record in records:
    assert record["env"] == {
      "XLA_FLAGS": "--xla_mine=1 --xla_force_host_platform_device_count=2",
      "JAX_PLATFORMS": "cpu",
    }


def test_hosts_share_a_secret_that_is_new_at_each_start_and_on_no_command_line(
  folder, capfd
):
  assert run(folder, [[["exit", 75]], DONE], [DONE, DONE]) == 0
  records = started(folder)
  first, second = ({r["secret"] for r in records if r["start"] == i} for i in (0, 1))
  assert len(first) == len(second) == 1
  assert first != second
  told = "".join(capfd.readouterr()) + (folder / "logs" / "host_1.log").read_text()
  for secret in first | second:
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    assert secret not in json.dumps([record["flags"] for record in records])
    assert secret not in told


def test_another_platform_of_the_users_stays(folder):
  run(folder, [DONE], hosts=1, env={**os.environ, "JAX_PLATFORMS": "cuda"})
  assert started(folder)[0]["env"]["JAX_PLATFORMS"] == "cuda"


@pytest.mark.parametrize(
  ("failure", "said"),
  [
    (["exit", 75], "host 1 lost another host"),
    (["exit", 74], "host 1 was refused by storage"),
    (["exit", 1], "host 1 failed with a traceback"),
    (["exit", 143], "host 1 was preempted"),
    (["kill", 9], "host 1 was killed by SIGKILL"),
    (["kill", 6], "host 1 was killed by SIGABRT"),
  ],
)
def test_all_start_again_at_a_new_port_after(failure, said, folder, capfd):
  assert run(folder, [[["exit", 75]], [failure]], [DONE, DONE]) == 0
  records = started(folder)
  assert sorted((r["start"], r["host"]) for r in records) == [
    (0, 0), (0, 1), (1, 0), (1, 1)
  ]  # fmt: skip
  assert len({record["flags"][0] for record in records}) == 2
  if failure != ["exit", 75]:
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("code", [0, 2, 130])
def test_nothing_starts_again_after(code, folder):
  assert run(folder, [[["exit", code]]] * 2) == code
  assert len(started(folder)) == 2


def test_a_users_mistake_on_all_hosts_is_told_once(folder, capfd):
  mistake = [["print", "commentree: TRAIN_STPES"], ["exit", 2]]
  assert run(folder, [mistake] * 3, hosts=3) == 2
  told = capfd.readouterr()
  assert (told.out + told.err).count("TRAIN_STPES") == 1


def test_a_users_mistake_on_another_host_is_told_from_its_log(folder, capfd):
  mistake = [["print", "commentree: no file /data"], ["exit", 2]]
  assert run(folder, [[["exit", 75]], mistake]) == 2
  told = capfd.readouterr().err
  assert told.count("no file /data") == 1
  assert "host 1 refused its settings (exit code 2)" in told


def test_giving_up_says_how_often_why_and_where_with_the_last_lines(folder, capfd):
  failing = [["print", "line of the log"], ["exit", 1]]
  assert run(folder, [[["exit", 75]], failing]) == 1
  told = capfd.readouterr().err
  assert (
    "given up after 4 starts, 4 failures in a row without a newer checkpoint" in told
  )
  assert "no checkpoint yet" in told
  assert str(folder / "logs") in told
  assert told.rstrip().endswith("line of the log")
  assert told.count("line of the log") == 1


def test_logs_are_appended_to_over_restarts_and_say_which_start(folder):
  run(folder, [DONE, [["print", "one"], ["exit", 1]]], [DONE, [["print", "two"]]])
  log = (folder / "logs" / "host_1.log").read_text()
  assert re.sub(r", .*", "", log).split("\n") == [
    "--- start 1", "one", "--- start 2", "two", ""
  ]  # fmt: skip
  assert not (folder / "logs" / "host_0.log").exists()


def test_a_run_whose_checkpoints_advance_is_never_given_up(folder):
  model_dir = repr(str(folder / "model"))
  failing = [[[["checkpoint", step], ["exit", 1]]] for step in range(8)]
  flags = [f"--gin.MODEL_DIR={model_dir}"]
  assert run(folder, *failing, [DONE], hosts=1, flags=flags) == 0
  assert len(started(folder)) == 9


def test_a_run_that_stands_still_is_given_up_whatever_it_reached_before(folder, capfd):
  model_dir = repr(str(folder / "model"))
  failing = [[[["checkpoint", min(step, 2)], ["exit", 1]]] for step in range(9)]
  flags = [f"--gin.MODEL_DIR={model_dir}"]
  assert run(folder, *failing, hosts=1, flags=flags) == 1
  # Steps 0, 1 and 2 are progress; after the third start only the budget is left.
  assert len(started(folder)) == 3 + QUICK.max_restarts
  assert "newest checkpoint 2" in capfd.readouterr().err


def test_others_may_end_by_themselves_before_they_are_told_to(folder, capfd):
  slow = [["sleep", 0.5], ["print", "saved"], ["exit", 75]]
  patient = Settings(max_restarts=0, grace_s=10)
  assert run(folder, [[["exit", 1]], slow], settings=patient) == 1
  assert "saved" in (folder / "logs" / "host_1.log").read_text()
  assert "SIGTERM" not in capfd.readouterr().err


def test_a_hung_host_is_told_to_end_then_killed_and_not_blamed(folder, capfd):
  hung = [["ignore_sigterm"], ["sleep", 60]]
  begun = time.monotonic()
  starts = [[["sleep", 0.5], ["exit", 75]], hung], [DONE, DONE]
  assert run(folder, *starts, settings=HASTY) == 0
  assert time.monotonic() - begun < 30
  told = capfd.readouterr().err
  assert "host 1 did not end in 0.3 s: SIGTERM" in told
  assert "host 1 did not end in 0.3 s: SIGKILL" in told
  assert "host 0 lost another host" in told


def test_a_stopped_host_is_killed(folder):
  stopped = [["kill", int(signal.SIGSTOP)]]
  starts = [[["sleep", 0.5], ["exit", 75]], stopped], [DONE, DONE]
  assert run(folder, *starts, settings=HASTY) == 0


@pytest.mark.parametrize(
  ("number", "code"),
  [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)],
)
def test_a_signal_is_passed_on_to_all_and_the_code_passed_on(
  number, code, folder, supervised
):
  process = supervised([[["serve"]]] * 3, hosts=3)
  serving(folder, 3)
  process.send_signal(number)
  assert process.wait(60) == code
  assert len(started(folder)) == 3


def test_a_host_that_saves_for_longer_than_the_others_is_let_save(folder, supervised):
  process = supervised([[["serve"]], [["save_slowly", 1.5]]], grace=0.2)
  serving(folder, 2)
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == 143
  assert (folder / "saved").exists()


def test_a_second_signal_kills(folder, supervised):
  process = supervised([[["ignore_sigterm"], ["sleep", 60]]] * 2, grace=60)
  wait_for(lambda: (folder / "started.jsonl").exists() and len(started(folder)) == 2)
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  time.sleep(1)
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == 137
  assert not any(alive(record["pid"]) for record in started(folder))


def test_a_signal_while_waiting_to_restart_ends_at_once(folder, supervised):
  process = supervised([[["exit", 1]]], hosts=1, delay=60)
  wait_for(lambda: (folder / "started.jsonl").exists())
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == 143


def test_sigterm_to_one_host_alone_is_a_preemption_and_starts_all_again(
  folder, supervised
):
  process = supervised([[["serve"]], [["sleep", 0.5], ["exit", 143]]], [DONE, DONE])
  pids = serving(folder, 1)
  os.kill({r["host"]: r["pid"] for r in started(folder)}[0], signal.SIGTERM)
  assert process.wait(60) == 0
  assert pids
  assert max(record["start"] for record in started(folder)) == 1


def test_hosts_do_not_outlive_a_supervisor_that_is_killed(folder, supervised):
  process = supervised([[["ignore_sigterm"], ["sleep", 600]]] * 2)
  wait_for(lambda: (folder / "started.jsonl").exists() and len(started(folder)) == 2)
  pids = [record["pid"] for record in started(folder)]
  assert all(map(alive, pids))
  process.kill()
  process.wait()
  wait_for(lambda: not any(map(alive, pids)))


def test_what_a_host_leaves_behind_ends_with_it(folder):
  leaving = f"sleep 60 & echo $! > {local.shlex.quote(str(folder / 'left'))}"
  assert local.run(["bash", "-c", leaving], 1, settings=QUICK) == 0
  left = int((folder / "left").read_text())
  wait_for(lambda: not alive(left))


def test_arguments_reach_the_hosts_as_they_are(folder):
  odd = ["--gin.X='it''s \"$HOME\" * `id`'", "--y=a\nb", "--z=ä ö"]
  run(folder, [DONE], hosts=1, flags=odd)
  assert started(folder)[0]["flags"][:3] == odd


def test_a_program_that_is_not_there_is_named_and_not_tried_again(folder, capfd):
  assert local.run(["/no/such program"], 1, settings=QUICK) == 127
  told = capfd.readouterr().err
  assert "/no/such program: No such file or directory" in told
  assert "start 2" not in told


def test_supervise_restarts_the_one_process_and_adds_no_flags(folder, capfd):
  write_plan(folder, [[["exit", 75]]], [[["kill", 9]]], [DONE])
  assert supervise.run(command(folder), QUICK) == 0
  assert [record["flags"] for record in started(folder)] == [[], [], []]
  told = capfd.readouterr().err
  assert "the run lost another host" in told
  assert "the run was killed by SIGKILL" in told


def test_a_dry_run_prints_commands_that_a_shell_takes_apart_again(folder, capsys):
  value = "--gin.MODEL_DIR='it''s \"$HOME\"'"
  flags = ["--hosts=2", "--devices_per_host=4", f"--log_dir={folder}", "--dry_run"]
  assert main.main(["launch", "local", *flags, "--", "train", value]) == 0
  secret, *lines = capsys.readouterr().out.splitlines()
  assert secret == 'export COMMENTREE_HOST_SECRET="$(openssl rand -hex 32)"'
  assert len(lines) == 2
  for i, line in enumerate(lines):
    shown = line.replace(local.shlex.join(local.program()), "printf '%s\\n'", 1)
    shown = re.sub(r"( >>.*)? &$", "", shown)
    said = subprocess.run(["bash", "-c", shown], capture_output=True, text=True)
    assert said.stdout.splitlines()[:2] == ["train", value]
    assert said.stdout.splitlines()[-1] == f"--process_index={i}"
  assert not list(folder.iterdir())


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["local"], "there is no command"),
    (["local", "--", "trian"], "'trian' is no verb"),
    (["local", "--", "launch", "local"], "'launch' is no verb"),
    (["local", "--hosts=0", "--", "train"], "--hosts=0: must be at least 1"),
    (["local", "--max_restarts=-1", "--", "train"], "--max_restarts=-1"),
    (["moon"], "no target 'moon'"),
  ],
)
def test_a_users_mistake_is_one_line(argv, said, capsys):
  assert main.main(["launch", *argv]) == 2
  told = capsys.readouterr().err.strip()
  assert said in told
  assert "\n" not in told


def test_launching_imports_nothing_heavy_and_starts_at_once():
  code = (
    "import sys; from commentree.launch.supervision import local, supervise;"
    " from commentree.launch import main;"
    "main.main(['launch', 'local', '--dry_run', '--', 'train']);"
    "sys.exit(bool({'jax', 'tensorflow', 'numpy', 'gin'} & set(sys.modules)))"
  )
  before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
  assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
