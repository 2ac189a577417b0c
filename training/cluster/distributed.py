"""Joins the hosts of a run, before anything touches a device."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax

from commentree import compat
from commentree.console import Console
from commentree.errors import HostLostError, UserError
from commentree.training.cluster import tpu_lock
from commentree.training.cluster.coordination import host_link, host_log, host_secret
from commentree.training.cluster.coordination.coordination_service_proxy import (
  CoordinationServiceProxy,
  PrivateSocket,
)
from commentree.training.cluster.coordination.coordinator import Coordinator
from commentree.training.cluster.coordination.host_log import HostConsole
from commentree.training.cluster.coordination.watchdog import Watchdog
from commentree.training.cluster.host_settings import HostSettings, split_address
from commentree.training.config import HealthConfig

# JAX's own limits are the backstop: ours come first.
_BACKSTOP_FACTOR = 3
_BACKSTOP_SECONDS = 180
_JAX_CONNECT_SECONDS = 120
_JAX_SHUTDOWN_SECONDS = 60
_PORT_SECONDS = 10.0
_LOOPBACK = "127.0.0.1"
_PORT = "JAX_COORDINATOR_PORT"
_LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"


@dataclasses.dataclass(frozen=True)
class HostRank:
  """Where this process stands among those of its run.

  Attributes:
    address: `HOST:PORT` of host 0; empty if this process is alone.
    count: number of hosts.
    index: which of them this is.
    local_device_ids: the devices that are this process's, if not all of its host's.
    source: what told.
  """

  address: str = ""
  count: int = 1
  index: int = 0
  local_device_ids: list[int] | None = None
  source: str = ""


@dataclasses.dataclass(frozen=True)
class Cluster:
  """What a process of a run speaks and listens through.

  Attributes:
    console: prints on host 0 and adds to each host's log.
    watchdog: to be told where the main thread is.
  """

  console: HostConsole
  watchdog: Watchdog

  def say(self, line: str) -> None:
    """Prints a line as it is."""
    self.console.print(line)


@contextlib.contextmanager
def join_cluster(
  settings: HostSettings, health: HealthConfig, log_dir: str | None, model_dir: str
) -> Iterator[Cluster]:
  """Joins the hosts for all that a command does with devices; see `initialize`.

  An error in it ends the process at once if there are other hosts: see
  `watchdog.Watchdog.guard`.

  Args:
    settings: what the flags say.
    health: when a host counts as lost.
    log_dir: folder of the hosts' logs, if the user names one.
    model_dir: folder of the run.
  """
  place = find_place(settings)
  tpu_lock.check()
  console = HostConsole(chief=place.index == 0)
  with host_log.kept(log_dir, model_dir, place.index, console):
    watchdog = initialize(place, settings.wait_seconds, health, console)
    with watchdog.guard():
      yield Cluster(console, watchdog)


def initialize(
  place: HostRank, wait_seconds: float, health: HealthConfig, console: Console
) -> Watchdog:
  """Joins the hosts; afterwards `jax.process_index()` and `jax.devices()` know of all.

  Args:
    place: which host this is; from `find_place`.
    wait_seconds: how long to wait for the others.
    health: when a host counts as lost.
    console: takes news.

  Returns:
    The watchdog; everything that follows belongs into its `guard()`.

  Raises:
    UserError: if hosts were started with flags or versions that do not fit together.
    HostLostError: if host 0 or another host does not come in time.
  """

  def say(line: str) -> None:
    console.print(line)

  def news(line: str) -> None:
    say(line)
    if (
      console.quiet
    ):  # as long as there is no run, whoever started this host reads here
      print(line, file=sys.stderr)

  if place.count == 1:
    return Watchdog(health)
  secret = host_secret.read()
  host, port = split_address(place.address)
  jax_socket = PrivateSocket()
  coordinator = None
  if place.index == 0:
    coordinator = _start_coordinator(
      place, wait_seconds, health, secret, jax_socket.path
    )
    host = coordinator.listens_at or _LOOPBACK
  link, names = host_link.join(
    (host, port),
    place.address,
    place.index,
    place.count,
    wait_seconds,
    news,
    # A launcher may replace the secret while this host waits for a new host 0.
    secret=secret if coordinator else None,
  )
  proxy = None
  if place.index:
    proxy = CoordinationServiceProxy(
      jax_socket.path,
      lambda: _connect_to_jax((host, port), place.index, place.count),
    )

  def leave() -> None:
    if proxy is not None:
      proxy.give_up()
    jax.distributed.shutdown()

  watchdog = Watchdog(
    health,
    link,
    index=place.index,
    coordinator=f"host 0 ({names[0]})",
    leave=leave,
  )
  watchdog.start()
  with watchdog.ends_on_error():
    watchdog.agree(_versions(), "versions")
    _initialize_jax(place, jax_socket.path, health)
    # By now every host is connected to JAX's service.
    jax_socket.remove()
    own_address = coordinator.reached_at if coordinator else link.own_address
    _bind_cpu_collectives(own_address)
  say(
    f"{place.count} hosts (from {place.source}); host 0 ({names[0]}) at"
    f" {place.address} coordinates"
  )
  if not secret:
    say(
      f"{host_secret.VARIABLE} is not set: whoever reaches {place.address} can take"
      " part in this run or end it; see docs/hosts.md"
    )
  return watchdog


def find_place(settings: HostSettings) -> HostRank:
  """Finds out which host of which this process is.

  The flags decide, else what started the process: TPU metadata (one slice or several),
  Kubernetes, Slurm, Open MPI. If none says anything, this process is alone.

  Raises:
    UserError: if it cannot be found out.
  """
  place = HostRank() if settings.mode == "off" else _told(settings)
  if place is None and settings.mode == "on":
    raise UserError(
      "--distributed=on: neither flags nor TPU metadata, Kubernetes, Slurm or Open MPI"
      " say where the hosts are; give --coordinator_address, --process_count and"
      " --process_index"
    )
  return place or HostRank()


def _connect_to_jax(address: tuple[str, int], index: int, count: int) -> socket.socket:
  """Connects to JAX's service through the coordinator's port."""
  try:
    return host_link.connect(address, index, count, "jax")
  except (host_link.Closed, UserError) as error:
    raise ConnectionError(str(error)) from error


def _initialize_jax(place: HostRank, path: str, health: HealthConfig) -> None:
  jax.config.update("jax_check_proxy_envs", False)
  # It would swallow SIGTERM until `signals` takes over.
  jax.config.update("jax_enable_preemption_service", False)
  backstop = max(_BACKSTOP_SECONDS, _BACKSTOP_FACTOR * health.host_timeout_seconds)
  jax.distributed.initialize(
    f"unix:{path}",
    place.count,
    place.index,
    local_device_ids=place.local_device_ids,
    cluster_detection_method="deactivate",
    initialization_timeout=_JAX_CONNECT_SECONDS,
    heartbeat_timeout_seconds=int(backstop),
    shutdown_timeout_seconds=_JAX_SHUTDOWN_SECONDS,
    coordinator_bind_address=f"unix:{path}",
  )


def _bind_cpu_collectives(own_address: str) -> None:
  """Has Gloo listen on the address by which the hosts reach each other.

  By itself it takes the address that this machine's own name has here, which on Debian
  is one of loopback.
  """
  is_gloo = compat.jax_setting("jax_cpu_collectives_implementation") == "gloo"
  if is_gloo and "%" not in own_address:
    compat.bind_gloo(own_address)


def _versions() -> dict[str, str]:
  """What must be the same on all hosts, for their programs to be."""
  packages = ("commentree", "jax", "jaxlib")
  return {
    "Python": platform.python_version(),
    **{package: metadata.version(package) for package in packages},
  }


def _told(settings: HostSettings) -> HostRank | None:
  if settings.coordinator_address is not None:
    assert settings.process_count is not None
    assert settings.process_index is not None
    return HostRank(
      settings.coordinator_address,
      settings.process_count,
      settings.process_index,
      None,
      "flags",
    )
  kind = _surroundings()
  if kind is None:
    _check_not_overlooked()
    return None
  try:
    count = kind.get_process_count()
    if count == 1:
      return HostRank()
    address = os.environ.get("JAX_COORDINATOR_ADDRESS") or kind.get_coordinator_address(
      int(settings.wait_seconds), _port()
    )
    index = kind.get_process_id()
    local = None
    if not compat.is_tpu_cluster(kind) and _LOCAL_DEVICES not in os.environ:
      local = kind.get_local_process_id()
  except (RuntimeError, LookupError, ValueError, OSError) as error:
    raise HostLostError(
      f"{_source(kind)} tells of several hosts, but not where they are"
      f" ({' '.join(str(error).split())}): start again, or give --coordinator_address,"
      " --process_count and --process_index, or --distributed=off for one process alone"
    ) from error
  return HostRank(
    address, count, index, None if local is None else [local], _source(kind)
  )


def _surroundings() -> type[Any] | None:
  """What started this process, if JAX knows of it."""
  with warnings.catch_warnings():
    # Without the package `kubernetes` JAX warns; we look closer.
    warnings.simplefilter("ignore")
    for kind in compat.cluster_kinds():
      if not kind.opt_in_only_method and kind.is_env_present():
        return kind
  return None


def _port() -> str | None:
  """The port that the user names where surroundings name the host."""
  port = os.environ.get(_PORT)
  if port is not None and not (port.isdecimal() and 0 < int(port) < 2**16):
    raise UserError(f"{_PORT}={port}: must be a port, from 1 to {2**16 - 1}")
  return port


def _source(kind: type[Any]) -> str:
  if compat.is_tpu_cluster(kind):
    return "TPU metadata"
  return {"slurm": "Slurm", "ompi": "Open MPI"}.get(kind.name, "Kubernetes")


def _check_not_overlooked() -> None:
  """Refuses to run alone where others seem to run beside, out of JAX's sight."""
  flags = "--coordinator_address, --process_count and"
  if index := os.environ.get("JOB_COMPLETION_INDEX"):
    raise UserError(
      f"this is pod {index} of an indexed Kubernetes Job, whose size is known only with"
      f" `pip install 'jax[k8s]'`; install that, or give {flags}"
      f" --process_index={index}, or --distributed=off for one process alone"
    )
  if int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    index = os.environ.get("OMPI_COMM_WORLD_RANK", "…")
    raise UserError(
      f"this is process {index} of several of Open MPI, which does not tell where the"
      f" first is; give {flags} --process_index={index}, or --distributed=off for one"
      " process alone"
    )


def _start_coordinator(
  place: HostRank, wait_seconds: float, health: HealthConfig, secret: bytes, path: str
) -> Coordinator:
  """Starts the coordinator; one of an earlier run may take a moment to go."""
  host, port = split_address(place.address)
  end = time.monotonic() + min(_PORT_SECONDS, wait_seconds)
  while True:
    try:
      return Coordinator(host, port, place.count, wait_seconds, health, secret, path)
    except OSError as error:
      if time.monotonic() > end:
        raise UserError(
          f"--coordinator_address={place.address}: host 0 ({socket.gethostname()})"
          f" cannot listen on port {port} ({os.strerror(error.errno or 0).lower()});"
          " give another port, the same on every host"
        ) from error
      time.sleep(_PORT_SECONDS / 20)
