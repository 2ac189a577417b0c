"""Where the time of a run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

ASIDE = ("compile", "input", "eval", "checkpoint")


class Clock:
  """Seconds since the start, by what they were spent on.

  What is neither of `ASIDE` is `step`: computing, and waiting for the device.
  """

  def __init__(self, watch: Callable[[str], None] = lambda what: None):
    """Starts.

    Args:
      watch: is told what time is spent on from now on.
    """
    self._watch = watch
    self._start = time.monotonic()
    self._spent = dict.fromkeys(ASIDE, 0.0)

  @contextlib.contextmanager
  def on(self, what: str) -> Iterator[None]:
    """Counts the time within as spent on one of `ASIDE`."""
    started = time.monotonic()
    self._watch(what)
    try:
      yield
    finally:
      self._watch("step")
      self._spent[what] += time.monotonic() - started

  def split(self) -> dict[str, float]:
    """Returns the seconds so far; they add up to the time since the start."""
    total = time.monotonic() - self._start
    return {**self._spent, "step": total - sum(self._spent.values())}
