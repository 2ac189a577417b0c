from __future__ import annotations

import dataclasses
import json

import pytest

from commentree.errors import UserError
from commentree.training.checkpointing import model_dir_lock, run_record
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig


def test_settings_that_differ_are_named_with_both_values(tmp_path):
  facts = {"a": 1, "b": (1, 2), "c": "x", "gone": 0}
  run_record.write(tmp_path, run_record.RunRecord(facts), facts, 0)
  run_record.check(tmp_path, {**facts, "a": 2})  # nothing is trained yet
  (tmp_path / "checkpoint_1").mkdir()
  run_record.check(tmp_path, facts)
  with pytest.raises(UserError) as raised:
    run_record.check(tmp_path, {"a": 2, "b": [1, 2], "c": "x", "new": None})
  message = str(raised.value)
  assert "a (1 there, 2 now)" in message
  assert "gone (0 there, absent now)" in message
  assert "new (absent there, None now)" in message
  assert "b (" not in message
  assert "\n" not in message


def test_a_folder_without_a_record_is_nobodys(tmp_path):
  (tmp_path / "checkpoint_1").mkdir()
  run_record.check(tmp_path, {"a": 1})


def test_what_may_change_between_starts_is_no_fact(make_config):
  config = make_config()
  changed = dataclasses.replace(
    config,
    train_steps=1000,
    eval_period=7,
    log_period=9,
    gradient_accumulation_steps=2,
    model_dir="elsewhere",
  )
  assert run_record.training_facts(config) == run_record.training_facts(changed)
  other_seed = dataclasses.replace(config, random_seed=1)
  assert run_record.training_facts(config) != run_record.training_facts(other_seed)


def test_the_number_of_steps_matters_where_the_schedule_ends_with_them(make_config):
  def facts(steps, **schedule):
    optimizer = OptimizerConfig(schedule=ScheduleConfig(warmup_steps=1, **schedule))
    return run_record.training_facts(
      make_config(train_steps=steps, optimizer=optimizer)
    )

  assert facts(10, name="cosine") != facts(20, name="cosine")
  assert facts(10, name="cosine") == facts(20, name="cosine", decay_steps=10)
  assert facts(10, name="rsqrt") == facts(20, name="rsqrt")


def test_every_start_is_noted_with_command_versions_and_changed_settings(tmp_path):
  for step, text in ((0, "A.x = 1\n"), (5, "A.x = 2\n"), (9, "A.x = 2\n")):
    record = run_record.RunRecord({"a": 1}, text, "commentree train")
    run_record.write(tmp_path, record, record.facts, step)
  run = json.loads((tmp_path / "run.json").read_text())
  assert [start["step"] for start in run["starts"]] == [0, 5, 9]
  assert run["starts"][0]["command"] == "commentree train"
  assert {"python", "jax", "flax"} <= run["starts"][0]["versions"].keys()
  assert [start.get("config_before") for start in run["starts"]] == [
    None,
    "A.x = 1\n",
    None,
  ]
  assert (tmp_path / "config.gin").read_text() == "A.x = 2\n"


def test_two_processes_cannot_train_in_one_folder(tmp_path):
  with (
    model_dir_lock.exclusive(tmp_path),
    pytest.raises(UserError, match="another process is training"),
    model_dir_lock.exclusive(tmp_path),
  ):
    pass
  with model_dir_lock.exclusive(tmp_path):
    pass


def test_parameters_of_another_vocabulary_are_refused(tmp_path):
  facts = {"vocabulary": "one"}
  run_record.write(tmp_path, run_record.RunRecord(facts), facts, 0)
  checkpoint = tmp_path / "checkpoint_1"
  run_record.check_vocabulary(checkpoint, {"vocabulary": "one"})
  run_record.check_vocabulary(tmp_path / "elsewhere" / "checkpoint_1", facts)
  with pytest.raises(UserError, match=r"another vocabulary.* one, now two"):
    run_record.check_vocabulary(checkpoint, {"vocabulary": "two"}, grown_from=["zero"])
  run_record.check_vocabulary(checkpoint, {"vocabulary": "two"}, grown_from=["one"])


def test_more_steps_of_a_decaying_schedule_are_refused_with_the_way_to_have_them(
  make_config, tmp_path
):
  def facts(steps, **schedule):
    optimizer = OptimizerConfig(
      schedule=ScheduleConfig(name="cosine", warmup_steps=1, **schedule)
    )
    return run_record.training_facts(
      make_config(train_steps=steps, optimizer=optimizer)
    )

  run_record.write(tmp_path, run_record.RunRecord(facts(10)), facts(10), 0)
  (tmp_path / "checkpoint_5").mkdir()
  with pytest.raises(UserError, match=r"--gin\.ScheduleConfig\.decay_steps=10$"):
    run_record.check(tmp_path, facts(20))
  run_record.check(tmp_path, facts(20, decay_steps=10))
