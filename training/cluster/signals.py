"""SIGTERM and SIGINT as a request to stop at the next step."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO_SECONDS = 5.0


class StopRequest:
  """While entered, remembers the first SIGTERM or SIGINT instead of dying of it.

  The same signal again takes its usual effect at once, unless it comes within
  `_ECHO_SECONDS`: a machine that shuts down tells the process, and so does the
  supervisor that it told. Outside the main thread, where Python allows no handlers,
  nothing is caught.
  """

  def __init__(self):
    self.signal: signal.Signals | None = None
    self._came: dict[int, float] = {}
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> StopRequest:
    if threading.current_thread() is threading.main_thread():
      self._previous = {s: signal.signal(s, self._remember) for s in _SIGNALS}
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def __bool__(self) -> bool:
    return self.signal is not None

  @property
  def number(self) -> int:
    """The signal's number, 0 if none came; 128 more is what a shell would report."""
    return 0 if self.signal is None else int(self.signal)

  def _remember(self, number: int, frame: FrameType | None) -> None:
    del frame
    now = time.monotonic()
    if now - self._came.setdefault(number, now) > _ECHO_SECONDS:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self.signal = signal.Signals(number)
