"""`commentree eval`: does context help a trained model?"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from ..errors import StorageError, UserError
from . import distributed_flags, gin_cli, quiet

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


def _step(text: str) -> int | str:
  if text == "best":
    return text
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r}: give a step, or 'best', or nothing for the newest"
    ) from None


@contextlib.contextmanager
def _config_of(model_dir: str) -> Iterator[str]:
  """Yields the path of a run's settings; of a run in a bucket, that of a copy."""
  missing = UserError(
    f"--model_dir={model_dir}: holds no config.gin; give the MODEL_DIR of a run made by"
    " `commentree train`"
  )
  if "://" not in model_dir:
    config = pathlib.Path(model_dir).expanduser() / "config.gin"
    if not config.is_file():
      raise missing
    yield str(config.absolute())
    return
  from ..training import storage

  remote = storage.as_path(model_dir) / "config.gin"
  try:
    text = remote.read_text() if remote.exists() else None
  except Exception as error:
    if not storage.refused(error):
      raise
    raise StorageError(
      f"--model_dir={model_dir} cannot be read ({storage.reason(error)})"
    ) from error
  if text is None:
    raise missing
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, "config.gin")
    copy.write_text(text)
    yield str(copy)


def main(argv: Sequence[str]) -> int:
  """Evaluates; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="commentree eval",
    description="Evaluate a checkpoint with true, shuffled, parent-only, no ancestors.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--model_dir", required=True, help="folder of a training run")
  parser.add_argument(
    "--step", type=_step, help="checkpoint to evaluate, or 'best'; default the newest"
  )
  parser.add_argument(
    "--batches", type=int, help="most batches; default all held-out trees"
  )
  parser.add_argument("--json", metavar="FILE", help="also write the results there")
  distributed_flags.add_flags(parser)
  others, overrides = gin_cli.split_overrides(argv)
  arguments = parser.parse_args(others)
  settings = distributed_flags.settings(arguments)
  # A run's folder may have been moved since.
  where = f"MODEL_DIR = {arguments.model_dir!r}"
  with _config_of(arguments.model_dir) as config:
    run = gin_cli.load([config], [where, *overrides])

  # The settings are sound: now what is heavy.
  quiet.load_tensorflow()
  from ..training import distributed, runtime
  from . import job

  with distributed.joined(
    settings, run.train.health, arguments.log_dir, arguments.model_dir
  ) as hosts:
    results = job.evaluate(run, hosts, arguments.step, arguments.batches)
  if arguments.json and runtime.is_chief():
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  import sys

  from .main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
