"""MODEL_DIR for one run alone, so that two do not write into each other's files.

A local folder is locked by the system, and free once the process is gone. Where there
is no such lock, as in a bucket, a run leaves a file there and renews it; a file that is
not renewed belongs to a run that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from etils import epath

from commentree import local_files
from commentree.errors import UserError
from commentree.training.checkpointing import storage

_RENEW_SECONDS = 10.0
_STALE_SECONDS = 35.0


@contextlib.contextmanager
def exclusive(model_dir: epath.Path) -> Iterator[None]:
  """Holds MODEL_DIR for this process alone, on host 0.

  Raises:
    UserError: if another process holds it.
  """
  if storage.is_remote(model_dir):
    with _lease(model_dir):
      yield
    return
  model_dir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      path = model_dir / ".lock"
      is_locked = stack.enter_context(local_files.lock(path, wait=False))
    except BlockingIOError:
      raise _taken(model_dir) from None
    if not is_locked:
      stack.enter_context(_lease(model_dir))
    yield


@contextlib.contextmanager
def _lease(model_dir: epath.Path) -> Iterator[None]:
  file = model_dir / ".lease.json"
  _wait_until_free(model_dir, file)
  mine = {"holder": secrets.token_hex(8), "host": socket.gethostname()}
  done = threading.Event()

  def renew() -> None:
    count = 0
    while not done.is_set():
      count += 1
      # A renewal that fails is made up for by the next.
      with contextlib.suppress(Exception):
        file.write_text(json.dumps({**mine, "pid": os.getpid(), "renewed": count}))
      done.wait(_RENEW_SECONDS)

  file.write_text(json.dumps(mine))
  if _holder(file) != mine["holder"]:
    raise _taken(model_dir)
  thread = threading.Thread(target=renew, name="commentree-lease", daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join(_RENEW_SECONDS)
    with contextlib.suppress(Exception):
      file.unlink()


def _wait_until_free(model_dir: epath.Path, file: epath.Path) -> None:
  """Returns once the file has not changed for as long as only a dead run leaves it."""
  first = _content(file)
  end = time.monotonic() + _STALE_SECONDS
  while first is not None and time.monotonic() < end:
    time.sleep(min(1.0, _STALE_SECONDS / 10))
    now = _content(file)
    if now is None:
      return
    if now != first:
      raise _taken(model_dir)


def _content(file: epath.Path) -> str | None:
  return file.read_text() if file.exists() else None


def _holder(file: epath.Path) -> str | None:
  return json.loads(_content(file) or "{}").get("holder")


def _taken(model_dir: epath.Path) -> UserError:
  return UserError(
    f"another process is training in {model_dir}: stop it, or use another MODEL_DIR"
  )
