"""What Orbax prints about failed reads and writes besides raising them."""

from __future__ import annotations

import logging
import sys

from commentree.compat import ORBAX_FUTURES_FILE

_UNRAISED = ("Event loop is closed", "Encountered error while reading array index")

_is_silent = False


def silence() -> None:
  """Keeps it off stderr; every error is still raised, and said in one line.

  When one of an array's writes fails, Orbax logs a traceback before it hands the error
  on, and leaves the array's other writes to end without anyone who waits for them, of
  which Python complains. Further calls do nothing.
  """
  global _is_silent
  if _is_silent:
    return
  _is_silent = True
  logging.getLogger("absl").addFilter(
    lambda record: not record.pathname.endswith(ORBAX_FUTURES_FILE)
  )
  hook = sys.unraisablehook

  def without_ours(unraisable: sys.UnraisableHookArgs) -> None:
    if not str(unraisable.exc_value).startswith(_UNRAISED):
      hook(unraisable)

  sys.unraisablehook = without_ours
