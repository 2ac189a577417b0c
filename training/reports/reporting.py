"""What a run tells while it runs: the console, metrics.jsonl, trackers.

Values of a step stay on the device until a logging period ends; only the third-last
step is waited for, so that the host runs ahead of the device, but not away from it.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from commentree.console import Console
from commentree.training.config import TrainConfig
from commentree.training.metrics import bags_of_words, f1, regression
from commentree.training.metrics.evaluation_sums import Results
from commentree.training.reports.clock import BEFORE, Clock
from commentree.training.reports.evaluation_report import flat_metrics, lines
from commentree.training.reports.metrics_log import MetricsLog
from commentree.training.reports.signs_of_life import SignsOfLife
from commentree.training.trackers.tracker import Tracker

_FULL_ENOUGH = 0.9
_STEPS_IN_FLIGHT = 2
_PER_TOKEN = ("loss", "z_loss", "accuracy", "logits_accuracy")
_PER_STEP = ("objective", "gradient_norm", "learning_rate")
_WORDS = {"compile": "compiling", "input": "reading", "eval": "an evaluation"}
_WORDS["checkpoint"] = "saving a checkpoint"
_COUNTED = ("comments", "decoder_tokens", "encoder_tokens")


class Reporter:
  """Collects the values of steps and tells of them."""

  def __init__(
    self,
    config: TrainConfig,
    console: Console,
    clock: Clock,
    log: MetricsLog | None,
    trackers: Sequence[Tracker],
    *,
    start_step: int,
    epoch_steps: int | None = None,
    utilization_per_rate: float | None = None,
  ):
    """Tells nothing yet, unless ten seconds pass.

    Args:
      config: periods.
      console: for people.
      clock: the run's.
      log: metrics.jsonl; None on hosts that write nothing.
      trackers: TensorBoard and the like.
      start_step: the step the run continues from.
      epoch_steps: steps of a pass over the training data, if known.
      utilization_per_rate: model FLOP utilization at one step a second, if known.
    """
    self._config = config
    self._console = console
    self._clock = clock
    self._log = log
    self._trackers = trackers
    self._start_step = self._done = start_step
    self._done_at = time.monotonic()
    self._step_seconds: float | None = None
    self._epoch_steps = epoch_steps
    self._utilization_per_rate = utilization_per_rate
    self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
    self._rows: list[dict[str, Any]] = []
    self._skipped = 0
    self._began = clock.split()
    self._told = self._began
    self._line_time = -float("inf")
    self._told_of_padding = False
    self._told_of_pairs = False
    self.last_row: dict[str, Any] = {}
    self._signs = SignsOfLife(console.print, self._under_way)

  def step(self, step: int, sums: Mapping[str, jax.Array]) -> None:
    """Takes the values of a step, still on the device."""
    self._pending.append((step, sums))
    if step == self._start_step + 1:
      self._wait_for(step, sums)
      self._first_step(step)
    if len(self._pending) > _STEPS_IN_FLIGHT:
      self._wait_for(*self._pending[-1 - _STEPS_IN_FLIGHT])

  def _wait_for(self, step: int, sums: Mapping[str, jax.Array]) -> None:
    jax.block_until_ready(sums)
    now = time.monotonic()
    if step > self._done:
      if self._done > self._start_step:  # the first takes longer
        self._step_seconds = (now - self._done_at) / (step - self._done)
      self._done, self._done_at = step, now

  def _under_way(self) -> str:
    """What goes on, for whoever waits for a line."""
    what, since = self._clock.now
    now = time.monotonic()
    if what != "step":
      return f"{_WORDS.get(what, what)} under way, for {now - since:,.0f} s"
    line = f"step {self._done + 1:>7,} of {self._config.last_step:,} under way,"
    line += f" for {now - max(since, self._done_at):,.0f} s"
    if self._step_seconds is not None:
      line += f"; the one before took {self._step_seconds:,.1f} s"
    return line

  def _say(self, line: str) -> None:
    self._console.print(line)
    self._signs.heard()

  def _epoch(self, step: int) -> dict[str, float]:
    """How often the training data were passed over by a step, if that is known."""
    return {} if self._epoch_steps is None else {"epoch": step / self._epoch_steps}

  def _first_step(self, step: int) -> None:
    """Tells how long it took to get here, and on what."""
    split = self._clock.split()
    if self._log:
      self._log.write({"kind": "start", "step": step, "seconds": split})
    self._say(
      f"first step after {sum(split.values()):.1f} s: {_parts(split)}",
    )

  def flush(self) -> int | None:
    """Writes the rows of all steps taken so far.

    Returns:
      The first step whose loss or gradient was not finite, if any.
    """
    not_finite = None
    for step, sums in jax.device_get(self._pending):
      row = train_row(step, {name: float(value) for name, value in sums.items()})
      row |= self._epoch(step)
      if not sums["finite"]:
        self._skipped += 1
        not_finite = not_finite or step
      self._rows.append(row)
      self.last_row = row
      if self._log:
        self._log.write(row)
    self._pending = []
    if self._log:
      self._log.sync()
    return not_finite

  def progress(self, step: int) -> None:
    """Tells of the steps since the last time; `flush` comes first."""
    if not self._rows:
      return
    now = self._clock.split()
    speed = self._speed(now)
    if self._log:
      self._log.write({"kind": "speed", "step": step, **speed})
    self._write(step, {f"train/{k}": v for k, v in _scalars(self._rows[-1]).items()})
    self._write(step, {f"speed/{k}": v for k, v in speed.items() if k != "seconds"})
    self._tell_of_padding(speed)
    self._tell_of_pairs()
    # A line a logging period is too much when a period takes a blink.
    last = step == self._config.last_step
    if last or time.monotonic() - self._line_time >= self._config.console_seconds:
      self._say(self._line(step, speed, now))
      self._line_time = time.monotonic()
    self._rows = []
    self._told = now

  def _tell_of_padding(self, speed: Mapping[str, float]) -> None:
    """Says once if the decoder's rows, which are the ones to fill, are not full."""
    full = speed.get("non_padding_decoder", 1.0)
    if full >= _FULL_ENOUGH or self._told_of_padding:
      return
    self._told_of_padding = True
    self._say(
      f"decoder rows are {full:.0%} full, the rest is padding: trees are large for the"
      " forests; ForestLayout.decoder_rows or ForestLayout.lookahead above"
      " what is set fills them better"
    )

  def _tell_of_pairs(self) -> None:
    """Says once if no reply was matched since the last time."""
    pairs = [row["reply_pairs"] for row in self._rows if "reply_pairs" in row]
    if self._told_of_pairs or not pairs or any(pairs):
      return
    self._told_of_pairs = True
    self._say(
      f"reply matching had nothing to learn from in {len(pairs):,} steps: it needs"
      " batches of several trees, with comments that are answered and answer a comment"
      " which answers another or a post; a larger BATCH_SIZE holds more trees"
    )

  def evaluation(self, step: int, results: Mapping[str, Results]) -> None:
    """Tells of an evaluation, by dataset."""
    for name, result in results.items():
      row = {"kind": "eval", "step": step, **self._epoch(step)}
      row |= {"dataset": name, "results": result}
      if self._log:
        self._log.write(row)
      for condition, values in result.items():
        # The same names for all conditions, which are drawn together by that.
        scalars = {f"eval/{name}/{k}": v for k, v in flat_metrics(values).items()}
        self._write(step, scalars, condition)
      losses = "  ".join(
        f"{k} {v['loss']:.4f}" for k, v in result.items() if not bags_of_words.is_bag(k)
      )
      first = next(iter(result.values()))
      said = f1.in_short(first) or regression.in_short(first)
      labels = f"  {said}" if said else ""
      self._say(
        f"eval {step:>7,}  {name}: loss by ancestors: {losses}{labels}",
      )
      for line in lines(result):
        self._say(f"{'':12}  {line}")

  def finish(self) -> dict[str, float]:
    """Tells where the time went; returns the seconds by what they were spent on."""
    split = self._clock.split()
    total = sum(split.values())
    shares = ", ".join(
      f"{what} {seconds / total:.0%}"
      for what, seconds in sorted(split.items(), key=lambda item: -item[1])
      if seconds > 0
    )
    self._say(f"{_duration(total)} in all: {shares}")
    return split

  def _speed(self, now: Mapping[str, float]) -> dict[str, Any]:
    """Rates over the rows not yet told of; evaluations and the like left out."""
    spent = {what: now[what] - self._told[what] for what in now}
    seconds = max(spent["step"] + spent["input"], 1e-9)
    totals = {
      name: sum(row.get(name, 0) for row in self._rows)
      for name in (*_COUNTED, "masked_tokens")
    }
    speed: dict[str, Any] = {
      "steps_per_second": len(self._rows) / seconds,
      "comments_per_second": totals["comments"] / seconds,
      "target_tokens_per_second": totals["decoder_tokens"] / seconds,
      "masked_tokens_per_second": totals["masked_tokens"] / seconds,
    }
    for side in ("encoder", "decoder"):
      positions = sum(row.get(f"{side}_positions", 0) for row in self._rows)
      if positions:
        speed[f"non_padding_{side}"] = totals[f"{side}_tokens"] / positions
    if self._utilization_per_rate is not None:
      speed["model_flop_utilization"] = (
        self._utilization_per_rate * speed["steps_per_second"]
      )
    speed["seconds"] = spent
    return speed

  def _line(self, step: int, speed: Mapping[str, Any], now: Mapping[str, float]) -> str:
    row = self._rows[-1]
    total = self._config.last_step
    done = step - self._start_step
    # Evaluations and saves will come again; compiling will not.
    once = (*BEFORE, "compile")
    elapsed = sum(now[what] - self._began[what] for what in now if what not in once)
    left = elapsed / done * (total - step)
    parts = [
      f"step {step:>7,} of {total:,}",
      *(f"epoch {epoch:.2f}" for epoch in self._epoch(step).values()),
      f"loss {row['loss']:.4f}",
      *_accuracy(row),
      f"{speed['comments_per_second']:,.0f} comments/s",
      f"{speed['steps_per_second']:.2f} steps/s",
      f"{_duration(left)} left",
    ]
    if self._skipped:
      parts.append(f"{self._skipped} steps skipped: not finite")
    return "  ".join(parts)

  def _write(
    self, step: int, scalars: Mapping[str, float], condition: str | None = None
  ) -> None:
    for tracker in self._trackers:
      tracker.log_scalars(step, scalars, condition)

  def close(self, exit_code: int = 0) -> None:
    """Closes the files.

    Args:
      exit_code: what the trackers are told of how the run ended.
    """
    self._signs.close()
    if self._log:
      self._log.close()
    for tracker in self._trackers:
      tracker.finish(exit_code)


def train_row(step: int, sums: Mapping[str, float]) -> dict[str, Any]:
  """Returns a step's row of metrics.jsonl from its sums: averages per masked token."""
  weight = max(sums["weights"], 1.0)
  row: dict[str, Any] = {"kind": "train", "step": step}
  row |= {name: sums[name] / weight for name in _PER_TOKEN if name in sums}
  if "reply_matching" in sums:
    row["reply_pairs"] = int(sums["reply_pairs"])
    if sums["reply_pairs"]:
      row["reply_matching"] = sums["reply_matching"] / sums["reply_pairs"]
  row |= {name: sums[name] for name in _PER_STEP}
  row["masked_tokens"] = int(sums["weights"])
  counts = (*_COUNTED, "encoder_positions", "decoder_positions")
  row |= {name: int(sums[name]) for name in counts if name in sums}
  return row


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
  return {k: v for k, v in row.items() if k not in ("kind", "step")}


def _parts(split: Mapping[str, float]) -> str:
  """Returns what took any time worth a word, the longest first."""
  parts = sorted(split.items(), key=lambda item: -item[1])
  return ", ".join(f"{what} {seconds:.1f}" for what, seconds in parts if seconds > 0.05)


def _accuracy(row: Mapping[str, float]) -> list[str]:
  """Returns how often a step was right; nothing of numbers."""
  words = {"logits_accuracy": "accuracy of the logits", "accuracy": "accuracy"}
  return [f"{said} {row[name]:.3f}" for name, said in words.items() if name in row]


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
