from __future__ import annotations

import contextlib
import functools
import time

import jax.numpy as jnp
import pytest

from commentree.tests.support.consoles import printed
from commentree.training.reports import metrics_log, reporting, signs_of_life
from commentree.training.reports.clock import Clock

SUMS = {
  "loss": 20.0,
  "accuracy": 5.0,
  "weights": 10.0,
  "comments": 4.0,
  "decoder_tokens": 90.0,
  "decoder_positions": 100.0,
  "objective": 2.5,
  "gradient_norm": 1.0,
  "learning_rate": 0.1,
  "finite": 1.0,
}
RESULT = {"loss": 3.0, "accuracy": 0.1, "tokens": 9, "by_depth": {}, "by_group": {}}


class FakeTracker:
  def __init__(self):
    self.written, self.ended = [], None

  def log_scalars(self, step, scalars, condition=None):
    self.written.append((step, dict(scalars), condition))

  def finish(self, exit_code):
    self.ended = exit_code


@pytest.fixture
def make_report(make_config, console, tmp_path):
  def make(tracker=None, start_step=0, utilization=None, epoch_steps=None, **settings):
    return reporting.Reporter(
      make_config(train_steps=100, **settings),
      console,
      Clock(),
      metrics_log.MetricsLog(tmp_path / "metrics.jsonl", 0),
      [tracker] if tracker else [],
      start_step=start_step,
      epoch_steps=epoch_steps,
      utilization_per_rate=utilization,
    )

  return make


def steps_said(console) -> list[str]:
  lines = printed(console).splitlines()
  return [line for line in lines if line.startswith("step ")]


def drive(report, steps, log_period=10, **changes):
  for step in steps:
    report.step(step, {k: jnp.float32(v) for k, v in {**SUMS, **changes}.items()})
    if step % log_period == 0:
      report.flush()
      report.progress(step)


def test_the_way_to_the_first_step_is_told_once_with_what_it_took(
  make_report, console, tmp_path
):
  report = make_report(start_step=4)
  with report._clock.on("compile"):
    time.sleep(0.2)
  drive(report, range(5, 8))
  report.close()
  (line,) = [x for x in printed(console).splitlines() if "first step" in x]
  assert "compile 0.2" in line
  assert "eval" not in line
  (row,) = metrics_log.read(tmp_path / "metrics.jsonl", "start")
  assert row["step"] == 5
  assert row["seconds"]["compile"] >= 0.2


def test_a_hundred_steps_take_fewer_than_40_lines(make_report, console):
  # Seconds apart or not: at the default period there are 10, and evaluations.
  report = make_report(log_period=10)
  for first in range(1, 101, 20):
    drive(report, range(first, first + 20))
    report.evaluation(first + 19, {"held_out": {"true": RESULT, "none": RESULT}})
  report.finish()
  lines = printed(console).splitlines()
  assert 10 <= len(lines) < 40
  for part in ("step     100 of 100", "loss 2.0000", "comments/s", "left"):
    assert any(part in line for line in lines)


def test_short_periods_share_a_line_but_the_last_step_has_one(make_report, console):
  drive(make_report(console_seconds=60.0), range(1, 101), log_period=1)
  lines = steps_said(console)
  assert len(lines) == 2
  assert "step     100 of 100" in lines[1]


def test_the_remaining_time_is_that_of_the_steps_to_come(make_report, console):
  report = make_report(start_step=80)
  report._began = {**report._began, "step": report._began["step"] - 100.0}
  drive(report, range(81, 91))
  # 10 steps in 100 seconds, 10 to go.
  assert "0:01:40 left" in printed(console)


def test_rows_are_means_per_masked_token_for_every_step(make_report, tmp_path):
  drive(make_report(), range(1, 11))
  rows = metrics_log.read(tmp_path / "metrics.jsonl", "train")
  assert [row["step"] for row in rows] == list(range(1, 11))
  assert rows[0]["loss"] == 2.0
  assert rows[0]["accuracy"] == 0.5
  assert rows[0]["objective"] == 2.5


def test_the_epoch_stands_beside_the_step_wherever_it_is_known(
  make_report, console, tmp_path
):
  tracker = FakeTracker()
  report = make_report(tracker, epoch_steps=40)
  drive(report, range(1, 11))
  report.evaluation(10, {"held_out": {"true": RESULT}})
  report.flush()
  assert "step      10 of 100  epoch 0.25  loss" in printed(console)
  for kind in ("train", "eval"):
    assert metrics_log.read(tmp_path / "metrics.jsonl", kind)[-1]["epoch"] == 0.25
  assert {s["train/epoch"] for _, s, _ in tracker.written if "train/epoch" in s} == {
    0.25
  }
  drive(make_report(), range(1, 11))
  assert "epoch" not in metrics_log.read(tmp_path / "metrics.jsonl", "train")[0]


@pytest.mark.parametrize(
  ("phase", "says"),
  [
    ("compile", "compiling under way, for "),
    ("eval", "an evaluation under way, for "),
    (None, "step       4 of 100 under way, for 0 s; the one before took "),
  ],
)
def test_what_is_under_way_is_said_after_some_silence(
  make_report, console, monkeypatch, phase, says
):
  signs = functools.partial(signs_of_life.SignsOfLife, silent_seconds=0.1)
  monkeypatch.setattr(reporting, "SignsOfLife", signs)
  report = make_report()
  if phase is None:
    drive(report, range(1, 6))  # of which the last two need not be done
  with contextlib.nullcontext() if phase is None else report._clock.on(phase):
    time.sleep(0.25)
  report.close()
  assert says in printed(console)


def test_silence_is_broken_ever_less_often_and_not_where_lines_come():
  said = []
  signs = signs_of_life.SignsOfLife(said.append, lambda: "at work", 0.05)
  for _ in range(10):
    time.sleep(0.02)
    signs.heard()
  assert not said
  time.sleep(0.5)
  signs.close()
  assert 2 <= len(said) <= 4  # after 0.05, 0.15 and 0.35 seconds
  number = len(said)
  time.sleep(0.3)
  assert len(said) <= number + 1


def test_rows_that_are_not_full_are_said_once(make_report, console):
  report = make_report(log_period=1)
  for step in (1, 2, 3):
    report.step(step, {**SUMS, "decoder_tokens": 77.0 if step > 1 else 90.0})
    report.flush()
    report.progress(step)
  said = printed(console)
  assert said.count("decoder rows are 77% full") == 1
  assert "90% full" not in said


def test_speed_leaves_out_what_was_not_training(make_report, tmp_path):
  report = make_report(utilization=0.25)
  with report._clock.on("eval"):
    time.sleep(0.5)
  drive(report, range(1, 11))
  report.close()
  (speed,) = metrics_log.read(tmp_path / "metrics.jsonl", "speed")
  assert speed["seconds"]["eval"] > 0.5
  training = speed["seconds"]["step"] + speed["seconds"]["input"]
  assert speed["comments_per_second"] == pytest.approx(40 / training)
  assert speed["target_tokens_per_second"] == pytest.approx(900 / training)
  assert speed["non_padding_decoder"] == pytest.approx(0.9)
  assert speed["model_flop_utilization"] == pytest.approx(0.25 * 10 / training)


def test_the_first_step_that_is_not_finite_is_found(make_report, console):
  report = make_report()
  drive(report, range(1, 4))
  drive(report, range(4, 7), finite=0.0)
  assert report.flush() == 4
  report.progress(6)
  assert "3 steps skipped: not finite" in printed(console)


def test_trackers_are_given_training_speed_and_evaluation(make_report):
  tracker = FakeTracker()
  report = make_report(tracker)
  drive(report, range(1, 11))
  report.evaluation(10, {"held_out": {"true": RESULT, "none": RESULT}})
  names = {(name, of) for _, scalars, of in tracker.written for name in scalars}
  assert {
    ("train/loss", None),
    ("speed/comments_per_second", None),
    ("eval/held_out/loss", "true"),
    ("eval/held_out/loss", "none"),
  } <= names
  assert {step for step, *_ in tracker.written} == {10}


def test_an_evaluation_says_in_a_sentence_whether_ancestors_help(make_report, console):
  other = {**RESULT, "minus_true": 0.5, "standard_error": 0.01, "trees": 9}
  left_out = {"left_out_tokens": 40, "left_out_comments": 7}
  results = {"true": RESULT, "shuffled": {**other, **left_out}}
  make_report().evaluation(10, {"held_out": results})
  said = printed(console)
  assert "ancestors save 0.500 ± 0.010 nats a token (9 trees" in said
  assert "left out: 7 comments, 40 tokens" in said


def test_the_times_add_up_to_the_whole():
  started = time.monotonic()
  clock = Clock()
  with clock.on("input"):
    time.sleep(0.05)
  time.sleep(0.05)
  split = clock.split()
  assert sum(split.values()) == pytest.approx(time.monotonic() - started, abs=0.02)
  assert split["input"] >= 0.05
  assert split["step"] >= 0.05


def test_a_run_without_replies_to_match_is_told_so_once(make_report, console):
  report = make_report()
  drive(report, range(1, 21), reply_matching=0.0, reply_pairs=0.0)
  said = printed(console).replace("\n", " ")
  assert said.count("reply matching had nothing to learn from in 10 steps") == 1
  assert report.last_row["reply_pairs"] == 0
  assert "reply_matching" not in report.last_row


def test_the_loss_of_matching_is_a_mean_over_its_pairs(make_report, console):
  report = make_report()
  drive(report, range(1, 11), reply_matching=6.0, reply_pairs=4.0)
  assert report.last_row["reply_matching"] == 1.5
  assert "reply matching had" not in printed(console)
