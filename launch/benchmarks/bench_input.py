"""`make feed`: how fast one core of a host feeds forests to a TPU chip.

Two stages, each timed in seconds of CPU time over all threads, which is what one core
does in a second, whatever else the machine does:

  batches   prepared subtrees, as a run reads them at every step: read, masked, packed
            into forests, stacked to batches
  subtrees    trees, as a run reads them once: read, cleaned, tokenised, cut into
    subtrees
  both      the two one after the other for every forest, as if nothing was prepared

The chip takes as many forests a second as `docs/aot.jsonl` says of a model's train step
on a slice: shapes are static, so a step takes like long whatever comments it holds.
Comments and target tokens are counted, too, since other data has longer comments.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.settings import flags, library_noise
from commentree.tasks.data_config import DataConfig

_AOT = pathlib.Path(__file__).parents[2] / "docs" / "aot.jsonl"
_BATCH_SIZE = 4
_WARM_UP_BATCHES = 5


@dataclasses.dataclass(frozen=True)
class Rate:
  """What one CPU second did: forests, comments, tokens to predict from."""

  forests: float
  comments: float
  tokens: float


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip takes, by the compiler's estimate."""

  name: str
  forests: float
  comments: float


def chip_rate(size: str, topology: str) -> Chip | None:
  """What a chip takes, from the table of compiled steps; None without a checkout."""
  if not _AOT.exists():
    return None
  for line in _AOT.read_text().splitlines():
    row = json.loads(line)
    cell, report = row["cell"], row.get("report")
    if report and (cell["size"], cell["topology"]) == (size, topology):
      per_chip = report["batch_size"] / report["chips"] / report["step_seconds"]
      return Chip(
        f"{size} on {topology}", per_chip, report["comments_per_second_per_chip"]
      )
  raise UserError(f"--chip={size}/{topology}: docs/aot.jsonl has no such row")


def time_batches(opened: Any, seed: int, seconds: float) -> Rate:
  """Times a run's batches; prepared subtrees are in the system's cache after the first.

  Args:
    opened: what `data.open_data` returns.
    seed: of the run.
    seconds: of CPU time to spend.
  """
  from commentree.tasks.forests.packing import Fill

  batches = opened.train_batches(_BATCH_SIZE, seed)
  for _ in range(_WARM_UP_BATCHES):
    next(batches)
  fill, count, spent = Fill(), 0, 0.0
  while spent < seconds:
    started = time.process_time()
    batch = next(batches)
    spent += time.process_time() - started
    count += _BATCH_SIZE
    fill.add(batch)
  return Rate(count / spent, fill.comments / spent, fill.decoder_tokens / spent)


def time_subtrees(opened: Any, seconds: float) -> tuple[float, float]:
  """Times the making of subtrees; returns (comments, target tokens) a CPU second."""
  builder = opened.task.subtree_builder()
  tokens = comments = 0
  started = time.process_time()
  for tree in itertools.chain.from_iterable(
    opened.task.tree_source.trees("train") for _ in itertools.count()
  ):
    for subtree in builder(tree):
      tokens += int((subtree["lengths"] * subtree["is_target"]).sum())
      comments += int(subtree["is_target"].sum())
    if time.process_time() - started > seconds:
      break
  spent = time.process_time() - started
  return comments / spent, tokens / spent


def measure(opened: Any, rounds: int, seconds: float) -> dict[str, Rate]:
  """Times both stages in turn; medians over the rounds."""
  batches, subtrees = [], []
  for seed in range(rounds):
    batches.append(time_batches(opened, seed, seconds))
    subtrees.append(time_subtrees(opened, seconds))
  median: Callable[[Sequence[float]], float] = statistics.median
  packed = Rate(
    *(median([getattr(b, f.name) for b in batches]) for f in dataclasses.fields(Rate))
  )
  comments, tokens = (median([p[i] for p in subtrees]) for i in range(2))
  tokens_of_forest = packed.tokens / packed.forests
  made = Rate(tokens / tokens_of_forest, comments, tokens)

  def in_turn(one: float, other: float) -> float:
    return 1 / (1 / one + 1 / other)

  both = Rate(
    in_turn(packed.forests, made.forests),
    in_turn(packed.comments, made.comments),
    in_turn(packed.tokens, made.tokens),
  )
  return {"batches": packed, "subtrees": made, "both": both}


def main(argv: Sequence[str]) -> int:
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m commentree.launch.benchmarks.bench_input",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--files", help="trees, or a built dataset; generated trees without"
  )
  parser.add_argument("--vocabulary", help="for --files")
  parser.add_argument(
    "--chip",
    default="base/v5e:4x4",
    metavar="SIZE/SLICE",
    help="row of docs/aot.jsonl to compare with (default %(default)s)",
  )
  flags.add_number(parser, "--rounds", 3, "times that each stage is timed")
  flags.add_number(parser, "--seconds", 5, "CPU time of each")
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  arguments = parser.parse_args(argv)
  size, _, topology = arguments.chip.partition("/")
  chip = chip_rate(size, topology)

  library_noise.load_tensorflow()
  from commentree.tasks import data
  from commentree.tasks.seqio_tasks import registry

  with tempfile.TemporaryDirectory() as cache_dir:
    opened = data.open_data(
      DataConfig(
        registry.FILES if arguments.files else registry.GENERATED,
        {"encoder": 128, "decoder": 128},
        files=arguments.files,
        vocabulary=arguments.vocabulary,
        cache_dir=cache_dir,
      ),
      Console(stderr=True),
      splits=("train",),
    )
    rates = measure(opened, arguments.rounds, arguments.seconds)
  if arguments.json:
    print(
      json.dumps(
        {
          "shape": dataclasses.asdict(opened.shape),
          "chip": chip and dataclasses.asdict(chip),
          **{stage: dataclasses.asdict(rate) for stage, rate in rates.items()},
        }
      )
    )
    return 0
  table = Table(title="one core", title_justify="left")
  table.add_column("stage")
  for heading in ("comments/s", "target tokens/s", "forests/s", "a chip's forests"):
    table.add_column(heading, justify="right")
  for stage, rate in rates.items():
    times = f"{rate.forests / chip.forests:.1f}x" if chip else ""
    table.add_row(
      stage,
      f"{rate.comments:,.0f}",
      f"{rate.tokens:,.0f}",
      f"{rate.forests:,.1f}",
      times,
    )
  if chip:
    table.add_row(chip.name, f"{chip.comments:,.0f}", "", f"{chip.forests:.1f}", "1.0x")
  Console().print(table)
  return 0


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
