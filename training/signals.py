"""SIGTERM and SIGINT as a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
  """While entered, remembers the first SIGTERM or SIGINT instead of dying of it.

  The same signal again takes its usual effect at once. Outside the main thread,
  where Python allows no handlers, nothing is caught.
  """

  def __init__(self):
    self.signal: signal.Signals | None = None
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
    self.signal = signal.Signals(number)
    signal.signal(number, signal.SIG_DFL)
