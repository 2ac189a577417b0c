"""What `commentree compile` runs once its flags are sound."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from commentree.console import Console
from commentree.errors import UserError
from commentree.launch.settings import model_sizes, typical_forests
from commentree.launch.settings.configurables import RunConfig
from commentree.models.model import CommentTreeModel
from commentree.training.tpu_compile import ahead_of_time, compiled_report, topologies
from commentree.training.tpu_compile.ahead_of_time import PROGRAMS, CompilePlan

_VERSIONS = ("jax", "libtpu", "flax", "optax")


def make_plan(
  run: RunConfig,
  topology: topologies.Topology,
  *,
  vocab_size: int = 32128,
  comment_tokens: float = typical_forests.COMMENT_TOKENS,
) -> CompilePlan:
  """Returns what to compile for a run; a batch of 1 becomes a forest a device.

  Args:
    run: the settings.
    topology: the slices.
    vocab_size: of the model, if its settings leave it open.
    comment_tokens: mean tokens of a comment.

  Raises:
    UserError: if the objective needs another head than the model has.
  """
  shape, comments = typical_forests.typical_shape(run.data, comment_tokens)
  train = run.train
  if train.batch_size == 1:
    rows = len(topology.devices) * train.gradient_accumulation_steps
    train = dataclasses.replace(train, batch_size=rows)
  config = dataclasses.replace(run.model, vocab_size=run.model.vocab_size or vocab_size)
  config = model_sizes.with_sizes(
    config, run.data.preprocessing, config.vocab_size, run.data.objective_names[0]
  )
  return CompilePlan(
    model=CommentTreeModel(config),
    config=train,
    feature_shapes=shape.feature_shapes(),
    comments_per_forest=comments,
    topology=topology,
  )


def compile_programs(run: RunConfig, arguments: argparse.Namespace) -> int:
  """Compiles the programs asked for, one after the other; returns the exit code."""
  console = console_for(arguments.json)
  ahead_of_time.set_flags()
  names = chosen("program", arguments.program, PROGRAMS)
  plan = make_plan(
    run,
    topologies.open_topology(arguments.topology, arguments.num_slices),
    vocab_size=arguments.vocab_size,
    comment_tokens=arguments.comment_tokens,
  )
  reports = []
  for name in names:
    with console.status(f"compiling {name} for {plan.topology.name}"):
      report = ahead_of_time.compile_program(plan, name, arguments.effort)
    reports.append(report)
    console.print(compiled_report.render(report))
  if arguments.json:
    write_json(
      {"versions": versions(), "reports": [each.to_json() for each in reports]},
      arguments.json,
    )
  return 0 if all(report.fits for report in reports) else UserError.exit_code


def chosen(flag: str, names: str, known: Sequence[str]) -> list[Any]:
  """Returns names given with commas between.

  Raises:
    UserError: if one is not known, or none is given.
  """
  listed = [name.strip() for name in names.split(",") if name.strip()]
  for name in listed:
    if name not in known:
      raise UserError(f"--{flag}={names}: no {name!r}; there are {', '.join(known)}")
  if not listed:
    raise UserError(f"--{flag}: names none of {', '.join(known)}")
  return listed


def versions() -> dict[str, str]:
  """Returns the versions that decide what is reported."""
  return {name: importlib.metadata.version(name) for name in _VERSIONS}


def console_for(json_path: str | None) -> Console:
  """Returns a console that leaves stdout to the JSON, if that is to go there."""
  return Console(stderr=json_path == "-")


def write_json(content: object, path: str) -> None:
  """Writes JSON to a file, or to stdout for `-`.

  Raises:
    UserError: if the file cannot be written.
  """
  text = json.dumps(content, indent=2)
  if path == "-":
    print(text)
    return
  try:
    pathlib.Path(path).write_text(text + "\n")
  except OSError as error:
    raise UserError(f"--json={path}: {error.strerror}") from error
