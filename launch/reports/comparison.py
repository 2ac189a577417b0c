"""What evaluations of several runs say, side by side."""

from __future__ import annotations

import dataclasses
import glob
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from etils import epath

from commentree import json_shapes
from commentree.errors import UserError, printable
from commentree.paths import check_scheme

_CONDITIONS = ("shuffled", "parent_only", "none")
_BAGS = {
  "unigram": "unigram",
  "bag_own": "bag of the comment's own words",
  "bag_true": "and of its ancestors' words",
  "bag_parent_only": "and of its parent's alone",
  "bag_shuffled": "and of those of another tree's",
}


# Which recall, by its name in `training.matching_statistics`.
_RECALLS = {"vectors": "recall@1", "matcher": "recall@1, matcher"}


class Recall(msgspec.Struct, frozen=True):
  """How well threads find their replies."""

  recall_at_1: float | None = None
  candidates: float | None = None


class CrossAttention(msgspec.Struct, frozen=True):
  """What the decoder makes of its ancestors."""

  copy_share: float | None = None


class Found(msgspec.Struct):
  """What was found under a condition; a number that is not finite is null in files."""

  loss: float | None
  tokens: int | None = None
  minus_true: float | None = None
  standard_error: float | None = None
  r2: float | msgspec.UnsetType | None = msgspec.UNSET
  pearson: float | msgspec.UnsetType | None = msgspec.UNSET
  reply_matching: dict[str, Recall] = {}
  cross_attention: CrossAttention = CrossAttention()

  @property
  def unit(self) -> tuple[str, str]:
    """What the loss is in, and what it is of."""
    if self.r2 is not msgspec.UNSET:
      return "squared error a comment", "comments"
    if self.pearson is not msgspec.UNSET:
      return "nats a comment", "comments"
    return "nats a token", "masked tokens"


class _Row(msgspec.Struct):
  """What every row of metrics.jsonl has."""

  kind: str
  step: int


class _Evaluation(msgspec.Struct):
  """A row of metrics.jsonl of an evaluation."""

  step: int
  dataset: str
  results: dict[str, Found]


@dataclasses.dataclass(frozen=True)
class Value:
  """A mean and its standard error; no error where nothing tells."""

  mean: float
  error: float | None = None

  def __str__(self) -> str:
    return f"{self.mean:.4f}" + ("" if self.error is None else f" ± {self.error:.4f}")

  def signed(self) -> str:
    """The same with a sign, as differences are written."""
    return ("+" if self.mean >= 0 else "") + str(self)


@dataclasses.dataclass(frozen=True)
class Row:
  """Runs that differ in their seeds alone.

  Attributes:
    label: name of the row.
    steps: at which each was evaluated.
    results: what was found, of each.
  """

  label: str
  steps: tuple[int, ...]
  results: tuple[Mapping[str, Found], ...]

  def loss(self, name: str = "true") -> Value | None:
    """Returns the mean loss over the runs; None unless all have one."""
    if any(name not in result for result in self.results):
      return None
    return _mean(self._losses(name))

  def minus_true(self, condition: str) -> Value | None:
    """Returns how much larger a condition's loss is; None unless all runs tell."""
    found = [result.get(condition) for result in self.results]
    differences = [each.minus_true for each in found if each is not None]
    told = [difference for difference in differences if difference is not None]
    if len(told) < len(found):
      return None
    if len(told) == 1 and found[0] is not None:
      return Value(told[0], found[0].standard_error)
    return _mean(told)

  def recall(self, name: str) -> Value | None:
    """Returns the mean recall@1 over the runs; None unless all tell."""
    return self._mean_of([each.recall_at_1 for each in self._recalls(name)])

  def candidates(self) -> list[float]:
    """Returns among how many candidates replies were found, of all recalls."""
    told = [each.candidates for name in _RECALLS for each in self._recalls(name)]
    return [number for number in told if number is not None]

  def copy_share(self) -> Value | None:
    """Returns the mean share of copies over the runs; None unless all tell."""
    return self._mean_of(
      [result["true"].cross_attention.copy_share for result in self.results]
    )

  def _recalls(self, name: str) -> list[Recall]:
    true = [result["true"] for result in self.results]
    return [found.reply_matching.get(name, Recall()) for found in true]

  def _mean_of(self, values: Sequence[float | None]) -> Value | None:
    told = [value for value in values if value is not None]
    return _mean(told) if len(told) == len(values) else None

  def saves(self, other: Row) -> Value | None:
    """Returns how much smaller the true loss is than another row's."""
    ours, theirs = self.loss(), other.loss()
    if ours is None or theirs is None:
      return None
    if len(self.results) == len(other.results):
      return _mean([b - a for a, b in zip(self._losses("true"), other._losses("true"))])
    error = None
    if ours.error is not None and theirs.error is not None:
      error = math.hypot(ours.error, theirs.error)
    return Value(theirs.mean - ours.mean, error)

  def _losses(self, name: str) -> list[float]:
    losses = [result[name].loss for result in self.results]
    return [math.nan if loss is None else loss for loss in losses]


def markdown(rows: Sequence[Row], against: str | None = None) -> str:
  """Returns a table of the rows, and one of the baselines that needed no training.

  Args:
    rows: what to compare.
    against: label of the row that the others are set off.

  Raises:
    UserError: if there is no such row, or rows are of different tokens.
  """
  _check_tokens(rows)
  other = None
  if against is not None:
    other = next((row for row in rows if row.label == against), None)
    if other is None:
      labels = ", ".join(repr(row.label) for row in rows)
      raise UserError(f"--against={against!r}: no such row; there are {labels}")
  head = ["model", "runs", "step", "true"]
  head += [f"{condition} - true" for condition in _CONDITIONS]
  if other is not None:
    head.append(f"saves against {other.label}")
  more = _more_columns(rows)
  head += more
  lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
  for number, row in enumerate(rows):
    cells = [row.label, str(len(row.results)), _range(row.steps), _cell(row.loss())]
    cells += [
      _cell(row.minus_true(condition), signed=True) for condition in _CONDITIONS
    ]
    if other is not None:
      cells.append("" if row is other else _cell(row.saves(other), signed=True))
    cells += [_cell(of_rows[number]) for of_rows in more.values()]
    lines.append(_line(cells))
  tokens = rows[0].results[0]["true"].tokens
  unit, counted = rows[0].results[0]["true"].unit
  lines += ["", f"Held-out loss in {unit}, over {tokens:,} {counted}."]
  if candidates := [each for row in rows for each in row.candidates()]:
    lines[-1] += (
      " recall@1: how often a thread finds its reply among"
      f" {_range([round(number) for number in candidates])} comments."
    )
  baselines = [
    (what, rows[0].loss(name)) for name, what in _BAGS.items() if rows[0].loss(name)
  ]
  if baselines:
    lines += ["", _line(["without a network", "loss"]), _line(["---", "---:"])]
    lines += [_line([what, _cell(value)]) for what, value in baselines]
  return "\n".join(lines) + "\n"


def _more_columns(rows: Sequence[Row]) -> dict[str, list[Value | None]]:
  """Returns what only some runs have, by column, for each row."""
  columns = {
    head: [row.recall(name) for row in rows] for name, head in _RECALLS.items()
  }
  columns["copy share"] = [row.copy_share() for row in rows]
  return {
    head: values
    for head, values in columns.items()
    if any(value is not None for value in values)
  }


def labelled(given: Sequence[str]) -> list[tuple[str, list[str]]]:
  """Returns labels and folders; a folder without a label has its name for one."""
  found: list[tuple[str, list[str]]] = []
  for text in given:
    label, equals, pattern = text.partition("=")
    is_folder = "://" in label
    if "://" not in text:
      is_folder = epath.Path(text).exists()
    if not equals or is_folder:
      found.append((pathlib.Path(text).name or text, [text]))
      continue
    folders = [pattern] if "://" in pattern else sorted(glob.glob(pattern))
    if not folders:
      raise UserError(f"{text}: there is no folder {pattern}")
    found.append((label, folders))
  labels = [label for label, _ in found]
  for label in labels:
    if labels.count(label) > 1:
      raise UserError(f"two rows are called {label!r}: give labels, LABEL=MODEL_DIR")
  return found


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's evaluations by step."""

  file: epath.Path
  by_step: Mapping[int, Mapping[str, Found]]

  def at(self, step: int | None) -> tuple[int, Mapping[str, Found]]:
    """Returns the last evaluation, or that of a step, and its step.

    Raises:
      UserError: if it is missing.
    """
    if step is None:
      step = max(self.by_step)
    if step not in self.by_step:
      steps = ", ".join(map(str, sorted(self.by_step)))
      raise UserError(f"{self.file}: no evaluation at step {step}; there are {steps}")
    found = self.by_step[step]
    if "true" not in found or found["true"].tokens is None:
      raise UserError(
        f"{self.file}: the evaluation at step {step} has no loss with true ancestors;"
        " evaluate with 'true' in EvalConfig.conditions"
      )
    return step, found


def row_at(label: str, runs: Sequence[Run], step: int | None) -> Row:
  """Returns runs at a step, or at the last of each, as one row."""
  found = [run.at(step) for run in runs]
  return Row(label, tuple(at for at, _ in found), tuple(each for _, each in found))


def curve(label: str, runs: Sequence[Run]) -> list[Row]:
  """Returns the evaluations that all runs have, in the order of their steps."""
  common = set.intersection(*(set(run.by_step) for run in runs))
  return [row_at(label, runs, step) for step in sorted(common)]


def metric_rows(folder: str) -> tuple[epath.Path, list[dict[str, Any]]]:
  """Returns a run's file of metrics and its rows; each has a `kind` and a `step`.

  Raises:
    UserError: if it cannot be read.
  """
  check_scheme(folder)
  file = epath.Path(folder) / "metrics.jsonl"
  lines = _read(file).splitlines(keepends=True)
  if lines and not lines[-1].endswith(b"\n"):
    del lines[-1]  # what a killed run was writing
  rows: list[dict[str, Any]] = []
  for number, line in enumerate(lines, 1):
    try:
      row = json_shapes.parse(line, dict[str, Any])
      msgspec.convert(row, _Row)
    except ValueError:
      raise UserError(f"{file}:{number}: not a row of metrics") from None
    rows.append(row)
  return file, rows


def read_run(folder: str, dataset: str) -> Run:
  """Reads a run's evaluations on a dataset.

  Raises:
    UserError: if it is missing.
  """
  file, rows = metric_rows(folder)
  found: dict[int, Mapping[str, Found]] = {}
  datasets = set()
  for number, row in enumerate(rows, 1):
    if row["kind"] != "eval":
      continue
    try:
      entry = msgspec.convert(row, _Evaluation)
    except ValueError:
      raise UserError(f"{file}:{number}: not a row of metrics") from None
    datasets.add(entry.dataset)
    if entry.dataset == dataset:
      found[entry.step] = entry.results
  if not found:
    there = f"there are {', '.join(sorted(datasets))}" if datasets else "there is none"
    raise UserError(f"{file}: no evaluation on {dataset!r}; {there}")
  return Run(file, found)


def _read(file: epath.Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    what = error.strerror or str(error)
  except Exception as error:
    # JAX comes with it, which local files need not wait for.
    from commentree.training.checkpointing import storage

    if not storage.refused(error):
      raise
    what = storage.reason(error)
  raise UserError(f"{file}: {what}; give the MODEL_DIR of a run")


def _check_tokens(rows: Sequence[Row]) -> None:
  units = {result["true"].unit[0]: row.label for row in rows for result in row.results}
  if len(units) > 1:
    told = ", ".join(f"{unit} ({label})" for unit, label in sorted(units.items()))
    raise UserError(f"the runs' losses are not of one kind: {told}")
  counts = {
    result["true"].tokens or 0: row.label for row in rows for result in row.results
  }
  if len(counts) > 1:
    told = ", ".join(f"{n:,} ({label})" for n, label in sorted(counts.items()))
    raise UserError(
      f"the runs were not evaluated on the same masked tokens: {told}; evaluate them"
      " with the same data, layout and EVAL_BATCHES"
    )


def _mean(values: Sequence[float]) -> Value | None:
  if not values:
    return None
  if len(values) == 1:
    return Value(values[0])
  if not all(map(math.isfinite, values)):
    return Value(math.nan)
  error = statistics.stdev(values) / math.sqrt(len(values))
  return Value(statistics.mean(values), error)


def _range(steps: Sequence[int]) -> str:
  low, high = min(steps), max(steps)
  return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _cell(value: Value | None, *, signed: bool = False) -> str:
  if value is None:
    return ""
  return value.signed() if signed else str(value)


def _line(cells: Sequence[str]) -> str:
  cells = [" ".join(printable(cell).split()) for cell in cells]
  return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
