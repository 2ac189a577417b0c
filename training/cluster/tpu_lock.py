"""Names what keeps this process from the TPU before libtpu fails for it.

libtpu lets one process of a machine load it: that takes a lock on
`/tmp/libtpu_lockfile`, a file of its user's alone (mode 600). The kernel ends the lock
with the process, however that ends, so a file that a killed process left behind holds
nobody up. What does is a process that still lives, or a file of another user's. For the
first libtpu says to remove the file, which leaves two processes with one TPU; so we say
which process it is.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import time
from collections.abc import Mapping

from commentree import compat
from commentree.errors import HostLostError, UserError

PATH = pathlib.Path("/tmp/libtpu_lockfile")
_LOCKS = pathlib.Path("/proc/locks")

# A process of an earlier start may take so long to end.
_WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.5
_MAX_COMMAND_CHARS = 80

# With any of these libtpu takes no lock.
_UNLOCKED = (
  "ALLOW_MULTIPLE_LIBTPU_LOAD",
  "TPU_LOAD_LIBRARY",
  "TPU_CHIPS_PER_PROCESS_BOUNDS",
)


def check(environ: Mapping[str, str] | None = None) -> None:
  """Waits for the TPU of this machine, if it has one that this process is to use.

  Raises:
    HostLostError: if another process has it and does not end.
    UserError: if another user's file is in the way.
  """
  environ = os.environ if environ is None else environ
  platforms = (compat.jax_setting("jax_platforms") or "tpu").split(",")
  if not compat.is_tpu_machine() or "tpu" not in platforms:
    return
  if not any(environ.get(name) for name in _UNLOCKED):
    await_lock(PATH)


def await_lock(path: pathlib.Path) -> None:
  """Waits until no other process holds a file's lock; raises as `check` does."""
  end = time.monotonic() + _WAIT_SECONDS
  # Not opened: closing it would end a lock of this process's own.
  while holder := _holder(path):
    if time.monotonic() > end:
      raise HostLostError(
        f"the TPU is in use by process {holder} ({_command(holder)}), which holds the"
        f" lock on {path}: end it (`kill {holder}`), leave the file, and start again"
      )
    time.sleep(_LOOK_SECONDS)
  if path.exists() and not os.access(path, os.R_OK | os.W_OK):
    raise UserError(
      f"{path} belongs to {_owner(path)}, and libtpu needs it: if no process of theirs"
      f" uses the TPU (`sudo lsof {path} /dev/vfio/* /dev/accel*`), `sudo rm {path}`"
    )


def _holder(path: pathlib.Path) -> int | None:
  """The other process that holds a file's lock, if any is seen to."""
  try:
    status = path.stat()
    locks = _LOCKS.read_text()
  except OSError:
    return None
  device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
  for line in locks.splitlines():
    # "1: POSIX  ADVISORY  WRITE 27913 00:27:2 0 EOF"; with "->", one that waits for it.
    fields = line.split()
    if fields[1:2] == ["POSIX"] and fields[5:6] == [f"{device}:{status.st_ino}"]:
      process = int(fields[4])
      if process not in (0, os.getpid()):
        return process
  return None


def _command(process: int) -> str:
  try:
    words = pathlib.Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
  except OSError:
    return "of another user or container"
  text = b" ".join(words).decode(errors="replace").strip()
  return "".join(c if c.isprintable() else "?" for c in text)[:_MAX_COMMAND_CHARS]


def _owner(path: pathlib.Path) -> str:
  number = path.stat().st_uid
  try:
    return f"user {pwd.getpwuid(number).pw_name}"
  except KeyError:
    return f"user {number}"
