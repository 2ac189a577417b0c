"""`commentree train`: settings, data, model, trainer."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from commentree.launch.settings import (
  distributed_flags,
  early_checks,
  gin_cli,
  library_noise,
)
from commentree.launch.settings.configurables import RunConfig
from commentree.training.reports.clock import Clock

_EPILOG = (
  """\
examples:
  train a tiny model on generated trees (nothing else needed):
    commentree train --gin_file=runs/demo.gin --gin.MODEL_DIR='"runs/demo"'

  train on your own trees, after `commentree vocab --input=trees.jsonl.gz
  --output=trees.model`:
    commentree train --gin_file=runs/pretrain.gin \\
      --gin.MODEL_DIR='"runs/mine"' --gin.MIXTURE_OR_TASK_NAME='"commentree_files"' \\
      --gin.FILES='"trees.jsonl.gz"' --gin.VOCABULARY='"trees.model"' \\
      --gin.TRAIN_STEPS=10000

  a larger model: add --gin_file=models/base.gin; on two devices a model:
    --gin.MODEL_PARALLEL=2

The same command again resumes from the newest checkpoint in MODEL_DIR.

"""
  + distributed_flags.EPILOG
  + """
exit codes: 0 done, 2 a mistake of the user's, 74 storage refused, 75 a host was lost
or never came, 130 and 143 interrupted and saved.
"""
)


def main(argv: Sequence[str]) -> int:
  """Trains; returns the exit code."""
  clock = Clock()
  parser = argparse.ArgumentParser(
    prog="commentree train",
    description="Train a model on trees of comments; settings come from gin files.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  gin_cli.add_gin_flags(parser)
  distributed_flags.add_flags(parser)
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="check the settings, print them and the parameters' shardings, and stop",
  )
  parsed = gin_cli.parse(parser, argv)
  settings = distributed_flags.settings(parsed.arguments)
  run = parsed.run
  early_checks.check_settings(run)

  # Files are there: now JAX, which is heavier.
  with clock.on("imports"):
    from commentree.training.cluster import distributed

    early_checks.check_training(run)
  if parsed.arguments.dry_run:
    print(parsed.text)
    return _describe(run)
  with contextlib.ExitStack() as stack:
    with clock.on("hosts"):
      hosts = stack.enter_context(
        distributed.join_cluster(
          settings, run.train.health, parsed.arguments.log_dir, run.train.model_dir
        )
      )
      early_checks.check_devices(run.train)
    for line in early_checks.advice(run.train):
      hosts.say(line)

    with clock.on("imports"):
      library_noise.load_tensorflow_for(run)
      from commentree.launch import assemble_run
    return assemble_run.train(run, parsed.text, hosts, clock)


def _describe(run: RunConfig) -> int:
  for line in early_checks.advice(run.train):
    print(line)
  library_noise.load_tensorflow_for(run)
  from commentree.launch import assemble_run

  return assemble_run.describe(run)


if __name__ == "__main__":
  import sys

  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
