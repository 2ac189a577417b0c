"""A trace holds the steps that were asked for, and no trouble with it stops a run."""

from __future__ import annotations

import pathlib

import jax
import pytest

from commentree.errors import UserError
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training.checkpointing import storage
from commentree.training.config import TrainConfig
from commentree.training.reports import step_profile
from commentree.training.train import train


def steps_in(folder):
  """Returns the steps that a folder's one trace has marks of."""
  (file,) = pathlib.Path(folder).rglob("plugins/profile/*/*.xplane.pb")
  found = set()
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      for event in line.events:
        found |= {value for name, value in event.stats if name == "step_num"}
  return found


@pytest.mark.long
def test_the_steps_asked_for_are_traced_and_it_is_said_where(
  make_config, model, console
):
  config = make_config(profile_steps=(3, 5), train_steps=7)
  train(config, model, stub.Batches, console=console)
  folder = pathlib.Path(config.model_dir) / "profile" / "host_0"
  assert steps_in(folder) == {3, 4, 5}
  said = printed(console).replace("\n", "")
  assert (
    said.count("profile of steps 3 to 5: pip install xprof; tensorboard --log") == 1
  )
  assert str(folder) in said.replace(" ", "")


def take(profile, steps):
  for step in steps:
    with profile.on(step, ()):
      pass
    profile.after(step, ())


@pytest.mark.long
def test_a_run_that_begins_and_ends_within_those_steps_keeps_what_there_is(tmp_path):
  lines = []
  profile = step_profile.StepProfile((3, 9), storage.as_path(tmp_path), lines.append)
  take(profile, range(5, 8))
  profile.close()
  assert steps_in(tmp_path) == {5, 6, 7}
  assert lines[0].startswith("profile of steps 5 to 7")
  profile.close()
  assert len(lines) == 1


def test_a_run_that_continues_after_those_steps_says_so_once(tmp_path):
  lines = []
  profile = step_profile.StepProfile((3, 5), storage.as_path(tmp_path), lines.append)
  take(profile, range(6, 9))
  profile.close()
  assert lines == ["no profile of steps 3 to 5: the run continues after them"]
  assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_trace_reaches_a_bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(storage, "is_remote", lambda path: True)
  profile = step_profile.StepProfile((1, 2), storage.as_path(tmp_path / "there"))
  take(profile, range(1, 4))
  assert steps_in(tmp_path / "there") == {1, 2}
  assert not pathlib.Path(profile._local).exists()


@pytest.mark.parametrize("at", ["start_trace", "stop_trace"])
def test_a_trace_that_fails_is_one_line(tmp_path, monkeypatch, at):
  def fail(*args):
    raise RuntimeError("no profiler here")

  monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
  monkeypatch.setattr(jax.profiler, at, fail)
  lines = []
  profile = step_profile.StepProfile((1, 2), storage.as_path(tmp_path), lines.append)
  take(profile, range(1, 4))
  profile.close()
  assert lines == [
    f"no profile of steps in {tmp_path} (RuntimeError: no profiler here): training"
    " continues without it"
  ]


@pytest.mark.parametrize(
  "steps", [5, (5,), (0, 3), (4, 3), (3, 11), (1.0, 2), "1-2", (True, 2)]
)
def test_steps_that_cannot_be_profiled_are_one_line(steps):
  with pytest.raises(UserError, match=r"profile_steps = .*: must be the first and the"):
    TrainConfig("run", 10, 1, profile_steps=steps)
  assert TrainConfig("run", 10, 1, profile_steps=[2, 2]).profile_steps == (2, 2)
  epochs = TrainConfig("run", None, 1, train_epochs=2, profile_steps=(10, 15))
  assert epochs.profile_steps == (10, 15)
