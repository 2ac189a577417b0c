"""A line now and then where a run says nothing, so that nobody takes it for dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SILENT_SECONDS = 10.0
_LONGEST_SECONDS = 300.0
_CHECKS_EACH = 20


class SignsOfLife:
  """Says what is under way after ten seconds of silence, then ever less often."""

  def __init__(
    self,
    say: Callable[[str], None],
    under_way: Callable[[], str],
    silent_seconds: float = _SILENT_SECONDS,
  ):
    """Starts a thread.

    Args:
      say: prints a line.
      under_way: what to say; called in the thread.
      silent_seconds: from a line to the first of ours; from there to the next it is
        twice as long, and so on, up to five minutes.
    """
    self._say = say
    self._under_way = under_way
    self._least = self._wait = silent_seconds
    self._heard = time.monotonic()
    self._over = threading.Event()
    threading.Thread(target=self._run, name="signs of life", daemon=True).start()

  def heard(self) -> None:
    """Another line was said."""
    self._heard = time.monotonic()
    self._wait = self._least

  def close(self) -> None:
    """Says nothing any more."""
    self._over.set()

  def _run(self) -> None:
    while not self._over.wait(self._least / _CHECKS_EACH):
      if time.monotonic() - self._heard >= self._wait:
        self._say(self._under_way())
        self._heard = time.monotonic()
        self._wait = min(2 * self._wait, _LONGEST_SECONDS)
