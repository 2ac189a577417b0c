"""TRAIN_EPOCHS: the number of steps that it comes to, and where it is refused."""

import pytest

from commentree.errors import UserError
from commentree.launch import assemble_run
from commentree.launch.settings import gin_cli
from commentree.tasks.data import Pace
from commentree.training.checkpointing import run_record

PACE = Pace(comments=10, tokens=100, masked_tokens=15, epoch_comments=95)


def settings(epochs, *others):
  return gin_cli.load(
    ["runs/pretrain.gin"],
    [
      "MODEL_DIR = 'm'",
      "MIXTURE_OR_TASK_NAME = 'commentree_generated'",
      f"TRAIN_EPOCHS = {epochs}",
      *others,
    ],
  )


@pytest.mark.parametrize(("epochs", "steps"), [(2, 20), (0.5, 5), (0.01, 1)])
def test_epochs_become_steps_by_the_size_of_an_epoch(epochs, steps):
  said = []
  run = assemble_run.with_steps(settings(epochs), PACE, said.append)
  assert run.train.train_steps == run.train.last_step == steps
  assert run.train.train_epochs is None
  assert said[0] == f"TRAIN_EPOCHS = {epochs}: {steps:,} steps"
  assert said[1].startswith("WARMUP_STEPS = 1,000 exceeds TRAIN_STEPS")


def test_a_run_with_steps_stays_as_it_is():
  run = gin_cli.load(["runs/demo.gin"], ["MODEL_DIR = 'm'"])
  assert assemble_run.with_steps(run, PACE, print) is run


def test_a_mixture_has_no_epochs():
  pace = Pace(comments=10, tokens=100, masked_tokens=15, epoch_comments=None)
  with pytest.raises(UserError, match="TRAIN_EPOCHS = 2: a mixture has no epoch"):
    assemble_run.with_steps(settings(2), pace, print)


def test_a_decay_that_the_warm_up_leaves_no_step_for_is_told_once_steps_are_known():
  run = settings(2, "ScheduleConfig.name = 'cosine'", "WARMUP_STEPS = 20")
  with pytest.raises(UserError, match="WARMUP_STEPS"):
    assemble_run.with_steps(run, PACE, print)


def test_where_a_decay_ends_is_compared_once_steps_are_known():
  run = settings(3, "ScheduleConfig.name = 'cosine'", "WARMUP_STEPS = 2")
  name = "ScheduleConfig.decay_steps"
  assert name not in run_record.training_facts(run.train)
  known = assemble_run.with_steps(run, PACE, print)
  assert run_record.training_facts(known.train)[name] == 30
