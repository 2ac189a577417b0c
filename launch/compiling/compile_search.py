"""`commentree compile --search`: the settings to try, and the flags of the best."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from typing import get_args

from commentree.errors import UserError
from commentree.launch.compiling import compile_job
from commentree.launch.settings.configurables import RunConfig
from commentree.models.config import RematPolicy
from commentree.training.config import PRESETS
from commentree.training.tpu_compile import ahead_of_time, compiled_report, topologies
from commentree.training.tpu_compile import search as search_lib
from commentree.training.tpu_compile.ahead_of_time import CompilePlan
from commentree.training.tpu_compile.search import Candidate


def search(run: RunConfig, arguments: argparse.Namespace) -> int:
  """Searches and recommends; returns 0 if anything fits."""
  console = compile_job.console_for(arguments.json)
  ahead_of_time.set_flags()
  topology = topologies.open_topology(arguments.topology, arguments.num_slices)

  def plan_for(candidate: Candidate) -> CompilePlan:
    return compile_job.make_plan(
      with_candidate(run, candidate, len(topology.devices)),
      topology,
      vocab_size=arguments.vocab_size,
      comment_tokens=arguments.comment_tokens,
    )

  groups = search_lib.series(
    _presets(arguments.presets, arguments.model_parallel),
    compile_job.chosen("remat", arguments.remat, get_args(RematPolicy)),
    _numbers("forests_per_device", arguments.forests_per_device),
  )
  outcomes = search_lib.search(
    groups,
    plan_for,
    lambda line: console.print(line),
    arguments.effort,
  )
  console.print(search_lib.table(outcomes))
  best = search_lib.fastest(outcomes)
  flags = (
    flags_of(best.candidate, best.report.batch_size) if best and best.report else []
  )
  if best and best.report:
    console.print(f"fastest that fits: {best.candidate}. Train with")
    console.print("  " + shlex.join(flags))
    console.print(compiled_report.render(best.report))
  else:
    console.print(
      "nothing fits: take more chips, smaller forests (ForestLayout.decoder_rows),"
      " or a smaller model"
    )
  if arguments.json:
    content = {
      "versions": compile_job.versions(),
      "recommended": flags,
      "outcomes": [outcome.to_json() for outcome in outcomes],
    }
    compile_job.write_json(content, arguments.json)
  return 0 if best else UserError.exit_code


def with_candidate(run: RunConfig, candidate: Candidate, devices: int) -> RunConfig:
  """Returns the run's settings with a candidate's in place of theirs."""
  train = run.train
  partitioning = dataclasses.replace(
    train.partitioning,
    fsdp_parallel=PRESETS[candidate.preset]["fsdp_parallel"] or 1,
    model_parallel=candidate.model_parallel,
  )
  return dataclasses.replace(
    run,
    model=dataclasses.replace(run.model, remat_policy=candidate.remat_policy),
    train=dataclasses.replace(
      train,
      partitioning=partitioning,
      batch_size=candidate.forests_per_device
      * devices
      * train.gradient_accumulation_steps,
    ),
  )


def flags_of(candidate: Candidate, batch_size: int) -> list[str]:
  """Returns the flags of `commentree train` that set a candidate."""
  flags = [
    f"--gin_file=partitioning/{candidate.preset}.gin",
    f"--gin.BATCH_SIZE={batch_size}",
    f'--gin.ModelConfig.remat_policy="{candidate.remat_policy}"',
  ]
  if candidate.model_parallel > 1:
    flags.append(f"--gin.MODEL_PARALLEL={candidate.model_parallel}")
  return flags


def _presets(names: str, model_parallel: str) -> list[tuple[str, int]]:
  """Returns presets with each number of model-parallel devices that they leave open."""
  sizes = _numbers("model_parallel", model_parallel)
  presets = []
  for name in compile_job.chosen("presets", names, list(PRESETS)):
    fixed = PRESETS[name]["model_parallel"]
    presets += [(name, size) for size in ([fixed] if fixed else sizes)]
  return presets


def _numbers(flag: str, text: str) -> list[int]:
  """Returns whole numbers given with commas between.

  Raises:
    UserError: if one is not a number of at least 1.
  """
  try:
    numbers = [int(part) for part in text.split(",") if part.strip()]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < 1:
    raise UserError(f"--{flag}={text}: give whole numbers of at least 1, as in 1,2,4")
  return numbers
