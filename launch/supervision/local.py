"""`commentree launch local`: a real run over many hosts, on this machine alone."""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence

from commentree.errors import UserError
from commentree.launch.supervision import progress, supervisor
from commentree.launch.supervision.supervisor import Host, Settings, Supervisor
from commentree.training.cluster.coordination import host_secret

_EPILOG = """\
examples:
  four hosts of two devices each:
    commentree launch local --hosts 4 --devices_per_host 2 -- \\
      train --gin_file=runs/demo.gin --gin.MODEL_DIR='"runs/demo"'

  what would run, to paste into a shell:
    commentree launch local --hosts 2 --dry_run -- train --gin_file=runs/demo.gin …

Host 0 writes to the console, the others to host_1.log and so on in --log_dir.
When one host ends badly all are started again, and resume from the newest checkpoint:
after a crash, a kill, a lost host or refused storage (exit codes 1, 75, 74) and after a
preemption of one host (143); not after 0, a mistake of the user's (2) or Ctrl-C (130).
Ctrl-C and SIGTERM are passed on to all hosts, which save; a second one kills them.
exit codes: those of the run; see `commentree train --help`.
"""


def program() -> list[str]:
  """Returns how to start commentree itself, with this interpreter's packages."""
  script = shutil.which("commentree", path=str(pathlib.Path(sys.executable).parent))
  return [script] if script else [sys.executable, "-P", "-m", "commentree.launch.main"]


def free_port() -> int:
  """Returns a TCP port of this machine that nothing listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def plan(
  command: Sequence[str],
  hosts: int,
  devices_per_host: int,
  log_dir: pathlib.Path,
  env: Mapping[str, str],
) -> list[Host]:
  """Returns the processes of one start, with a port and a secret of their own."""
  address = f"127.0.0.1:{free_port()}"
  devices = f"--xla_force_host_platform_device_count={devices_per_host}"
  flags = f"{env.get('XLA_FLAGS', '')} {devices}".strip()
  host_env = {
    "JAX_PLATFORMS": "cpu",
    **env,
    "XLA_FLAGS": flags,
    host_secret.VARIABLE: host_secret.make(),
  }
  return [
    Host(
      f"host {i}",
      [
        *command,
        f"--coordinator_address={address}",
        f"--process_count={hosts}",
        f"--process_index={i}",
      ],
      host_env,
      log_dir / f"host_{i}.log" if i else None,
    )
    for i in range(hosts)
  ]


def run(
  command: Sequence[str],
  hosts: int,
  devices_per_host: int = 1,
  *,
  log_dir: str | os.PathLike[str] | None = None,
  settings: Settings | None = None,
  env: Mapping[str, str] | None = None,
) -> int:
  """Runs a command as so many hosts under a supervisor; from the main thread only.

  Args:
    command: program and arguments; T5X's flags for many hosts are added.
    hosts: processes to start.
    devices_per_host: CPU devices that XLA makes in each.
    log_dir: folder for the output of all hosts but the first; a new one without.
    settings: how patient to be.
    env: environment of the hosts; this process's own without.

  Returns:
    The exit code of the whole.
  """
  env = dict(os.environ if env is None else env)
  log_dir = pathlib.Path(log_dir or tempfile.mkdtemp(prefix="commentree_logs_"))
  try:
    log_dir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--log_dir={log_dir}: {error.strerror}") from error
  if hosts > 1:
    supervisor.say(f"{hosts} hosts; logs of all but host 0 are in {log_dir}")
  return Supervisor(
    lambda: plan(command, hosts, devices_per_host, log_dir, env),
    settings or Settings(),
    progress.reader(command),
    progress.noun(command),
  ).run()


def main(argv: Sequence[str]) -> int:
  """Runs a command on emulated hosts; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="commentree launch local",
    usage="%(prog)s [FLAGS] -- train --gin_file=…",
    description="Run a command as many hosts on this machine, restarting what fails.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--hosts", type=int, default=1, metavar="N", help="processes (default 1)"
  )
  parser.add_argument(
    "--devices_per_host", type=int, default=1, metavar="K", help="devices (default 1)"
  )
  parser.add_argument(
    "--log_dir", metavar="DIR", help="folder for the hosts' output (default: a new one)"
  )
  supervisor.add_flags(parser)
  parser.add_argument(
    "--dry_run", action="store_true", help="print what would run, and run nothing"
  )
  arguments, command = supervisor.parse(parser, argv)
  for flag in ("hosts", "devices_per_host"):
    if getattr(arguments, flag) < 1:
      raise UserError(f"--{flag}={getattr(arguments, flag)}: must be at least 1")
  command = [*program(), *command]
  if arguments.dry_run:
    folder = pathlib.Path(arguments.log_dir or "LOG_DIR")
    planned = plan(
      command, arguments.hosts, arguments.devices_per_host, folder, os.environ
    )
    # Hosts take it from the shell, so that it is on no command line.
    print(f'export {host_secret.VARIABLE}="$({host_secret.MAKE})"')
    for host in planned:
      print(_as_shell(host))
    return 0
  return run(
    command,
    arguments.hosts,
    arguments.devices_per_host,
    log_dir=arguments.log_dir,
    settings=supervisor.settings_of(arguments),
  )


def _as_shell(host: Host) -> str:
  """A line for a shell that starts a host as we would."""
  settings = [
    f"{name}={shlex.quote(host.env[name])}" for name in ("JAX_PLATFORMS", "XLA_FLAGS")
  ]
  output = f" >>{shlex.quote(str(host.log))} 2>&1 &" if host.log else " &"
  return " ".join([*settings, shlex.join(host.command)]) + output
