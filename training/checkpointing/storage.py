"""Folders that may lie in a bucket, and what to do when they refuse.

Local paths and `gs://`, `s3://` go through `etils.epath`. A folder in a bucket has no
rename and no lock, and its files are written whole.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import jax
from etils import epath

from commentree import compat, local_files
from commentree.errors import StorageError, UserError, is_disk_full
from commentree.paths import check_scheme
from commentree.training.checkpointing import s3
from commentree.training.cluster import hosts

T = TypeVar("T")
Say = Callable[[str], None]

_SHARED_SECONDS = 20.0
_PAUSES_SECONDS = (1.0, 4.0, 15.0, 60.0)
_LONGEST_REASON = 200
_GRACE_SECONDS = 5.0


class DamageError(Exception):
  """What was read is not what was written."""


# What says so among other errors, as against that it cannot be had now.
_DAMAGE = (
  DamageError,
  FileNotFoundError,
  NotADirectoryError,
  IsADirectoryError,
  EOFError,
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  IndexError,
  AssertionError,
)
# As TensorStore puts it, within a ValueError, and Google's libraries.
_STATUS = re.compile(
  "UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|PERMISSION_DENIED"
  "|UNAUTHENTICATED|ABORTED|CANCELLED"
)
_OS_CODE = re.compile(r"os_error_code='(\d+)'")
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_DETAILS = re.compile(r" \[(?:tensorstore_spec|source locations)=")
_CLOUD = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "tensorflow")


def print_line(line: str) -> None:
  """Tells the user a line, where nothing else does."""
  print(f"commentree: {line}", file=sys.stderr, flush=True)


def as_path(text: str | os.PathLike[str]) -> epath.Path:
  """Returns a path, absolute if it is local.

  Raises:
    UserError: if it is of a kind that cannot be used here.
  """
  text = os.fspath(text)
  scheme, separator, _ = text.partition("://")
  if not separator:
    return epath.Path(os.path.abspath(os.path.expanduser(text)))
  check_scheme(text)
  if importlib.util.find_spec("fsspec") is not None:
    import fsspec

    # Else what other hosts write is not seen.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
  if scheme == "s3":
    # TensorFlow's files, which epath takes where it can, know no s3.
    os.environ["EPATH_USE_TF"] = "false"
    s3.teach_orbax()
  tensorflow = os.environ.get("EPATH_USE_TF", "").lower() not in ("false", "no", "0")
  package = {"gs": "gcsfs", "s3": "s3fs"}[scheme]
  has_tensorflow = tensorflow and importlib.util.find_spec("tensorflow") is not None
  if not has_tensorflow and importlib.util.find_spec(package) is None:
    raise UserError(f"{text} needs {package}: pip install 'commentree[remote]'")
  return epath.Path(text)


def is_remote(path: os.PathLike[str]) -> bool:
  """Whether a path lies in a bucket."""
  return "://" in os.fspath(path)


def entries(folder: epath.Path) -> list[epath.Path]:
  """Returns what a folder holds, in order of names; nothing if it is not there.

  A bucket has no empty folders: there it comes to be with its first file.
  """
  return sorted(folder.iterdir()) if folder.is_dir() else []


def host_name() -> str:
  """Returns what to call this host: its index and its name."""
  return f"host {jax.process_index()} ({socket.gethostname()})"


def reason_here(error: BaseException) -> str:
  """Returns `reason`, with the host's name if there are several."""
  said = reason(error)
  return said if jax.process_count() == 1 else f"{host_name()}: {said}"


def reason(error: BaseException) -> str:
  """Returns an error's first line, with its kind where it does not tell by itself."""
  error = _innermost(error)
  code = _OS_CODE.search(str(error))
  if code and not isinstance(error, OSError):
    return os.strerror(int(code[1]))
  line = (str(error).strip().splitlines() or [""])[0]
  line = _DETAILS.split(line)[0][:_LONGEST_REASON]
  if isinstance(error, OSError) and error.strerror:
    return line.removeprefix(f"[Errno {error.errno}] ")
  if isinstance(error, DamageError):
    return line
  return f"{type(error).__name__}: {line}" if line else type(error).__name__


def refused(error: BaseException) -> bool:
  """Whether an error is the storage's, and may pass."""
  error = _innermost(error)
  if isinstance(error, ValueError):
    code = _OS_CODE.search(str(error))
    if code:
      return int(code[1]) not in _NO_SUCH_FILE
    return bool(_STATUS.search(str(error)))
  return (
    isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLOUD
  )


def damaged(error: BaseException) -> bool:
  """Whether an error in reading says that a file is not what was written."""
  error = _innermost(error)
  if isinstance(error, OSError):
    return isinstance(error, _DAMAGE)
  return isinstance(error, _DAMAGE) and not refused(error)


def _innermost(error: BaseException) -> BaseException:
  # Orbax wraps what TensorStore says in a plain Exception.
  while type(error) is Exception and error.__cause__ is not None:
    error = error.__cause__
  return error


def pause(failures: int) -> float:
  """Returns the seconds to wait after so many failures in a row."""
  return _PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS)) - 1]


def retried(
  what: str,
  act: Callable[[], T],
  attempts: int,
  say: Say,
  may_pass: Callable[[BaseException], bool] = refused,
) -> T:
  """Returns what `act` returns, trying again where the storage refuses.

  Args:
    what: what it does, as in "MODEL_DIR/run.json: not written".
    act: does it; may be called several times.
    attempts: most calls.
    say: tells the user a line.
    may_pass: which errors are worth another try; the others are raised.

  Raises:
    StorageError: if it was refused as often.
  """
  for attempt in range(1, attempts + 1):
    try:
      return act()
    except Exception as error:
      if not may_pass(error):
        raise
      if attempt == attempts:
        raise StorageError(
          f"{what} ({reason(error)}; tried {attempts} times): mend the storage and"
          " start again"
        ) from error
      say(f"{what} ({reason(error)}): trying again in {pause(attempt):g} s")
      time.sleep(pause(attempt))
  raise AssertionError("unreachable")


def write_text(file: epath.Path, text: str) -> None:
  """Writes a file whole or not at all; it is on disk on return."""
  write_bytes(file, text.encode())


def write_bytes(file: epath.Path, data: bytes) -> None:
  """As `write_text`."""
  if is_remote(file):
    file.write_bytes(data)
    return
  local_files.write_bytes(file, data)


def sync_folder(folder: epath.Path) -> None:
  """Makes what was renamed in a local folder outlast a power cut."""
  if not is_remote(folder):
    local_files.sync(folder)


def check_writable(model_dir: epath.Path, what: str = "MODEL_DIR") -> None:
  """Makes a folder, and tries whether files can be written there.

  Args:
    model_dir: the folder, as a rule a run's.
    what: what the user calls it.

  Raises:
    UserError: if not.
  """
  probe = model_dir / f".probe_{secrets.token_hex(4)}"
  try:
    model_dir.mkdir(parents=True, exist_ok=True)
    probe.write_text("")
    probe.unlink()
  except Exception as error:
    if not isinstance(error, OSError) and not refused(error):
      raise
    mend = "free space there" if is_disk_full(error) else "make it writable"
    raise UserError(
      f"{what} {model_dir} cannot be written ({reason(error)}): {mend}, or use"
      f" another {what}"
    ) from error


def check_shared(model_dir: epath.Path, what: str = "MODEL_DIR") -> None:
  """Makes sure that all hosts see one folder, by a file that host 0 writes.

  Every host calls it.

  Args:
    model_dir: the folder, as a rule a run's.
    what: what the user calls it.

  Raises:
    UserError: on every host, naming those that do not see the file; or if host 0
      cannot write it.
  """
  probe = model_dir / ".shared_by_all_hosts"

  def write() -> str:
    check_writable(model_dir, what)
    token = secrets.token_hex(8)
    write_text(probe, token)
    return token

  if jax.process_count() == 1:
    check_writable(model_dir, what)
    return
  token = hosts.run_on_host0("shared folder", write)
  seen = _sees(probe, token)
  said = hosts.allgather("shared folder seen", json.dumps([seen, host_name()]))
  if jax.process_index() == 0:
    probe.unlink(missing_ok=True)
  blind = [name for seen, name in map(json.loads, said) if not seen]
  if blind:
    raise UserError(
      f"{what} {model_dir} is not one folder for all hosts: {', '.join(blind)} did"
      f" not see within {_SHARED_SECONDS:g} s what host 0 wrote there: give gs://, s3://"
      " or a folder mounted on every host"
    )


def _sees(probe: epath.Path, token: str) -> bool:
  end = time.monotonic() + _SHARED_SECONDS
  while True:
    try:
      # Listing refreshes what network file systems remember of a folder.
      names = {entry.name for entry in entries(probe.parent)}
      if probe.name in names and probe.read_text() == token:
        return True
    except Exception as error:
      if not isinstance(error, OSError) and not refused(error):
        raise
    if time.monotonic() >= end:
      return False
    time.sleep(0.5)


def end_when_done(exit_code: int) -> None:
  """Lets the process end though threads hang in the storage.

  Python waits for threads that it cannot interrupt, for ever if a disk is dead. Once
  the main thread is done, they get a few seconds; then the process ends.

  Args:
    exit_code: what it ends with in that case.
  """
  done = threading.Event()
  compat.call_before_waiting_for_threads(done.set)

  def end() -> None:
    done.wait()
    time.sleep(_GRACE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)

  threading.Thread(target=end, name="commentree-end", daemon=True).start()
