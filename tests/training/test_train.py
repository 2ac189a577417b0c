from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training import data_input, evaluation
from commentree.training.checkpointing import checkpoint_choice, checkpoints
from commentree.training.checkpointing.run_record import RunRecord
from commentree.training.config import CheckpointConfig
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig
from commentree.training.reports import metrics_log, reporting
from commentree.training.step_compilation import StepCompilation
from commentree.training.train import train


@pytest.fixture
def run(console):
  """Trains on the tiny data, quietly."""

  def train_quietly(config, model=None, batches=None, **settings):
    return train(
      config,
      model or stub.StubModel(),
      batches or stub.Batches,
      {"held_out": stub.held_out()},
      console=console,
      **settings,
    )

  return train_quietly


def said(console) -> str:
  return printed(console)


@pytest.mark.long
def test_a_run_ends_with_its_last_step_evaluated_and_saved(make_config, run, tmp_path):
  result = run(make_config(), token_groups={"low": [4, 5]}, record=RunRecord({}, "a=1"))
  assert result["step"] == 6
  assert result["train"]["step"] == 6
  held_out = result["eval"]["held_out"]
  assert list(held_out) == ["true", "shuffled", "parent_only", "none"]
  assert "low" in held_out["true"]["by_group"]
  spent = {what for what, seconds in result["seconds"].items() if seconds > 0}
  assert spent == {"state", "compile", "input", "eval", "checkpoint", "step"}
  folder = tmp_path / "run"
  assert checkpoints.steps_in(folder) == [6]
  assert (folder / "config.gin").read_text() == "a=1"
  (row,) = metrics_log.read(folder / "metrics.jsonl", "eval")
  assert row["results"]["none"]["loss"] == held_out["none"]["loss"]


@pytest.mark.long
def test_the_loss_falls(make_config, run):
  schedule = ScheduleConfig(name="constant", learning_rate=0.05, warmup_steps=0)
  optimizer = OptimizerConfig(name="adamw", schedule=schedule)
  config = make_config(train_steps=60, optimizer=optimizer)

  class OneBatch(stub.Batches):
    def __next__(self):
      return stub.random_batch(0, 8)

  run(config, batches=OneBatch)
  rows = metrics_log.read(config.model_dir + "/metrics.jsonl", "train")
  assert rows[0]["loss"] == pytest.approx(np.log(stub.VOCAB), rel=0.05)
  assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


@pytest.mark.long
def test_more_steps_continue_and_none_left_evaluates(make_config, run, console):
  run(make_config(train_steps=2))
  longer = run(make_config(train_steps=4))
  assert longer["step"] == 4
  assert "restored step 2" in said(console)
  again = run(make_config(train_steps=4))
  assert "nothing to train: step 4 of 4 is done" in said(console)
  assert again["eval"] == longer["eval"]


@pytest.mark.long
def test_other_settings_in_the_same_folder_are_refused(make_config, run):
  run(make_config(train_steps=2), record=RunRecord({"ModelConfig.emb_dim": 8}))
  changed = make_config(train_steps=2, random_seed=5)
  with pytest.raises(UserError) as raised:
    run(changed, record=RunRecord({"ModelConfig.emb_dim": 16}))
  assert "ModelConfig.emb_dim (8 there, 16 now)" in str(raised.value)
  assert "TrainConfig.random_seed (0 there, 5 now)" in str(raised.value)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
  make_config, run, tmp_path
):
  class Poisoned(stub.Batches):
    def __next__(self):
      batch = super().__next__()
      batch["encoder_positions"] += 100 * (self.next == 6)
      return batch

  class Poisonable(stub.StubModel):
    def loss_sums(self, params, batch, dropout_rng):
      _, weight, sums = super().loss_sums(params, batch, dropout_rng)
      poison = jnp.where(batch["encoder_positions"].max() >= 100, jnp.nan, 0)
      return sums["loss"] + poison, weight, {**sums, "loss": sums["loss"] + poison}

  config = make_config(
    train_steps=20, log_period=50, checkpoint=CheckpointConfig(period=4)
  )
  with pytest.raises(UserError) as raised:
    run(config, Poisonable(), Poisoned)
  message = str(raised.value)
  assert message.startswith("step 6: the loss or its gradient is not finite")
  assert str(tmp_path / "run" / "checkpoint_4") in message
  assert checkpoints.steps_in(tmp_path / "run") == [4]
  rows = metrics_log.read(tmp_path / "run" / "metrics.jsonl", "train")
  assert rows[5]["loss"] == "nan"


def test_the_best_checkpoint_is_saved_between_periods_and_found_again(
  make_config, run, tmp_path, monkeypatch
):
  losses = iter([3.0, 1.0, 2.0, 1.5])

  def scripted(self, params, *args, **kwargs):
    result = {"loss": next(losses), "accuracy": 0.0, "tokens": 1}
    return {"true": {**result, "by_depth": {}, "by_group": {}}}

  monkeypatch.setattr(evaluation.Evaluator, "__call__", scripted)
  config = make_config(
    train_steps=8,
    eval_period=2,
    checkpoint=CheckpointConfig(period=100, keep=1, keep_best=1),
  )
  run(config)
  assert checkpoints.steps_in(tmp_path / "run") == [4, 8]
  assert checkpoint_choice.best_step(tmp_path / "run", "true/loss") == 4


@pytest.mark.long
def test_a_checkpoint_evaluates_as_it_did_in_training(make_config, run):
  config = make_config()
  trained = run(config)
  evaluated = evaluation.evaluate_checkpoint(
    config.model_dir,
    stub.StubModel(),
    {"held_out": stub.held_out()},
    compile_cache_dir=config.compile_cache_dir,
  )
  assert evaluated["step"] == 6
  assert evaluated["results"] == trained["eval"]


@pytest.mark.long
def test_a_new_run_can_start_from_another_runs_parameters(
  make_config, run, console, tmp_path
):
  source = run(make_config(train_steps=4))
  path = str(tmp_path / "run" / "checkpoint_4")
  frozen = OptimizerConfig(
    name="sgd", schedule=ScheduleConfig(name="constant", learning_rate=0.0)
  )
  warm = make_config(
    model_dir=str(tmp_path / "warm"),
    train_steps=1,
    optimizer=frozen,
    initial_checkpoint_path=path,
  )
  assert run(warm)["eval"] == source["eval"]
  assert f"took parameters from {path} (rule 2" in said(console)


@pytest.mark.long
def test_steps_are_not_waited_for_one_by_one(make_config, run, monkeypatch):
  flushed = []
  original = reporting.Reporter.flush

  def flush(self):
    flushed.append(len(self._pending))
    return original(self)

  monkeypatch.setattr(reporting.Reporter, "flush", flush)
  run(make_config(train_steps=10, log_period=5))
  assert flushed == [5, 5]


def test_a_batch_that_would_cross_to_the_device_unseen_is_an_error(
  make_config, run, monkeypatch
):
  monkeypatch.setattr(
    data_input.ToGlobalBatch, "__call__", lambda _, batch: dict(batch)
  )
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    run(make_config())


@pytest.mark.long
def test_training_imports_neither_tensorflow_nor_seqio():
  script = (
    "import sys; sys.modules.update({'tensorflow': None, 'seqio': None, 'gin': None});"
    "import commentree.training.train"
  )
  subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


class FailingAt(stub.Batches):
  """Data whose sixth batch cannot be read."""

  def __next__(self):
    if self.next == 5:
      raise OSError("the disk is gone")
    return super().__next__()


@pytest.mark.long
def test_an_error_in_the_data_saves_what_was_trained_first(
  make_config, run, console, tmp_path
):
  whole = run(make_config(train_steps=8, model_dir=str(tmp_path / "whole")))
  config = make_config(train_steps=8)
  with pytest.raises(OSError, match="the disk is gone"):
    run(config, batches=FailingAt)
  assert checkpoints.steps_in(tmp_path / "run") == [5]
  assert "an error ends the run: step 5 saved as" in said(console)
  assert run(config)["train"] == whole["train"]


def test_an_error_in_an_evaluation_saves_what_was_trained_first(
  make_config, run, tmp_path, monkeypatch
):
  def failing(*args, **kwargs):
    raise OSError("the disk is gone")

  monkeypatch.setattr(evaluation.Evaluator, "__call__", failing)
  with pytest.raises(OSError, match="the disk is gone"):
    run(make_config(eval_period=3))
  assert checkpoints.steps_in(tmp_path / "run") == [3]


@pytest.mark.long
def test_a_save_is_due_by_the_clock_whatever_the_step(
  make_config, run, tmp_path, monkeypatch
):
  asked = iter([False, False, True] + 9 * [False])
  monkeypatch.setattr(checkpoints.Checkpoints, "due_by_time", lambda _: next(asked))
  run(make_config(train_steps=5))
  assert checkpoints.steps_in(tmp_path / "run") == [3, 5]


@pytest.mark.long
def test_a_run_without_a_better_evaluation_ends_and_stays_ended(
  run, make_config, console, monkeypatch
):
  def config(patience):
    return make_config(
      train_steps=12,
      eval_period=2,
      patience=patience,
      checkpoint=CheckpointConfig(period=100, keep_best=1),
      optimizer=OptimizerConfig(
        name="adamw",
        # Nothing is learnt, so the first evaluation stays the best.
        schedule=ScheduleConfig(learning_rate=0.0, warmup_steps=2),
      ),
    )

  run(config(patience=2))
  said = printed(console)
  assert "step 6 ends the run: " in said
  assert checkpoints.steps_in(config(2).model_dir)[-1] == 6
  with monkeypatch.context() as patched:
    patched.delattr(StepCompilation, "begin")  # no step is compiled
    run(config(patience=2))
  assert "step 7 " not in printed(console)  # a share of the time may be 7%
  run(config(patience=None))
  assert checkpoints.steps_in(config(None).model_dir)[-1] == 12
