"""Where the time of a run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

BEFORE = ("imports", "hosts", "data", "state")
"""Parts of a start that come once, besides compiling."""

PHASES = (*BEFORE, "compile", "input", "eval", "checkpoint")


class Clock:
  """Seconds since the start, by what they were spent on.

  What is none of `PHASES` is `step`: computing, and waiting for the device.

  Attributes:
    watch: receives what time is spent on from now on.
    now: what that is, and since when (`time.monotonic`).
  """

  def __init__(self):
    """Starts."""
    self.watch: Callable[[str], None] = lambda what: None
    self._start = time.monotonic()
    self.now = ("step", self._start)
    self._spent = dict.fromkeys(PHASES, 0.0)

  @contextlib.contextmanager
  def on(self, what: str) -> Iterator[None]:
    """Counts the time within as spent on one of `PHASES`."""
    started = time.monotonic()
    self.now = (what, started)
    self.watch(what)
    try:
      yield
    finally:
      self.watch("step")
      self.now = ("step", time.monotonic())
      self._spent[what] += self.now[1] - started

  def split(self) -> dict[str, float]:
    """Returns the seconds so far; they add up to the time since the start."""
    total = time.monotonic() - self._start
    return {**self._spent, "step": total - sum(self._spent.values())}
