"""`commentree launch supervise`: restarts the one process of a real host."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from commentree.launch.supervision import local, progress, supervisor
from commentree.launch.supervision.supervisor import Host, Settings, Supervisor

_EPILOG = """\
examples:
  on each host of a TPU slice, where JAX finds the other hosts by itself:
    commentree launch supervise -- train --gin_file=runs/pretrain.gin …

The command is started again, and resumes from the newest checkpoint, after a crash, a
kill, a lost host or refused storage (exit codes 1, 75, 74) and after a SIGTERM to the
run alone (143); not after 0, a mistake of the user's (2) or Ctrl-C (130).
SIGTERM and SIGINT are passed on to the run, which saves; a second one kills it.
"""


def run(
  command: Sequence[str],
  settings: Settings | None = None,
  env: Mapping[str, str] | None = None,
) -> int:
  """Runs a command under a supervisor, from the main thread; returns its exit code."""
  host = Host("the run", command, os.environ if env is None else env)
  return Supervisor(
    lambda: [host],
    settings or Settings(),
    progress.reader(command),
    progress.noun(command),
  ).run()


def main(argv: Sequence[str]) -> int:
  """Supervises a command on this host; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="commentree launch supervise",
    usage="%(prog)s [FLAGS] -- train --gin_file=…",
    description="Run a command on this host, restarting it when it fails.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  supervisor.add_flags(parser)
  arguments, command = supervisor.parse(parser, argv)
  return run([*local.program(), *command], supervisor.settings_of(arguments))
