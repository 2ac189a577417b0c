"""What runs on the workers of a TPU slice: short bash scripts, sent over ssh.

A worker keeps everything in one folder of its home: the source, a virtual environment,
the environment file, the hosts' secret, and of the run its log, its supervisor's
process id and its exit code. Scripts are made here and tested by running them; how they
get there is `queued_resources`' matter.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence

from commentree.errors import UserError
from commentree.training.cluster.coordination import host_secret

FOLDER = "commentree_run"
SOURCE = "source.tar.gz"
ENV = "env"
SECRET = "host_secret"
LOG = "run.log"

_STATUS = re.compile(
  r"^commentree-worker (\S+) (running|ended (\d+)|stopped (\d+)|lost|none)(?:: (.*))?$",
  re.MULTILINE,
)

# The supervisor of this folder's run, unless its number went to another program.
_ALIVE = """\
alive() {
  [ -s run.pid ] && grep -aqs supervise "/proc/$(cat run.pid)/cmdline"
}
"""


def over_ssh(script: str) -> str:
  """Returns a script as one command for any login shell of a worker."""
  return f"bash -c {shlex.quote(script)}"


def prepare() -> str:
  """Returns a script that makes the folder, for the owner's eyes only."""
  return f"umask 077 && mkdir -p {FOLDER}"


def install(requirement: str, *, source: bool) -> str:
  """Returns a script that makes the virtual environment and installs into it.

  Python 3.11 or newer is taken where there is one; else uv brings its own.

  Args:
    requirement: what pip is to install.
    source: whether the source was copied, to be unpacked first.
  """
  unpack = f"rm -rf source && mkdir source && tar -xzf {SOURCE} -C source\n"
  return f"""\
set -euo pipefail
cd "$HOME/{FOLDER}"
exec 3>&2 >install.log 2>&1 </dev/null
trap '[ $? = 0 ] || tail -n 20 install.log >&3' EXIT
if [ ! -x venv/bin/python ]; then
  for python in python3 python3.13 python3.12 python3.11 none; do
    check='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
    if "$python" -c "$check"; then break; fi
  done
  if [ "$python" = none ]; then
    python3 -m pip install --user uv
    python3 -m uv venv --seed --python 3.12 venv
  else
    "$python" -m venv venv
  fi
fi
{unpack if source else ""}\
venv/bin/python -m pip install --upgrade {shlex.quote(requirement)}
"""


def prepared(command: str) -> str:
  """Returns a script that runs a user's command where runs start."""
  return f"""\
set -euo pipefail
cd "$HOME/{FOLDER}"
{command}
"""


def start(command: Sequence[str], max_restarts: int, *, again: bool = False) -> str:
  """Returns a script that starts a command under a supervisor, in the background.

  A dropped connection does not reach it. The environment file is read there, so that
  its values show in no list of processes. The secret by which the hosts know each other
  stays in its file, which they read at each start.

  Args:
    command: the commentree command, "train" first.
    max_restarts: the supervisor's.
    again: leave a run that is under way alone, instead of failing.
  """
  supervise = shlex.join(
    [
      "venv/bin/commentree",
      "launch",
      "supervise",
      f"--max_restarts={max_restarts}",
      "--",
      *command,
    ]
  )
  background = f"""\
set -a
[ ! -e {SECRET} ] || {host_secret.FILE_VARIABLE}="$PWD/{SECRET}"
[ ! -e {ENV} ] || . ./{ENV}
set +a
{supervise} &
echo $! >run.pid
wait $!
echo $? >run.exit
"""
  return f"""\
set -eu
cd "$HOME/{FOLDER}"
{_ALIVE}
if alive; then
  echo "$(hostname): a run is under way; stop it first" >&2
  exit {0 if again else 1}
fi
rm -f run.pid run.exit run.stopped
echo "--- started $(date -Is)" >>{LOG}
nohup setsid bash -c {shlex.quote(background)} >>{LOG} 2>&1 </dev/null &
for i in $(seq 100); do
  [ ! -s run.pid ] || exit 0
  sleep 0.1
done
tail -n 20 {LOG} >&2
exit 1
"""


def status() -> str:
  """Returns a script that prints one line on the run; see `parse_status`."""
  return f"""\
cd "$HOME/{FOLDER}" 2>/dev/null || cd /
{_ALIVE}
if alive; then state=running
elif [ -s run.exit ] && [ -e run.stopped ]; then state="stopped $(cat run.exit)"
elif [ -s run.exit ]; then state="ended $(cat run.exit)"
elif [ -e run.pid ]; then state=lost
else state=none
fi
echo "commentree-worker $(hostname) $state: $(tail -n 1 {LOG} 2>/dev/null)"
"""


def stop(timeout_s: int) -> str:
  """Returns a script that has the run save and end, and waits for it."""
  return f"""\
cd "$HOME/{FOLDER}" 2>/dev/null || {{ echo "$(hostname): nothing runs"; exit; }}
{_ALIVE}
touch run.stopped
alive || {{ echo "$(hostname): nothing runs"; exit 0; }}
kill -TERM "$(cat run.pid)"
for i in $(seq {timeout_s}); do
  if [ -s run.exit ]; then
    echo "$(hostname): ended with exit code $(cat run.exit)"
    exit 0
  fi
  sleep 1
done
echo "$(hostname): still running after {timeout_s} s" >&2
exit 1
"""


def logs(lines: int, *, follow: bool) -> str:
  """Returns a command that shows the end of the run's log."""
  return f"tail -n {lines} {'-F ' if follow else ''}{FOLDER}/{LOG}"


def env_file(env: Mapping[str, str]) -> str:
  """Returns the text of the file that a run takes its environment from."""
  return "".join(f"{name}={shlex.quote(value)}\n" for name, value in env.items())


def parse_env(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables of `--env KEY=VALUE` and `--env KEY` flags.

  A bare KEY takes its value from `environ`, which is how a secret stays off every
  command line, ours included.

  Raises:
    UserError: for what is no variable, or one that is not set.
  """
  env = {}
  for flag in given:
    name, equals, value = flag.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
      raise UserError(f"--env={name}: write KEY=VALUE, or KEY to pass on your own")
    if not equals and name not in environ:
      raise UserError(f"--env={name}: not set here; export it, or write {name}=VALUE")
    env[name] = value if equals else environ[name]
  return env


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
  """A worker's word on its run.

  Attributes:
    host: its name.
    state: "running"; "ended" by itself; "stopped" by us; "lost": gone without an exit
      code, as after a reboot; "none": nothing was started.
    code: exit code, if it ended or was stopped.
    last_line: of its log.
  """

  host: str
  state: str
  code: int | None = None
  last_line: str = ""


def parse_status(output: str) -> list[WorkerStatus]:
  """Returns what `status` printed on any number of workers, one after the other."""
  return [
    WorkerStatus(
      found[1],
      found[2].split()[0],
      int(found[3] or found[4]) if found[3] or found[4] else None,
      found[5] or "",
    )
    for found in _STATUS.finditer(output)
  ]
