"""TPU VM slices through `gcloud`: asked for, waited for, reached over ssh, deleted.

A queued resource of one name holds one slice, or several for one run. Every command
line that is sent to gcloud is made here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from commentree.errors import UserError
from commentree.launch.cloud import tpu_types, worker_scripts
from commentree.launch.cloud.shell import CommandError, Shell
from commentree.launch.supervision.supervisor import say

_GROUP = ("gcloud", "compute", "tpus")

# How long gcloud may fail, as without a network, or a VM be away.
PATIENCE_S = 1800

# States in which a VM does not come back by itself.
_TAKEN_AWAY = ("PREEMPTED", "TERMINATED", "STOPPED")
GONE = "not there"


@dataclasses.dataclass(frozen=True)
class SlicePlace:
  """Which slices: the name of their queued resource, and where it is.

  Attributes:
    name: of the queued resource, of its slice, or what its slices' names begin with.
    zone: such as us-west4-a; None: gcloud's own setting.
    project: None: gcloud's own setting.
    num_slices: slices of one run.
  """

  name: str
  zone: str | None = None
  project: str | None = None
  num_slices: int = 1

  def __post_init__(self):
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,60}[a-z0-9])?", self.name):
      raise UserError(
        f"--name={self.name}: write small letters, digits and hyphens, a letter first"
      )
    if self.num_slices < 1:
      raise UserError(f"--num_slices={self.num_slices}: must be at least 1")

  @property
  def flags(self) -> list[str]:
    """The flags of gcloud that say where."""
    given = (("zone", self.zone), ("project", self.project))
    return [f"--{name}={value}" for name, value in given if value]

  @property
  def delete_line(self) -> str:
    """The command that deletes the slices, to be pasted."""
    words = ["commentree", "launch", "tpu", "delete", f"--name={self.name}"]
    return shlex.join([*words, *self.flags])

  @property
  def nodes(self) -> list[str]:
    """The names of the slices."""
    if self.num_slices == 1:
      return [self.name]
    return [f"{self.name}-{i}" for i in range(self.num_slices)]


@dataclasses.dataclass(frozen=True)
class SliceRequest:
  """What to ask for; see `gcloud compute tpus queued-resources create`.

  Attributes:
    accelerator_type: such as v5litepod-64; or
    tpu_type, topology: such as v4 and 2x2x4.
    runtime_version: software of the TPU VMs; None: what suits the accelerator type.
    spot, reserved: how it is paid; at most one of them.
    service_account, network, subnetwork: as gcloud's flags.
    valid_until_duration: how long to wait in the queue, such as 6h; None: without end.
  """

  accelerator_type: str | None = None
  tpu_type: str | None = None
  topology: str | None = None
  runtime_version: str | None = None
  spot: bool = False
  reserved: bool = False
  service_account: str | None = None
  network: str | None = None
  subnetwork: str | None = None
  valid_until_duration: str | None = None

  def __post_init__(self):
    shape = (self.tpu_type, self.topology)
    if bool(self.accelerator_type) == any(shape) or any(shape) != all(shape):
      raise UserError("give either --accelerator_type, or --type and --topology")
    if self.spot and self.reserved:
      raise UserError("--spot and --reserved: choose one")
    if self.accelerator_type:
      tpu_types.of_accelerator_type(self.accelerator_type)
    elif not self.runtime_version:
      raise UserError("--runtime_version is missing; --type and --topology need it")

  @property
  def chips(self) -> int | None:
    """Chips in a slice, if the accelerator type tells."""
    if not self.accelerator_type:
      return None
    return tpu_types.of_accelerator_type(self.accelerator_type)[1]

  def flags(self) -> list[str]:
    """The flags of gcloud that say what."""
    version = self.runtime_version
    if self.accelerator_type and not version:
      generation, _ = tpu_types.of_accelerator_type(self.accelerator_type)
      version = generation.runtime_version
    given = (
      ("accelerator-type", self.accelerator_type),
      ("type", self.tpu_type),
      ("topology", self.topology),
      ("runtime-version", version),
      ("service-account", self.service_account),
      ("network", self.network),
      ("subnetwork", self.subnetwork),
      ("valid-until-duration", self.valid_until_duration),
    )
    flags = [f"--{name}={value}" for name, value in given if value]
    return flags + ["--spot"] * self.spot + ["--reserved"] * self.reserved


@dataclasses.dataclass(frozen=True)
class QueueState:
  """What became of a request.

  Attributes:
    name: such as WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED; "" if there is no request.
    detail: why it failed, if the cloud says.
    by_user: whether a user, not the cloud, had it suspended.
  """

  name: str
  detail: str = ""
  by_user: bool = False

  @property
  def ready(self) -> bool:
    """Whether the slices are there."""
    return self.name == "ACTIVE"

  @property
  def deleted(self) -> bool:
    """Whether a user took the slices away; the cloud suspends them instead."""
    return self.name in ("", "DELETING") or self.by_user

  @property
  def hopeful(self) -> bool:
    """Whether the slices are there, or may still come."""
    return self.name not in ("", "SUSPENDING", "SUSPENDED", "DELETING", "FAILED")


def taken_away(absent: Mapping[str, str]) -> bool:
  """Whether VMs were preempted or stopped: nothing brings them back."""
  return any(state in _TAKEN_AWAY for state in absent.values())


class Slices:
  """The slices of one queued resource."""

  def __init__(self, place: SlicePlace, shell: Shell, patience_s: float = PATIENCE_S):
    """Makes commands for the slices.

    Args:
      place: which slices.
      shell: runs gcloud.
      patience_s: how long gcloud may fail before waiting is given up.
    """
    self.place = place
    self._shell = shell
    self._patience_s = patience_s

  def create(self, request: SliceRequest) -> None:
    """Asks for the slices; returns once the request is in the queue."""
    place = self.place
    if place.num_slices == 1:
      nodes = [f"--node-id={place.name}"]
    else:
      nodes = [f"--node-count={place.num_slices}", f"--node-prefix={place.name}"]
    what = [*place.flags, *nodes, *request.flags()]
    self._shell.run([*_GROUP, "queued-resources", "create", place.name, *what])

  def delete(self) -> None:
    """Deletes the request and its slices; returns once they are gone."""
    what = [self.place.name, *self.place.flags, "--force", "--quiet"]
    self._shell.run([*_GROUP, "queued-resources", "delete", *what])

  def clear(self, poll_s: float) -> None:
    """Deletes the request, however long it is still busy with being suspended.

    Raises:
      CommandError: if it cannot be deleted for long.
    """
    begun = time.monotonic()
    while self.state().name:
      try:
        self.delete()
      except CommandError as error:
        if time.monotonic() - begun > self._patience_s:
          raise
        say(f"{error}; trying again in {poll_s:g} s")
        time.sleep(poll_s)

  def state(self) -> QueueState:
    """Returns the state of the request.

    Raises:
      CommandError: if gcloud cannot tell.
    """
    try:
      described = self._describe("queued-resources", self.place.name)
    except CommandError as error:
      if "NOT_FOUND" in error.output:
        return QueueState("")
      raise
    state = described.get("state", {})
    failure = state.get("failedData", {}).get("error", {})
    return QueueState(
      state.get("state", ""),
      failure.get("message", ""),
      by_user="SUSPEND" in state.get("state", "")
      and state.get("stateInitiator") == "USER",
    )

  def absent_nodes(self) -> dict[str, str]:
    """Returns the state of each slice whose VMs are not ready, or `GONE`.

    The request may be active all the same, some time longer or for good.

    Raises:
      CommandError: if gcloud cannot tell.
    """
    absent = {}
    for node in self.place.nodes:
      try:
        state = self._describe("tpu-vm", node).get("state", "")
      except CommandError as error:
        if "NOT_FOUND" not in error.output:
          raise
        state = GONE
      if state != "READY":
        absent[node] = state or "in no state"
    return absent

  def wait(self, poll_s: float) -> QueueState:
    """Waits until the slices are there, or will not be; tells of each change.

    Returns:
      A state that is ready, or no longer hopeful.

    Raises:
      CommandError: if gcloud cannot tell for long.
    """
    if self._shell.dry_run:
      self._shell.note(f"every {poll_s:g} s, until the state is ACTIVE:")
      self._describe("queued-resources", self.place.name)
      return QueueState("ACTIVE")
    begun, shown, failing_since = time.monotonic(), None, None
    while True:
      try:
        state = self.state()
      except CommandError as error:
        failing_since = failing_since or time.monotonic()
        if time.monotonic() - failing_since > self._patience_s:
          raise
        say(f"{error}; asking again in {poll_s:g} s")
        time.sleep(poll_s)
        continue
      failing_since = None
      if state.name != shown:
        waited = (time.monotonic() - begun) / 60
        say(f"{self.place.name}: {state.name or 'not there'} after {waited:.1f} min")
        shown = state.name
      if state.ready or not state.hopeful:
        return state
      time.sleep(poll_s)

  def ssh(self, script: str, worker: str = "all") -> None:
    """Runs a script on workers of every slice, its output shown.

    Raises:
      CommandError: if it fails on one.
    """
    self._shell.run(*(self._ssh(node, script, worker) for node in self.place.nodes))

  def ask(self, script: str) -> str:
    """Runs a script on all workers; returns what they printed.

    Raises:
      CommandError: if it fails on one.
    """
    commands = (self._ssh(node, script, "all") for node in self.place.nodes)
    return "\n".join(self._shell.outputs(*commands))

  def follow(self, command: str, worker: str) -> None:
    """Becomes a command on workers of the first slice, as for following its logs."""
    self._shell.replace(self._ssh(self.place.nodes[0], command, worker))

  def copy(self, paths: Sequence[str]) -> None:
    """Copies files into the run's folder of every worker."""
    flags = [*self.place.flags, "--worker=all", "--quiet"]
    self._shell.run(
      *(
        [*_GROUP, "tpu-vm", "scp", *paths, f"{node}:{worker_scripts.FOLDER}/", *flags]
        for node in self.place.nodes
      )
    )

  def _ssh(self, node: str, script: str, worker: str) -> list[str]:
    return [
      *(*_GROUP, "tpu-vm", "ssh", node, *self.place.flags),
      *(
        f"--worker={worker}",
        "--quiet",
        f"--command={worker_scripts.over_ssh(script)}",
      ),
    ]

  def _describe(self, kind: str, name: str) -> dict[str, Any]:
    [output] = self._shell.outputs(
      [*_GROUP, kind, "describe", name, *self.place.flags, "--format=json"]
    )
    return json.loads(output) if output.strip() else {}
