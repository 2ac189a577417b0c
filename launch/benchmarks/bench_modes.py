"""`make modes`: comments a second of what `infer` does with a trained model.

  python -m commentree.launch.benchmarks.bench_modes --model_dir=runs/demo

All that the run can do, one mode after the other in every round, on the same trees;
compiling is not timed. Needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

import commentree
from commentree.console import Console
from commentree.launch.inference import trees
from commentree.launch.inference.model import LoadedModel
from commentree.launch.inference.modes import mode_table
from commentree.launch.settings import flags
from commentree.settings import check_range
from commentree.tasks.sources import generated
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

# What is timed of each mode, beside its defaults.
_OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
  ("embed", {}),
  ("embed", {"contextual": True}),
  ("fill", {}),
  ("score", {}),
  ("score", {"masks_apart": 8}),
  ("generate", {"max_tokens": 32}),
  ("tag", {}),
  ("classify", {}),
  ("regress", {}),
)


@dataclasses.dataclass(frozen=True)
class Rate:
  """How fast a mode is.

  Attributes:
    mode: its name.
    options: its own.
    seconds: of all comments, the median of the rounds.
    comments_per_second: of all that the trees have.
  """

  mode: str
  options: Mapping[str, Any]
  seconds: float
  comments_per_second: float


def possible(model: LoadedModel) -> list[tuple[str, Mapping[str, Any]]]:
  """Returns what is timed of a run: all that it can do."""
  config = model.run.config
  causal = "clm" in config.data.objective_names
  able = mode_table.able(config)
  return [
    (mode, options)
    for mode, options in _OPTIONS
    if mode in able and not (causal and "masks_apart" in options)
  ]


def measure(
  model: LoadedModel, found: Sequence[CommentTree], rounds: int
) -> Iterator[Rate]:
  """Times each mode of a model on the same trees, in turn."""
  comments = sum(len(tree.comments) for tree in found)
  masked = [_with_masks(tree) for tree in found]
  chosen = possible(model)

  def seconds(mode: str, options: Mapping[str, Any]) -> float:
    started = time.perf_counter()
    getattr(model, mode)(masked if mode == "fill" else found, **options)
    return time.perf_counter() - started

  for mode, options in chosen:
    getattr(model, mode)(masked[:1] if mode == "fill" else found[:1], **options)
  times = [[seconds(*one) for one in chosen] for _ in range(rounds)]
  for (mode, options), of_mode in zip(chosen, zip(*times)):
    middle = statistics.median(of_mode)
    yield Rate(mode, options, middle, comments / middle)


def _with_masks(tree: CommentTree) -> CommentTree:
  """Returns the tree with a mask behind each text."""
  comments = [
    dataclasses.replace(comment, text=f"{comment.text} <mask>")
    for comment in tree.comments
  ]
  return dataclasses.replace(tree, comments=comments)


def some_trees(model: LoadedModel, files: str | None, least: int) -> list[CommentTree]:
  """Returns trees of files, or generated ones, with so many comments at least."""
  config = model.run.config.data

  def read() -> Iterator[CommentTree]:
    if files is None:
      for index in range(least):
        yield generated.generate_tree(config.generated, config.generated.seed, index)
      return
    preprocessing = model.run.builder.preprocessing.trees
    for unit in trees.find([files], preprocessing).units:
      for tree, _ in unit.read(0, ReadCounts()):
        yield tree

  found, comments = list[CommentTree](), 0
  for tree in read():
    found.append(tree)
    comments += len(tree.comments)
    if comments >= least:
      break
  return found


def main(argv: Sequence[str]) -> int:
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m commentree.launch.benchmarks.bench_modes",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--model_dir", required=True, help="of a run that was trained")
  parser.add_argument("--input", help="tree files; generated trees without")
  flags.add_number(parser, "--comments", 200, "comments to answer for, at least")
  flags.add_number(parser, "--rounds", 3, "times that each mode is timed")
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  arguments = parser.parse_args(argv)
  check_range("bench_modes", "--rounds", arguments.rounds, 1)
  check_range("bench_modes", "--comments", arguments.comments, 1)
  model = commentree.load(arguments.model_dir)
  found = some_trees(model, arguments.input, arguments.comments)
  rates = list(measure(model, found, arguments.rounds))
  if arguments.json:
    print(json.dumps([dataclasses.asdict(rate) for rate in rates]))
    return 0
  import jax

  comments = sum(len(tree.comments) for tree in found)
  device = jax.devices()[0].device_kind
  table = Table(title=f"{comments:,} comments, {jax.device_count()} x {device}")
  table.add_column("mode")
  for heading in ("comments/s", "s"):
    table.add_column(heading, justify="right")
  for rate in rates:
    given = [f"--{name}={value}" for name, value in rate.options.items()]
    table.add_row(
      " ".join([rate.mode, *given]),
      f"{rate.comments_per_second:,.1f}",
      f"{rate.seconds:,.2f}",
    )
  Console().print(table)
  return 0


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
