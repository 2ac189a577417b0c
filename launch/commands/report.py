"""`commentree report`: a run as one page."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from commentree.errors import UserError
from commentree.launch.reports import run_page, samples
from commentree.launch.reports.samples import Sample
from commentree.launch.settings import run_folder

_EPILOG = """\
examples:
  what a run has come to, to look at in a browser:
    commentree report --model_dir=runs/mine --html=mine.html

  and how its model reads a few threads of a file:
    commentree report --model_dir=runs/mine --html=mine.html --samples held_out.jsonl

The page holds the evaluations (loss under each condition, what ancestors save with its
standard error, slices), the training's curves, where the time went, and the settings;
with --samples also comments with some words hidden, what the model puts there, and how
much each comment above them counts.
It needs no network and runs no script. A run that is still going can be reported too.

exit codes: 0 done, 2 a mistake of the user's.
"""


def main(argv: Sequence[str]) -> int:
  """Writes the page; returns the exit code.

  Raises:
    UserError: if the run cannot be read, or the page not written.
  """
  parser = argparse.ArgumentParser(
    prog="commentree report",
    description="Show a run as one page of HTML.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  run_folder.add_folder_flags(parser, required=True)
  parser.add_argument("--html", required=True, metavar="FILE", help="the page to write")
  parser.add_argument(
    "--samples",
    nargs="+",
    metavar="TREES",
    help="trees, as files, globs or folders, to show some threads, best held-out"
    " ones. The model is loaded for it",
  )
  parser.add_argument(
    "--num_samples", type=int, default=5, metavar="N", help="of threads (default 5)"
  )
  arguments = parser.parse_args(argv)
  if arguments.num_samples < 1:
    raise UserError(f"--num_samples={arguments.num_samples}: must be at least 1")
  log = run_page.read(arguments.model_dir)
  if arguments.samples:
    run_page.write(log, arguments.html)  # samples take a while, and may fail
    log = dataclasses.replace(log, samples=_samples(arguments))
  run_page.write(log, arguments.html)
  print(arguments.html)
  return 0


def _samples(arguments: argparse.Namespace) -> list[Sample]:
  """Has the run's model read some threads of --samples."""
  from commentree.launch.inference import model as model_lib
  from commentree.launch.inference import trees

  model = model_lib.load(arguments.model_dir, trust_config=arguments.trust_config)
  samples.check(model)
  config = model.run.builder.preprocessing.trees
  threads = samples.choose(
    trees.find(arguments.samples, config).trees(), arguments.num_samples
  )
  if not threads:
    raise UserError(
      f"--samples={' '.join(arguments.samples)}: holds no comment with words; give"
      " files of trees"
    )
  return samples.read(model, threads, lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
