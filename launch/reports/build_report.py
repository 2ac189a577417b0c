"""How far a build is, and what came out of it, for a person to read."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import rich.progress
import rich.table
import rich.text

from commentree.console import Console

_SECONDS_BETWEEN_LINES = 5
_MB = 2**20


class BuildProgress:
  """Tells how far a build is: a bar on a terminal, elsewhere a line now and then."""

  def __init__(self, console: Console, bar: rich.progress.Progress | None):
    self._console = console
    self._bar = bar
    self._lock = threading.Lock()
    self._task: Any = None
    self._name = ""
    self._unit = ""
    self._total = self._at_start = self._done = self._rows = 0
    self._started = self._told = time.monotonic()

  def stage(self, name: str, unit: str, total: int, done: int) -> None:
    """A stage begins.

    Args:
      name: of the stage.
      unit: what is counted: 'B' for bytes of files, or 'rows'.
      total: how many there are.
      done: of those, how many were done before.
    """
    with self._lock:
      self._name, self._unit = name, unit
      self._total, self._at_start, self._done, self._rows = total, done, done, 0
      self._started = self._told = time.monotonic()
      if self._bar is not None:
        if self._task is not None:
          self._bar.update(self._task, completed=self._bar.tasks[-1].total)
        self._task = self._bar.add_task(name, total=total, completed=done, facts="")

  def advance(self, rows: int, size: int) -> None:
    """Work was done: of so many rows and bytes of files."""
    with self._lock:
      self._rows += rows
      self._done += size if self._unit == "B" else rows
      now = time.monotonic()
      if self._bar is not None:
        self._bar.update(self._task, completed=self._done, facts=self._facts(now))
      elif now - self._told >= _SECONDS_BETWEEN_LINES:
        self._told = now
        share = self._done / max(self._total, 1)
        self._console.print(
          f"{self._name}: {share:.0%}, {self._facts(now)}, {self._left(now)} left",
        )

  def _facts(self, now: float) -> str:
    seconds = max(now - self._started, 1e-9)
    facts = f"{self._rows:,} rows, {self._rows / seconds:,.0f} rows/s"
    if self._unit == "B":
      facts += f", {(self._done - self._at_start) / seconds / _MB:,.1f} MB/s"
    return facts

  def _left(self, now: float) -> str:
    done = self._done - self._at_start
    if done <= 0:
      return "?"
    seconds = (now - self._started) * (self._total - self._done) / done
    return f"{max(seconds, 0):,.0f} s"


@contextlib.contextmanager
def progress(console: Console) -> Iterator[BuildProgress]:
  """What tells how far a build is, while entered."""
  if not console.is_watched:
    yield BuildProgress(console, None)
    return
  with rich.progress.Progress(
    rich.progress.TextColumn("{task.description}", markup=False),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TextColumn("{task.fields[facts]}", markup=False),
    rich.progress.TimeRemainingColumn(),
    console=console,
  ) as bar:
    yield BuildProgress(console, bar)


def show(
  stats: Mapping[str, Any], seconds: float, peak_bytes: int, console: Console
) -> None:
  """Prints what came out of a build.

  Args:
    stats: what `STATS.json` says.
    seconds: the build took, or its last leg.
    peak_bytes: of memory; 0 if not known.
    console: to print to.
  """
  from commentree.tasks.trees.comment_tree import ReadCounts

  read_counts = ReadCounts(
    **{k: collections.Counter(v) for k, v in stats["read_counts"].items()}
  )
  read_counts.tell(console)
  if stats["labels"]:
    console.print(_label_table(stats["labels"]))
  if stats["label_numbers"]["number"]:
    facts = stats["label_numbers"]
    console.print(
      f"labels of {facts['number']:,} comments are numbers: mean {facts['mean']},"
      f" standard deviation {facts['standard_deviation']}"
    )
  if "label_file" in stats:
    _tell_of_label_file(stats, console)
  table = rich.table.Table("", box=None, pad_edge=False)
  columns = ("mean", "p50", "p90", "p99", "max")
  for column in columns:
    table.add_column(column, justify="right")
  for name, numbers in stats["distributions"].items():
    if numbers["number"]:
      table.add_row(
        name.replace("_", " "), *(f"{numbers[column]:,}" for column in columns)
      )
  console.print(table)
  for split, facts in stats["splits"].items():
    console.print(
      f"{split}: {facts['trees']:,} trees in {facts['shards']:,} shards,"
      f" {facts['record_bytes'] / _MB:,.1f} MB",
    )
  for line in empty_splits(stats):
    console.print(line)
  size = sum(file["bytes"] for file in stats["made_from"]["input"])
  rate = stats["comments"] / seconds
  line = f"{stats['comments']:,} comments in {seconds:,.1f} s: {rate:,.0f} comments/s,"
  line += f" {size / seconds / _MB:,.1f} MB/s of input"
  if peak_bytes:
    line += f"; {peak_bytes / _MB:,.0f} MB of memory at most"
  console.print(line)


def _tell_of_label_file(stats: Mapping[str, Any], console: Console) -> None:
  """Prints what became of the labels of `--labels`."""
  facts, name = stats["label_file"], stats["made_from"]["labels"]["name"]
  table = rich.table.Table("", f"of {name}", box=None, pad_edge=False)
  table.add_column("number", justify="right")
  told = [
    ("labels", "met by a comment or post that was read", facts["met"]),
    ("labels", "met by none", facts["unmet"]),
    ("lines", "the same label again", facts["repeated"]),
    *(
      ("lines", fate, n)
      for fate, n in facts.items()
      if fate.startswith(("left out", "repaired"))
    ),
    ("comments", "read without a label there", facts["comments_without"]),
    ("comments", "and posts of an id that was read before", facts["met_again"]),
  ]
  for what, fate, number in told:
    if number or fate.startswith("met"):
      table.add_row(what, rich.text.Text(fate), f"{number:,}")
  console.print(table)
  if not facts["met"]:
    console.print(
      f"warning: {name}: no comment or post that was read has an id of this file"
      f" (read as {stats['made_from']['labels']['columns']}); compare some ids with"
      " those that `commentree inspect` shows",
      soft_wrap=True,
    )


def _label_table(labels: Mapping[str, Mapping[str, int]]) -> rich.table.Table:
  table = rich.table.Table("", "", box=None, pad_edge=False)
  for kind in ("comments", "posts"):
    table.add_column(kind, justify="right")
  for label, numbers in labels.items():
    table.add_row(
      "label",
      rich.text.Text(label),
      f"{numbers['comments']:,}",
      f"{numbers['posts']:,}",
    )
  return table


def empty_splits(stats: Mapping[str, Any]) -> Iterator[str]:
  """Yields a line for each split that was asked for and got no tree.

  Args:
    stats: what `STATS.json` says.
  """
  settings = stats["made_from"]["settings"]
  total = sum(facts["trees"] for facts in stats["splits"].values())
  if total and not stats["splits"].get("train", {}).get("trees"):
    yield (
      f"train: all of the {total:,} trees are held out: lower --validation_share, or"
      " give a later --validation_after"
    )
  for split in ("validation", "test"):
    if stats["splits"].get(split, {}).get("trees"):
      continue
    share, after = settings[f"{split}_share"], settings[f"{split}_after"]
    if settings["validation_after"] is not None:
      if after is not None:
        yield f"{split}: no tree began at --{split}_after or later: give another date"
    elif share:
      yield (
        f"{split}: --{split}_share={share} holds out none of the {total:,} trees: raise"
        " it" + (", or train with HELD_OUT_SHARE = 0" if split == "validation" else "")
      )
