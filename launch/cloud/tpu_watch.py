"""What `commentree launch tpu up` does next: pure functions over states.

The queue's state says whether the slices are there; the workers' say what became of
the run on them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from commentree.launch.cloud.queued_resources import QueueState, taken_away
from commentree.launch.cloud.worker_scripts import WorkerStatus
from commentree.launch.supervision import restart_policy


class Next(enum.Enum):
  """What to do with a run."""

  WAIT = "look again later"
  START = "start the run where it does not run"
  RECREATE = "ask for new slices, and resume there"
  END = "the run is over"


@dataclasses.dataclass(frozen=True)
class NextAction:
  """What to do, and why.

  Attributes:
    next: what to do.
    reason: in words.
    exit_code: of the run, if it is over.
  """

  next: Next
  reason: str
  exit_code: int = 0


class Absence:
  """For how long VMs are away whose request is active.

  A request stays ACTIVE for some time after its VMs were taken away, and for good if
  only they were deleted. VMs that are repaired or restarted come back; so only those
  that cannot are given up at once.

  Attributes:
    since: when they were first seen to be away; None if they are there.
    named: which they are, in words; empty if they are there.
  """

  def __init__(self, patience_s: float):
    """Begins with all there.

    Args:
      patience_s: how long they may be away.
    """
    self._patience_s = patience_s
    self.clear()

  def clear(self) -> None:
    """They are there."""
    self.since: float | None = None
    self.named = ""

  def judge(self, absent: Mapping[str, str], now: float) -> str:
    """Returns why to ask for new ones; empty if it is not time to.

    Args:
      absent: the state of each slice that is not ready.
      now: of a clock in seconds.
    """
    if not absent:
      self.clear()
      return ""
    if self.since is None:
      self.since = now
    self.named = ", ".join(f"{node} ({state})" for node, state in absent.items())
    if taken_away(absent):
      return f"preempted: {self.named}"
    if now - self.since > self._patience_s:
      return (
        f"away for {now - self.since:.0f} s though the request is ACTIVE: {self.named}"
      )
    return ""


def judge_queue(state: QueueState) -> NextAction | None:
  """Judges slices that were there before; None if they still are.

  What a user deletes stays deleted; what the cloud takes away is asked for anew.
  """
  if state.ready:
    return None
  if state.deleted:
    return NextAction(Next.END, "a user deleted the slices", restart_policy.PREEMPTED)
  if state.hopeful:
    return NextAction(Next.WAIT, f"the slices are {state.name}")
  return NextAction(Next.RECREATE, f"the slices are {state.name}")


def judge_workers(workers: Sequence[WorkerStatus]) -> NextAction:
  """Judges a run by what all its workers say.

  A worker that was preempted (143) without a `stop`, or that lost its supervisor, as
  after a reboot for maintenance or when that was killed, starts again. Where a
  supervisor gave up, the others will too: they are waited for.
  """
  if not workers:
    return NextAction(Next.WAIT, "no worker answers")
  stopped = [w for w in workers if w.state == "stopped"]
  if len(stopped) == len(workers):
    return NextAction(Next.END, "stopped", max(w.code or 0 for w in stopped))
  ended = {w.code or 0: w for w in workers if w.state == "ended"}
  if worker := ended.get(restart_policy.USER_ERROR):
    return NextAction(
      Next.END, f"{worker.host}: {worker.last_line}", restart_policy.USER_ERROR
    )
  absent = [w.host for w in workers if w.state in ("lost", "none") or _vanished(w)]
  if absent:
    return NextAction(Next.START, f"the run is gone from {', '.join(sorted(absent))}")
  if any(w.state == "running" for w in workers):
    return NextAction(Next.WAIT, "running")
  code = max(ended, default=0)
  if code == 0:
    return NextAction(Next.END, "done")
  worker = ended[code]
  return NextAction(
    Next.END, f"{worker.host} {restart_policy.describe(code)}: {worker.last_line}", code
  )


def _vanished(worker: WorkerStatus) -> bool:
  """Whether a supervisor ended by a signal that we did not send."""
  code = worker.code or 0
  return worker.state == "ended" and code > 128 and code != restart_policy.INTERRUPTED
