"""The flags that tell a process of the other hosts of its run; they are T5X's."""

from __future__ import annotations

import argparse

from commentree.training.cluster.host_settings import HostSettings

EPILOG = """\
several hosts: start the same command on every host. On TPU slices and under
Kubernetes, Slurm and Open MPI they find each other; elsewhere tell each of them:
  --coordinator_address=10.0.0.2:8476 --process_count=4 --process_index=0   (…1, 2, 3)
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; `settings` reads them."""
  group = parser.add_argument_group("several hosts")
  group.add_argument(
    "--coordinator_address",
    metavar="HOST:PORT",
    help="host 0 and a free port of it, the same on every host",
  )
  group.add_argument("--process_count", type=int, metavar="N", help="number of hosts")
  group.add_argument(
    "--process_index", type=int, metavar="I", help="which host this is, from 0"
  )
  group.add_argument(
    "--distributed",
    choices=("auto", "on", "off"),
    default="auto",
    help="auto: look for other hosts in TPU metadata, Kubernetes, Slurm and Open MPI;"
    " on: fail if there are none; off: this process alone",
  )
  group.add_argument(
    "--host_wait_seconds",
    type=float,
    default=60.0,
    metavar="S",
    help="how long to wait for the other hosts (default 60)",
  )
  group.add_argument(
    "--log_dir",
    metavar="DIR",
    help="folder of each host's own log, host_<index>.log; default MODEL_DIR/logs, or"
    " ./logs if MODEL_DIR is remote",
  )


def settings(arguments: argparse.Namespace) -> HostSettings:
  """What the flags say.

  Raises:
    UserError: if they contradict each other.
  """
  return HostSettings(
    coordinator_address=arguments.coordinator_address,
    process_count=arguments.process_count,
    process_index=arguments.process_index,
    mode=arguments.distributed,
    wait_seconds=arguments.host_wait_seconds,
  )
