"""Ends this process with one clear line where the run cannot go on.

A thread of every process tells the coordinator (see `coordinator`) twice a second where
the main thread is, and hears from it when another host is lost, failed or stands still.
The main thread is then stuck in a collective that never ends, or about to fail for a
reason that says little; so the thread prints the line and ends the process itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from commentree.errors import HostLostError, UserError
from commentree.training.cluster.coordination import host_log
from commentree.training.cluster.coordination.coordinator import TICK_SECONDS
from commentree.training.cluster.coordination.host_link import Closed, HostLink
from commentree.training.cluster.coordination.host_messages import (
  Agreed,
  AllDone,
  AllHeard,
  Beat,
  Done,
  End,
  Facts,
  Failed,
  FromCoordinator,
  FromHost,
)
from commentree.training.cluster.coordination.shutdown_notice import ShutdownNotice
from commentree.training.config import HealthConfig

_log = logging.getLogger("commentree")

# After another host failed: for this one to come to the same error by itself.
_OWN_ERROR_SECONDS = 1.0
# After an error here: for the word to arrive that another host is gone.
_VERDICT_SECONDS = 2.0
_MAX_MESSAGE_CHARS = 300


class Watchdog:
  """Watches over this process and, through the coordinator, over the others."""

  def __init__(
    self,
    health: HealthConfig,
    link: HostLink | None = None,
    *,
    index: int = 0,
    coordinator: str = "",
    leave: Callable[[], None] = lambda: None,
  ):
    """Does nothing before `start`.

    Args:
      health: limits.
      link: the connection to the coordinator; None for a process that is alone.
      index: which host this is.
      coordinator: what to call host 0 in messages.
      leave: called once all hosts have come to the end.
    """
    self._health = health
    self._link = link
    self._index = index
    self._coordinator = coordinator
    self._leave = leave
    self._at: tuple[int, str] = (0, "start")
    self._moved = False
    self._still_seconds = 0.0
    self._started = False
    self._failing = False
    self._stopped = threading.Event()
    self._answer = ""
    self._answered = threading.Event()
    self._all_heard = 0.0

  def start(self) -> None:
    """Starts the thread, once; from now on it may end the process."""
    if self._started:
      return
    self._started = True
    threading.Thread(target=self._run, name="watchdog", daemon=True).start()

  def stop(self) -> None:
    """Stops watching."""
    self._stopped.set()

  # ---- For the main thread ---------------------------------------------------------

  def at(self, step: int, what: str) -> None:
    """Says where the main thread is; costs nothing."""
    self._at = (step, what)
    self._moved = True

  def agree(self, facts: Mapping[str, Any], what: str) -> None:
    """Checks that all hosts say the same; all call it equally often.

    Args:
      facts: what must be equal, by name; survives JSON.
      what: what it is, for the message, such as "settings".

    Raises:
      UserError: on all hosts, naming those that differ and in what.
    """
    if self._link is None:
      return
    self._answered.clear()
    self._send(Facts(what, dict(facts)))
    self._answered.wait()
    if self._answer:
      raise UserError(self._answer)

  @contextlib.contextmanager
  def guard(self) -> Iterator[None]:
    """Around all that the hosts do together: they end together, also after an error.

    At the end each waits for the others to get there; for errors see
    `ends_on_error`. A process that is alone is only watched for standing still.
    """
    self.start()
    try:
      with self.ends_on_error():
        yield
    except SystemExit:
      self._end_together()  # preempted or interrupted, which all hosts are together
      raise
    else:
      self._end_together()
    finally:
      self.stop()

  @contextlib.contextmanager
  def ends_on_error(self) -> Iterator[None]:
    """Where there are other hosts, an error ends the process here and now.

    It prints what a command would and exits with its code. To leave in good order, as
    by closing a checkpoint or as JAX does, is to wait for hosts that may be gone. If
    the error comes of another host's end, that is what is reported; if not, the other
    hosts are told of it.
    """
    try:
      yield
    except SystemExit:
      raise
    except BaseException as error:
      if self._link is not None:
        self._fail(error)
      raise

  def _end_together(self) -> None:
    if self._link is None:
      return
    self.at(self._at[0], "end")
    self._send(Done())
    self._stopped.wait()
    self._leave()

  def _fail(self, error: BaseException) -> None:
    """Ends the process because of an error of the main thread's."""
    if not isinstance(error, UserError) or isinstance(error, HostLostError):
      # A collective fails, in ways of its own, if a host goes; so do saves.
      self._await_verdict()
    self._failing = True
    if isinstance(error, UserError):
      code, message, trace = error.exit_code, str(error), ""
    elif isinstance(error, KeyboardInterrupt):
      code, message, trace = 130, "interrupted", ""
    else:
      code, trace = 1, "".join(traceback.format_exception(error))
      message = " ".join("".join(traceback.format_exception_only(error)).split())
    # A defect here is no defect there: the others may start again.
    told = HostLostError.exit_code if code == 1 else code
    self._send(Beat(*self._at, 0))
    self._send(Failed(told, message[:_MAX_MESSAGE_CHARS]))
    # The coordinator, if it is in this process, has yet to pass that on.
    self._stopped.wait(_VERDICT_SECONDS)
    if trace:
      _log.error("%s", trace)
      print(trace, file=sys.stderr, end="")
      _exit(code)
    _end_process(code, message)

  def _await_verdict(self) -> None:
    """Returns if no other host is to blame; else the thread ends the process."""
    start = time.monotonic()
    longest = self._health.host_timeout_seconds + _VERDICT_SECONDS
    while (waited := time.monotonic() - start) < longest:
      if waited > _VERDICT_SECONDS and self._all_heard > start:
        return
      time.sleep(TICK_SECONDS / 2)

  def _send(self, message: FromHost) -> None:
    assert self._link is not None
    # A closed connection is noticed, and acted upon, by the thread that reads.
    with contextlib.suppress(Closed):
      self._link.send(message)

  # ---- The thread ------------------------------------------------------------------

  def _run(self) -> None:
    try:
      self._watch()
    except Exception as error:
      # A defect of ours: a process that is not watched may wait without end.
      line = " ".join("".join(traceback.format_exception_only(error)).split())
      _log.exception("the watchdog")
      _end_process(1, f"the watchdog failed: {line}", stacks=True)

  def _watch(self) -> None:
    before = time.monotonic()
    silent_seconds = 0.0
    while not self._stopped.is_set():
      host_log.dump_stacks_unless_called_again(self._health.host_timeout_seconds)
      heard = self._listen()
      now = time.monotonic()
      # A process that was stopped, as by Ctrl-Z, has not waited.
      passed, before = min(now - before, 2 * TICK_SECONDS), now
      silent_seconds = 0.0 if heard else silent_seconds + passed
      self._still_seconds = 0.0 if self._moved else self._still_seconds + passed
      self._moved = False
      if self._link is None:
        self._check_progress()
      elif silent_seconds > self._health.host_timeout_seconds:
        self._lose_coordinator(
          f"has not been heard of for {silent_seconds:.0f} s, its process is frozen or"
          " its machine gone"
        )

  def _listen(self) -> bool:
    """Waits a tick; returns whether the coordinator said something."""
    if self._link is None:
      self._stopped.wait(TICK_SECONDS)
      return False
    self._send(Beat(*self._at, self._still_seconds))
    end = time.monotonic() + TICK_SECONDS
    heard = False
    try:
      while (left := end - time.monotonic()) > 0 and not self._stopped.is_set():
        for message in self._link.receive(left):
          heard = True
          self._hear(message)
    except Closed:
      if not self._stopped.is_set():
        self._lose_coordinator("is gone: its process ended without a word")
    return heard

  def _hear(self, message: FromCoordinator) -> None:
    match message:
      case AllHeard():
        self._all_heard = time.monotonic() - message.silent_seconds
      case Agreed():
        self._answer = message.difference
        self._answered.set()
      case AllDone():
        self._stopped.set()
      case End():
        self._obey(ShutdownNotice.from_message(message))

  def _obey(self, verdict: ShutdownNotice) -> None:
    if verdict.exit_code != HostLostError.exit_code:
      # A mistake of the user's is often found by every host for itself.
      time.sleep(_OWN_ERROR_SECONDS)
    if self._failing:
      self._stopped.set()
      return
    _end_process(verdict.exit_code, verdict.text, stacks=True)

  def _lose_coordinator(self, how: str) -> None:
    if not self._failing:
      step, what = self._at
      _end_process(
        HostLostError.exit_code,
        f"{self._coordinator}, which coordinates, {how}; this is host {self._index}, at"
        f" step {step:,}, in {what}; start again on every host",
        stacks=True,
      )
    self._stopped.set()

  def _check_progress(self) -> None:
    """Ends a process that is alone and stands still."""
    step, what = self._at
    if self._still_seconds > self._health.allowance(what):
      _end_process(
        HostLostError.exit_code,
        f"no progress for {self._still_seconds:.0f} s, at step {step:,}, in {what}; the"
        " stacks of all threads are in the log; start again",
        stacks=True,
      )


def _end_process(code: int, line: str, *, stacks: bool = False) -> NoReturn:
  """Prints and logs the line and ends the process with all its threads."""
  _log.error("%s", line)
  if stacks:
    host_log.dump_stacks()
  print(f"commentree: {line}", file=sys.stderr)
  _exit(code)


def _exit(code: int) -> NoReturn:
  """Ends the process without `jax.distributed.shutdown()`, which waits for others."""
  _log.info("exit code %d", code)
  logging.shutdown()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)
