"""Trackers that neither stop a run nor make it wait, whatever becomes of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from commentree.training.checkpointing import storage
from commentree.training.config import TrainConfig
from commentree.training.trackers import tracker as tracker_lib
from commentree.training.trackers.tracker import Open, TrackedRun, Tracker

# Calls that a tracker may be behind: hours of training.
_MOST_WAITING = 10_000
_FINISH_SECONDS = 60.0

Act = Callable[[Tracker], None]


class BackgroundTracker:
  """A tracker in a thread of its own; given up, with one line, once it fails."""

  def __init__(
    self,
    name: str,
    open_tracker: Open,
    run: TrackedRun,
    say: Callable[[str], None] = storage.print_line,
  ):
    """Begins to open the tracker.

    Args:
      name: what the user calls it.
      open_tracker: opens it.
      run: what it is told of the run.
      say: tells the user a line.
    """
    self._name = name
    self._say = say
    self._acts: queue.Queue[Act | None] = queue.Queue(_MOST_WAITING)
    self._given_up = False
    self._thread = threading.Thread(
      target=self._work,
      args=(open_tracker, run),
      name=f"commentree-{name}",
      daemon=True,
    )
    self._thread.start()

  def log_settings(self, settings: Mapping[str, Any]) -> None:
    """Takes the run's settings."""
    settings = dict(settings)
    self._put(lambda tracker: tracker.log_settings(settings))

  def log_scalars(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    """Takes the scalars of a step."""
    scalars = dict(scalars)
    self._put(lambda tracker: tracker.log_scalars(step, scalars, condition))

  def finish(self, exit_code: int) -> None:
    """Lets the tracker write what is left, for a minute at most."""
    self._put(lambda tracker: tracker.finish(exit_code))
    self._put(None)
    self._thread.join(_FINISH_SECONDS)
    if self._thread.is_alive() and not self._given_up:
      self._given_up = True
      self._say(
        f"tracker {self._name!r} was not done {_FINISH_SECONDS:g} s after the run:"
        " what it had not written is lost"
      )

  def _put(self, act: Act | None) -> None:
    if self._given_up:
      return
    try:
      self._acts.put_nowait(act)
    except queue.Full:
      self._give_up(f"it is {_MOST_WAITING:,} reports behind")

  def _work(self, open_tracker: Open, run: TrackedRun) -> None:
    try:
      tracker = open_tracker(run)
      while (act := self._acts.get()) is not None:
        act(tracker)
    except (Exception, SystemExit) as error:
      self._give_up(storage.reason(error))

  def _give_up(self, reason: str) -> None:
    # At the end of a run that has already been told, whatever comes later is no news.
    if not self._given_up:
      self._given_up = True
      self._say(f"tracker {self._name!r} ({reason}): training continues without it")


def open_trackers(
  config: TrainConfig,
  run: TrackedRun,
  settings: Mapping[str, Any],
  say: Callable[[str], None] = storage.print_line,
) -> list[BackgroundTracker]:
  """Opens the trackers that the configuration names, and tells them the settings.

  Args:
    config: says which.
    run: what they are told of the run.
    settings: the run's, by 'CLASS.FIELD'.
    say: tells the user a line.

  Raises:
    UserError: if there is no such tracker, or what it needs is not installed.
  """
  tracker_lib.check(config.trackers)
  trackers = [
    BackgroundTracker(name, tracker_lib.find(name), run, say)
    for name in config.trackers
  ]
  for each in trackers:
    each.log_settings(settings)
  return trackers
