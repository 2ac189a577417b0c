"""What a supervisor does once hosts have ended: pure functions over exit codes.

Codes are those of `subprocess.Popen.returncode`: negative after a signal. A shell or a
container reports the same death as 128 + signal; both are read alike. See `errors` for
what the program's own codes mean.
"""

from __future__ import annotations

import dataclasses
import enum
import signal
from collections.abc import Sequence

USER_ERROR = 2
STORAGE_REFUSED = 74
HOST_LOST = 75
INTERRUPTED = 128 + signal.SIGINT
PREEMPTED = 128 + signal.SIGTERM

# What a shell reports for a command it may not run, or cannot find.
_NO_SUCH_COMMAND = (126, 127)

_MEANINGS = {
  1: "failed with a traceback (exit code 1)",
  USER_ERROR: "refused its settings (exit code 2)",
  STORAGE_REFUSED: "was refused by storage (exit code 74)",
  HOST_LOST: "lost another host (exit code 75)",
  INTERRUPTED: "was interrupted (exit code 130)",
  PREEMPTED: "was preempted (exit code 143)",
}


class Action(enum.Enum):
  """What to do with all hosts."""

  STOP = "stop"
  RESTART = "restart"


@dataclasses.dataclass(frozen=True)
class Exit:
  """How one host ended.

  Attributes:
    host: its number.
    code: as `subprocess.Popen.returncode`.
    ended_by_us: it was the supervisor that ended it, so that it tells nothing.
  """

  host: int
  code: int
  ended_by_us: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
  """What to do, and why.

  Attributes:
    action: stop, or start all hosts again.
    exit_code: the supervisor's own, if it ends here.
    cause: the exit that decided; None if all is well.
  """

  action: Action
  exit_code: int
  cause: Exit | None = None


def normal(code: int) -> int:
  """Returns a code as a shell reports it: 128 + signal for a death by signal."""
  return 128 - code if code < 0 else code


def describe(code: int) -> str:
  """Says how a host ended: "was killed by SIGKILL"."""
  number = normal(code)
  if number in _MEANINGS and code >= 0:
    return _MEANINGS[number]
  if number in _NO_SUCH_COMMAND:
    return f"could not be started (exit code {number})"
  try:
    return f"was killed by {signal.Signals(number - 128).name}"
  except ValueError:
    return f"ended with exit code {code}"


def first_cause(exits: Sequence[Exit]) -> Exit | None:
  """Returns the exit that brought the others down; None if none ended badly.

  Exits come in the order seen. Several may be seen at once: a host that says that
  another was lost (75) or that all were preempted (143) is then the less likely cause.
  """

  def likelihood(numbered: tuple[int, Exit]) -> tuple[bool, bool, int]:
    order, exit = numbered
    return exit.ended_by_us, normal(exit.code) == HOST_LOST, order

  bad = [(i, e) for i, e in enumerate(exits) if e.code != 0]
  return min(bad, key=likelihood)[1] if bad else None


def decide(exits: Sequence[Exit], stop_signal: int | None = None) -> Decision:
  """Decides what follows once every host has ended.

  Args:
    exits: one for each host, in the order in which they ended.
    stop_signal: the signal by which the user told the supervisor to stop, if any.

  Returns:
    Stop after success, a user's mistake, Ctrl-C or the user's own signal; else
    restart: a crash, a death by signal, a lost host, refused storage, a preemption.
  """
  cause = first_cause(exits)
  if cause is None:
    return Decision(Action.STOP, 0)
  for exit in sorted(exits, key=lambda exit: exit.host):
    if exit.code == USER_ERROR:
      return Decision(Action.STOP, USER_ERROR, exit)
    if exit.code in _NO_SUCH_COMMAND:
      return Decision(Action.STOP, exit.code, exit)
  if stop_signal is not None:
    saved = 128 + stop_signal
    unsaved = [
      e for e in exits if not e.ended_by_us and normal(e.code) not in (0, saved)
    ]
    cause = first_cause(unsaved)
    return Decision(Action.STOP, normal(cause.code) if cause else saved, cause)
  for exit in exits:
    if normal(exit.code) == INTERRUPTED and not exit.ended_by_us:
      return Decision(Action.STOP, INTERRUPTED, exit)
  # A supervisor that gives up says so with a code that it was not killed with itself.
  own = (
    1 if normal(cause.code) > 128 and normal(cause.code) != PREEMPTED else cause.code
  )
  return Decision(Action.RESTART, normal(own), cause)


@dataclasses.dataclass
class RestartBudget:
  """Restarts left: those without progress count, and progress forgives them all.

  Attributes:
    max_restarts: restarts allowed in a row without progress.
    first_delay_s, longest_delay_s: seconds to wait before the first restart in a row,
      doubling up to the longest.
    used: restarts in a row so far.
  """

  max_restarts: int
  first_delay_s: float = 1.0
  longest_delay_s: float = 60.0
  used: int = 0

  def next_delay(self, *, progressed: bool) -> float | None:
    """Takes a restart; returns seconds to wait before it, or None: none is left."""
    if progressed:
      self.used = 0
    if self.used >= self.max_restarts:
      return None
    self.used += 1
    return min(self.first_delay_s * 2 ** (self.used - 1), self.longest_delay_s)
