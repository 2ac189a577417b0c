"""One checkpoint on its way to the disk, written by all hosts and committed by one.

Each host writes its own part in a thread. Host 0 makes the folder before, and once
every host has told it that its part is there, gives it its final name: by a rename, or
in a bucket, which has none, by a file that says so, as Orbax does. If any host fails,
host 0 removes what was written, and all hosts know.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from commentree.errors import HostLostError
from commentree.training import runtime
from commentree.training.checkpointing import checksums, storage
from commentree.training.cluster import hosts
from commentree.training.state import PyTree

PREFIX = "checkpoint"
COMMITTED = "commit_success.txt"
_UNREADABLE = "unreadable.txt"

_FINISHED = re.compile(rf"{PREFIX}_(\d+)")
_UNFINISHED_SUFFIX = ".orbax-checkpoint-tmp"
_UNFINISHED = re.compile(rf"{PREFIX}_(\d+){re.escape(_UNFINISHED_SUFFIX)}.*")

# How often what a failed save wrote is removed, if it comes again.
_DISCARDS = 5
_SECONDS_BETWEEN_DISCARDS = 0.1
# What host 0 allows the others beyond their own time, to say why they failed.
_GRACE_SECONDS = 5.0


def path_of(model_dir: epath.Path, step: int) -> epath.Path:
  """Returns the folder of a checkpoint."""
  return model_dir / f"{PREFIX}_{step}"


def steps_in(model_dir: epath.Path) -> list[int]:
  """Returns the steps of the finished checkpoints in a folder, in order."""
  matches = (
    _FINISHED.fullmatch(e.name) for e in storage.entries(epath.Path(model_dir))
  )
  steps = sorted(int(match[1]) for match in matches if match)
  if storage.is_remote(model_dir):
    steps = [s for s in steps if (path_of(model_dir, s) / COMMITTED).exists()]
  return steps


def remove_unfinished(model_dir: epath.Path) -> list[int]:
  """Removes what interrupted saves and deletions left; returns their steps."""
  finished = set(steps_in(model_dir))
  removed = []
  for entry in storage.entries(model_dir):
    match = _UNFINISHED.fullmatch(entry.name)
    if not match and storage.is_remote(model_dir):
      match = _FINISHED.fullmatch(entry.name)
      if match and (int(match[1]) in finished or (entry / _UNREADABLE).exists()):
        continue
    if match:
      entry.rmtree()
      if int(match[1]) not in finished:
        removed.append(int(match[1]))
  return sorted(set(removed))


def remove(model_dir: epath.Path, step: int) -> None:
  """Removes a checkpoint, so that what is left at any moment is not taken for one."""
  path = path_of(model_dir, step)
  if storage.is_remote(path):
    (path / COMMITTED).unlink(missing_ok=True)
    path.rmtree()
  else:
    going = path.with_name(f"{path.name}{_UNFINISHED_SUFFIX}-old")
    path.rename(going)
    going.rmtree()


def put_aside(model_dir: epath.Path, step: int) -> str:
  """Lets a damaged checkpoint count no longer; returns what became of it."""
  path = path_of(model_dir, step)
  if storage.is_remote(path):
    (path / _UNREADABLE).write_text("")
    (path / COMMITTED).unlink(missing_ok=True)
    return f"no longer used, and marked by {_UNREADABLE}"
  name, number = f"unreadable_{path.name}", 1
  while (model_dir / name).exists():
    number += 1
    name = f"unreadable_{path.name}_{number}"
  path.rename(model_dir / name)
  return f"now {name}"


class Writing:
  """A checkpoint being written; begins at once.

  Attributes:
    step: its step.
    began: when, by `time.monotonic`.
    ended: when, if it has.
    errors: what went wrong, by host; empty unless it ended without success.
    hangs: whether a host was still writing when time was up.
    notes: what to say besides.
    failure: a defect of ours that this host met, to be raised.
  """

  def __init__(
    self,
    handler: ocp.StandardCheckpointHandler,
    model_dir: epath.Path,
    step: int,
    attempt: int,
    tree: PyTree,
    texts: Mapping[str, str],
    obsolete: Sequence[int],
    seconds: float,
  ):
    """Begins; `tree` must stay as it is until it is `copied`.

    Args:
      handler: writes arrays.
      model_dir: the run's folder.
      step: its step.
      attempt: which try it is; each has a folder of its own.
      tree: what to save as the item `state`.
      texts: files to write besides, by path within the checkpoint; host 0's count.
      obsolete: steps whose checkpoints to remove once this one is there.
      seconds: how long it may take.
    """
    self.step = step
    self.began = time.monotonic()
    self.ended: float | None = None
    self.errors: list[str] = []
    self.hangs = False
    self.notes: list[str] = []
    self.failure: BaseException | None = None
    self._handler = handler
    self._final = path_of(model_dir, step)
    self._folder = self._final
    if not storage.is_remote(model_dir):
      self._folder = self._final.with_name(
        f"{self._final.name}{_UNFINISHED_SUFFIX}-{attempt}"
      )
    self._model_dir = model_dir
    self._obsolete = obsolete
    self._texts = texts
    self._sums: checksums.Sums = {}
    self._end = self.began + seconds
    self._copied = threading.Event()
    # A daemon, and so are the threads that it starts: none keeps the process from
    # ending if the storage hangs.
    self._thread = threading.Thread(
      target=self._run, args=(tree,), name=f"commentree-save-{step}", daemon=True
    )
    self._thread.start()

  def copied(self) -> bool:
    """Returns once the tree is copied off the devices, or False if time is up."""
    return self._copied.wait(self._left())

  def join(self) -> bool:
    """Waits until it ends or its time is up; returns whether it ended."""
    self._thread.join(max(0.0, self._end + 2 * _GRACE_SECONDS - time.monotonic()))
    return not self._thread.is_alive()

  @property
  def overdue(self) -> bool:
    """Whether it should have ended by now."""
    return self.ended is None and time.monotonic() > self._end + 2 * _GRACE_SECONDS

  def _run(self, tree: PyTree) -> None:
    try:
      self.errors = self._write_with_others(tree)
    except HostLostError as error:
      self.errors, self.hangs = [str(error)], True
    except BaseException as error:  # raised where the outcome is asked for
      self.failure = error
    finally:
      self._copied.set()
      self.ended = time.monotonic()

  def _write_with_others(self, tree: PyTree) -> list[str]:
    name = f"checkpoint {self.step}"
    is_chief = runtime.is_chief()
    error = self._attempt(self._make_folder) if is_chief else None
    error = json.loads(
      hosts.broadcast(f"{name} folder", json.dumps(error), self._left())
    )
    if error is not None:
      return [error]
    error = self._attempt(lambda: self._write_part(tree))
    # Late by a little, a host can still say itself what it was waiting for.
    left = self._left() + _GRACE_SECONDS
    hangs = error is not None and self._left() == 0
    part = json.dumps({"error": error, "hangs": hangs, "sums": self._sums})
    parts = hosts.gather_to_host0(f"{name} part", part, left)
    outcome = None
    if parts is not None:
      outcome = json.dumps(self._conclude([json.loads(part) for part in parts]))
    told = hosts.broadcast(f"{name} outcome", outcome, left + _GRACE_SECONDS)
    errors, self.hangs = json.loads(told)
    if is_chief and not errors:
      self._remove_obsolete()
    return errors

  def _conclude(self, parts: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """Commits if every part is there; returns the errors, and whether a host hangs."""
    errors = [part["error"] for part in parts if part["error"] is not None]
    if any(part["hangs"] for part in parts):
      # Removing what is still being written would hang, too.
      return errors, True
    self._sums = {file: sums for part in parts for file, sums in part["sums"].items()}
    if not errors:
      error = self._attempt(self._commit)
      errors = [] if error is None else [error]
    if errors:
      errors += self._discard()
    return errors, False

  def _attempt(self, act: Callable[[], None]) -> str | None:
    try:
      act()
    except Exception as error:
      if not storage.refused(error):
        self.failure = error
      return storage.reason_here(error)
    return None

  def _left(self) -> float:
    return max(0.0, self._end - time.monotonic())

  def _make_folder(self) -> None:
    if self._folder.exists():
      self._folder.rmtree()
    (self._folder / "state").mkdir(parents=True)

  def _write_part(self, tree: PyTree) -> None:
    args = ocp.args.StandardSave(tree)
    loop = asyncio.new_event_loop()
    try:
      futures = loop.run_until_complete(
        self._handler.async_save(self._folder / "state", args=args)
      )
    finally:
      loop.close()
    self._copied.set()
    for future in futures or []:
      future.result(timeout=self._left())
    self._sums = checksums.of_part(self._folder)

  def _commit(self) -> None:
    self._handler.finalize(self._folder / "state")
    for file, text in self._texts.items():
      path = self._folder / file
      path.parent.mkdir(parents=True, exist_ok=True)
      storage.write_text(path, text)
    checksums.write(self._folder, self._sums)
    if storage.is_remote(self._folder):
      (self._folder / COMMITTED).write_text(f"step {self.step}\n")
    else:
      self._folder.rename(self._final)
      storage.sync_folder(self._final.parent)

  def _remove_obsolete(self) -> None:
    for step in self._obsolete:
      error = self._attempt(functools.partial(remove, self._model_dir, step))
      if error is not None:
        self.notes.append(f"checkpoint {step} is not needed, but stays ({error})")

  def _discard(self) -> list[str]:
    # Of several arrays, Orbax tells the first failure while others are still being
    # written: TensorStore makes their folders anew, or fills those that are being
    # removed.
    left = ""
    for _ in range(_DISCARDS):
      try:
        self._folder.rmtree(missing_ok=True)
        time.sleep(_SECONDS_BETWEEN_DISCARDS)
        if not self._folder.exists():
          return []
        left = "it is still being written"
      except Exception as error:
        left = storage.reason(error)
        time.sleep(_SECONDS_BETWEEN_DISCARDS)
    return [f"{self._folder} is left, not removed: {left}"]
