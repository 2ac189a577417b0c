"""Trackers get all that a run tells, and can neither stop it nor make it wait."""

from __future__ import annotations

import threading
import time

import pytest
from etils import epath

from commentree.errors import UserError
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training.config import TrainConfig
from commentree.training.trackers import background
from commentree.training.trackers import tracker as tracker_lib
from commentree.training.trackers.tracker import TrackedRun
from commentree.training.train import train


class Notes:
  """A tracker that keeps what it was given."""

  def __init__(self, run: TrackedRun):
    self.run, self.settings, self.scalars, self.ended = run, [], [], []
    self.threads = set()

  def log_settings(self, settings):
    self.threads.add(threading.current_thread().name)
    self.settings.append(settings)

  def log_scalars(self, step, scalars, condition=None):
    self.threads.add(threading.current_thread().name)
    self.scalars.append((step, scalars, condition))

  def finish(self, exit_code):
    self.ended.append(exit_code)


@pytest.fixture
def register(monkeypatch):
  """Registers a tracker called `notes`; returns those opened."""
  monkeypatch.setattr(tracker_lib, "_registered", {})
  opened = []

  def register(make=Notes):
    def open_tracker(run):
      opened.append(make(run))
      return opened[-1]

    tracker_lib.register("notes", open_tracker)
    return opened

  return register


def open_notes(make_config, tmp_path, lines):
  (tracker,) = background.open_trackers(
    make_config(trackers=("notes",)),
    TrackedRun(epath.Path(tmp_path), "trees"),
    {"TrainConfig.batch_size": 8},
    lines.append,
  )
  return tracker


def test_a_registered_tracker_gets_settings_scalars_and_the_end(
  register, make_config, model, console
):
  opened = register()
  config = make_config(trackers=("notes",), tracker_project="trees", eval_period=6)
  result = train(
    config, model, stub.Batches, {"held_out": stub.held_out()}, console=console
  )
  (notes,) = opened
  assert notes.run == TrackedRun(epath.Path(config.model_dir), "trees")
  (settings,) = notes.settings
  assert settings["TrainConfig.batch_size"] == 8
  assert settings["TrainConfig.train_steps"] == 6
  losses = {step: s["train/loss"] for step, s, _ in notes.scalars if "train/loss" in s}
  assert list(losses) == [2, 4, 6]
  assert losses[6] == pytest.approx(result["train"]["loss"])
  evaluated = {of for _, s, of in notes.scalars if "eval/held_out/loss" in s}
  assert {"true", "none"} <= evaluated
  assert notes.ended == [0]
  assert notes.threads == {"commentree-notes"}


def test_a_tracker_is_told_that_a_run_did_not_end_well(
  register, make_config, model, console
):
  opened = register()

  def no_batches(share):
    batches = stub.Batches(share)
    take, taken = batches.__next__, []

    class Ends(type(batches)):
      def __next__(self):
        taken.append(None)
        if len(taken) > 4:
          raise RuntimeError("out of batches")
        return take()

    batches.__class__ = Ends
    return batches

  with pytest.raises(RuntimeError):
    train(make_config(trackers=("notes",)), model, no_batches, console=console)
  assert opened[0].ended == [1]


@pytest.mark.parametrize("at", ["open", "log_settings", "log_scalars", "finish"])
def test_a_run_goes_on_without_a_tracker_that_fails_and_says_so_once(
  register, make_config, model, console, at
):
  def fail(*args, **kwargs):
    raise RuntimeError("no route to the server")

  def make(run):
    if at == "open":
      fail()
    notes = Notes(run)
    setattr(notes, at, fail)
    return notes

  register(make)
  result = train(make_config(trackers=("notes",)), model, stub.Batches, console=console)
  assert result["step"] == 6
  said = " ".join(printed(console).split())
  assert said.count("tracker 'notes'") == 1
  assert (
    "tracker 'notes' (RuntimeError: no route to the server): training continues" in said
  )


def hanging_until(ends):
  """Returns how to open a tracker whose first report takes 20 s, unless it ends."""

  def make(run):
    notes = Notes(run)
    notes.log_scalars = lambda *args: ends.wait(20)
    return notes

  return make


def test_a_tracker_that_hangs_delays_the_run_only_at_its_end(
  register, make_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(background, "_FINISH_SECONDS", 0.2)
  ends = threading.Event()
  register(hanging_until(ends))
  lines = []
  tracker = open_notes(make_config, tmp_path, lines)
  started = time.monotonic()
  for step in range(1000):
    tracker.log_scalars(step, {"loss": 1.0})
  tracker.finish(0)
  # The tracker would take 20 s for the first of them.
  assert time.monotonic() - started < 10
  ends.set()
  assert lines == [
    "tracker 'notes' was not done 0.2 s after the run: what it had not written is lost"
  ]


def test_a_tracker_that_falls_behind_for_hours_is_given_up(
  register, make_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(background, "_MOST_WAITING", 20)
  ends = threading.Event()
  register(hanging_until(ends))
  lines = []
  tracker = open_notes(make_config, tmp_path, lines)
  for step in range(100):
    tracker.log_scalars(step, {"loss": 1.0})
  ends.set()
  assert lines == [
    "tracker 'notes' (it is 20 reports behind): training continues without it"
  ]


def test_unknown_trackers_are_one_line(register):
  register()
  with pytest.raises(UserError, match=r"trackers has 'wandbb'.*did you mean wandb"):
    tracker_lib.check(("tensorboard", "wandbb"))
  tracker_lib.check(("tensorboard", "notes"))
  with pytest.raises(UserError, match=r"must name each tracker once"):
    TrainConfig("run", 1, 1, trackers=("wandb", "wandb"))


def test_what_a_tracker_needs_is_named(monkeypatch):
  monkeypatch.setattr(tracker_lib.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"needs wandb: pip install 'commentree\[wandb\]"):
    tracker_lib.check(("wandb",))


def test_the_names_that_trackers_give_runs_are_kept_in_the_folder(tmp_path):
  run = TrackedRun(epath.Path(tmp_path))
  assert tracker_lib.kept_id(run, "wandb") is None
  for name in ("one", "two"):
    tracker_lib.keep_id(run, "wandb", name)
    assert tracker_lib.kept_id(run, "wandb") == name
  assert tracker_lib.kept_id(run, "mlflow") is None
  # A folder may be somebody else's.
  (tmp_path / "trackers" / "wandb.txt").write_text("../../elsewhere\n")
  assert tracker_lib.kept_id(run, "wandb") is None
