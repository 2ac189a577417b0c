"""`commentree eval`: does context help a trained model?"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from commentree.launch.settings import (
  distributed_flags,
  gin_cli,
  library_noise,
  run_folder,
)

_EPILOG = (
  """\
examples:
  the newest checkpoint, on all held-out trees:
    commentree eval --model_dir=runs/mine

  of a run in a bucket:
    commentree eval --model_dir=gs://bucket/runs/mine

  the best one, on other trees, as JSON too:
    commentree eval --model_dir=runs/mine --step=best --json=results.json \\
      --gin.FILES='"other/*.jsonl.gz"' --gin.HELD_OUT_SHARE=1.0

Settings are those the run was started with (MODEL_DIR/config.gin); --gin.NAME=VALUE
changes them.

"""
  + distributed_flags.EPILOG
  + """
exit codes: 0 done, 2 a mistake of the user's, 75 a host was lost or never came.
"""
)


def main(argv: Sequence[str]) -> int:
  """Evaluates; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="commentree eval",
    description="Evaluate a checkpoint with true, shuffled, parent-only, no ancestors.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  run_folder.add_flags(parser)
  parser.add_argument(
    "--batches", type=int, help="most batches; default all held-out trees"
  )
  parser.add_argument("--json", metavar="FILE", help="also write the results there")
  distributed_flags.add_flags(parser)
  others, overrides = gin_cli.split_overrides(argv)
  arguments = parser.parse_args(others)
  settings = distributed_flags.settings(arguments)
  run = run_folder.load(
    arguments.model_dir, overrides, trust_config=arguments.trust_config, say=_say
  )

  # The settings are sound: now what is heavy.
  library_noise.load_tensorflow_for(run)
  from commentree.launch import assemble_run
  from commentree.training import runtime
  from commentree.training.cluster import distributed

  with distributed.join_cluster(
    settings, run.train.health, arguments.log_dir, arguments.model_dir
  ) as hosts:
    results = assemble_run.evaluate(run, hosts, arguments.step, arguments.batches)
  if arguments.json and runtime.is_chief():
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")
  return 0


def _say(line: str) -> None:
  print(f"commentree: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
