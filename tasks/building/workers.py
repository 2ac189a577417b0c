"""Processes that share the work and the memory, and tell how far they are."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from commentree.errors import UserError

# Measured on x86-64 Linux: what the command's own process takes; and a worker's, with
# its libraries, before it is given anything to do.
_MAIN_MB = 100
_WORKER_MB = 110
_LEAST_SHARE_MB = 140  # of which DuckDB gets 84; with 54 it was seen to give up
WINDOW_SHARE = 0.5  # of a reader's share, for what unpacking looks back at
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SECONDS_BETWEEN_SAMPLES = 0.25
_TASKS_AHEAD = 2  # that are handed over before a process is free for them


@dataclasses.dataclass(frozen=True)
class Division:
  """How memory is divided.

  Attributes:
    memory_mb: of all processes.
    workers: processes.
  """

  memory_mb: int
  workers: int

  @property
  def share_mb(self) -> int:
    """What each may take for its work, beyond what it takes idle."""
    return self._share_mb(self.workers)

  def for_windows(self, window_bytes: int) -> tuple[int, int]:
    """Divides memory among readers of files, which hold a window each.

    Args:
      window_bytes: the largest.

    Returns:
      How many may be at work at once, and the share in MB of each.

    Raises:
      UserError: if the memory is too little for one.
    """
    window_mb = -(-window_bytes // 2**20)
    for number in range(self.workers, 0, -1):
      share = self._share_mb(number)
      if window_mb <= max(share * WINDOW_SHARE, _LEAST_SHARE_MB / 2):
        return number, share
    needed = math.ceil(window_mb / WINDOW_SHARE) + _MAIN_MB + _WORKER_MB
    raise UserError(
      f"--memory={self.memory_mb}MB: is too little to unpack the files, which takes"
      f" {window_mb:,} MB for one of them; give at least {needed}MB, or pack them again"
      " with a smaller window (zstd --long=27)"
    )

  def _share_mb(self, workers: int) -> int:
    return (self.memory_mb - _MAIN_MB) // workers - _WORKER_MB


def divide(memory_mb: int, workers: int) -> Division:
  """Divides memory among as many of the workers as it is enough for.

  Raises:
    UserError: if it is not enough for one.
  """
  least = _MAIN_MB + _WORKER_MB + _LEAST_SHARE_MB
  if memory_mb < least:
    raise UserError(f"--memory={memory_mb}MB: is too little; give at least {least}MB")
  possible = (memory_mb - _MAIN_MB) // (_WORKER_MB + _LEAST_SHARE_MB)
  return Division(memory_mb, max(1, min(workers, possible)))


class Workers:
  """A pool of processes; a context.

  Attributes:
    peak_bytes: the most that this process and the workers held at once, in samples;
      pages that they share count for each. 0 where the system does not tell.
  """

  def __init__(self, number: int, on_report: Callable[[int, int], None]):
    """Starts nothing yet.

    Args:
      number: of processes.
      on_report: called, in a thread of its own, with what workers report.
    """
    # Started afresh: they hold nothing of this process, and no thread or lock of it.
    context = multiprocessing.get_context("spawn")
    self._number = number
    self._reports = context.SimpleQueue()
    self._on_report = on_report
    self._pool = concurrent.futures.ProcessPoolExecutor(
      number, context, _start_worker, (self._reports,)
    )
    self._over = threading.Event()
    self._threads = [
      threading.Thread(target=self._pass_on_reports, daemon=True),
      threading.Thread(target=self._sample_memory, daemon=True),
    ]
    self.peak_bytes = 0

  def __enter__(self) -> Workers:
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    if kind is not None:
      for process in self._processes():
        process.kill()
    self._pool.shutdown(cancel_futures=True)
    self._over.set()
    if kind is None:  # a process that was killed may have held the queue's lock
      self._reports.put(None)
      for thread in self._threads:
        thread.join()

  def run(
    self,
    work: Callable[..., None],
    tasks: Iterable[tuple[Any, ...]],
    at_once: int | None = None,
  ) -> None:
    """Has `work(*task, report)` done for each task, in any order.

    Args:
      work: what to do.
      tasks: its arguments.
      at_once: so many tasks are at work at most; None for one in each process.

    Raises:
      UserError: if a worker was killed; and what `work` raises.
    """
    waiting = iter(tasks)
    at_work: set[concurrent.futures.Future[None]] = set()
    limit = at_once or self._number + _TASKS_AHEAD
    try:
      while True:
        with _without_interrupts():  # processes start as tasks come
          at_work.update(
            self._pool.submit(_do, work, task)
            for task in itertools.islice(waiting, limit - len(at_work))
          )
        if not at_work:
          return
        done, at_work = concurrent.futures.wait(
          at_work, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          future.result()
    except BrokenProcessPool as error:
      raise UserError(
        "a worker process was killed, as the system does when memory runs out; give"
        " less to --memory or --workers and start again: finished work is kept"
      ) from error

  def _processes(self) -> list[Any]:
    return list((self._pool._processes or {}).values())

  def _pass_on_reports(self) -> None:
    while (report := self._reports.get()) is not None:
      self._on_report(*report)

  def _sample_memory(self) -> None:
    while not self._over.wait(_SECONDS_BETWEEN_SAMPLES):
      pids = [os.getpid(), *(process.pid for process in self._processes())]
      self.peak_bytes = max(self.peak_bytes, sum(map(_resident_bytes, pids)))


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
  """Puts Ctrl-C off; processes started meanwhile never get it, not even half begun.

  The command's own process sees to it, and ends them.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _resident_bytes(pid: int) -> int:
  with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
    return int(file.read().split()[1]) * _PAGE_BYTES
  return 0


_reports: Any = None  # of a worker: where its reports go


def _start_worker(reports: Any) -> None:
  global _reports
  _reports = reports
  threading.Thread(target=_end_with_parent, daemon=True).start()
  import pyarrow as pa

  # Gives memory back to the system, unlike the pools that Arrow takes by itself.
  pa.set_memory_pool(pa.system_memory_pool())


def _end_with_parent() -> None:
  """Ends this process when the command's ends, however that ends."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  connection.wait([parent.sentinel])
  os._exit(1)


def _do(work: Callable[..., None], task: tuple[Any, ...]) -> None:
  work(*task, report=lambda rows, size: _reports.put((rows, size)))
