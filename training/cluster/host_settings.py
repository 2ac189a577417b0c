"""How a process finds the other hosts of its run: plain data, without JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from commentree.errors import UserError

Mode = Literal["auto", "on", "off"]


@dataclasses.dataclass(frozen=True)
class HostSettings:
  """What the flags of a command say about the hosts of a run.

  Attributes:
    coordinator_address: `HOST:PORT` of host 0, the same on every host; None to take
      it, like the next two, from what started the process (TPU metadata, Kubernetes,
      Slurm, Open MPI).
    process_count: number of hosts.
    process_index: which of them this is, from 0.
    mode: `auto`: several hosts if flags or surroundings say so; `on`: an error if
      they do not; `off`: this process alone, also if they do.
    wait_seconds: how long to wait for the others.
  """

  coordinator_address: str | None = None
  process_count: int | None = None
  process_index: int | None = None
  mode: Mode = "auto"
  wait_seconds: float = 60.0

  def __post_init__(self):
    flags = {
      "--coordinator_address": self.coordinator_address,
      "--process_count": self.process_count,
      "--process_index": self.process_index,
    }
    missing = [name for name, value in flags.items() if value is None]
    if missing and len(missing) < len(flags):
      given = " ".join(f"{n}={v}" for n, v in flags.items() if v is not None)
      raise UserError(
        f"{given}: {' and '.join(missing)} is missing; give all three or none"
      )
    if self.coordinator_address is not None:
      split_address(self.coordinator_address)
    count, index = self.process_count, self.process_index
    if count is not None and count < 1:
      raise UserError(f"--process_count={count}: must be at least 1")
    if count is not None and index is not None and not 0 <= index < count:
      raise UserError(
        f"--process_index={index}: must be from 0 to {count - 1}, for"
        f" --process_count={count}"
      )
    if self.wait_seconds <= 0:
      raise UserError(f"--host_wait_seconds={self.wait_seconds:g}: must be above 0")
    if self.mode == "off" and not missing:
      raise UserError(
        "--distributed=off: means this process alone; leave it out, or leave out"
        " --coordinator_address, --process_count and --process_index"
      )


def split_address(address: str) -> tuple[str, int]:
  """Returns the host and the port of `HOST:PORT`.

  Raises:
    UserError: if it is not of that form.
  """
  host, colon, port = address.rpartition(":")
  host = host.removeprefix("[").removesuffix("]")
  if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(
      f"--coordinator_address={address}: must be HOST:PORT, as in 10.0.0.2:8476"
    )
  return host, int(port)
