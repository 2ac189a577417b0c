"""`commentree compare`: evaluations of several runs, side by side."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from commentree.errors import UserError
from commentree.launch.reports import compare_pictures, comparison

_EPILOG = """\
examples:
  two runs, at the last evaluation of each:
    commentree compare runs/pooled runs/pointer

  three seeds of each, as one row; what each saves against the first:
    commentree compare "own words=runs/own_*" "pointer=runs/pointer_*" \\
      --against="own words"

  after 1,000 steps, as a page, and a picture of all steps:
    commentree compare runs/* --step=1000 --output=results.md --picture=results.svg

A row tells the held-out loss with true ancestors, in nats a token, and how much larger
it is with ancestors of other trees, the parent alone and none; where runs have them
also how often a thread finds its reply and the share of copies. ± is a standard error:
over the runs of a row, or over held-out trees where the row is one run. What a row
saves is compared run by run, in the order of their names, where both rows have as many:
name seeds alike. Runs must have been evaluated on the same masked tokens.

exit codes: 0 done, 2 a mistake of the user's.
"""


def main(argv: Sequence[str]) -> int:
  """Compares; returns the exit code.

  Raises:
    UserError: if a run cannot be read or compared, or a file not written.
  """
  parser = argparse.ArgumentParser(
    prog="commentree compare",
    description="Put the evaluations of several runs side by side.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "runs",
    nargs="+",
    metavar="[LABEL=]MODEL_DIR",
    help="a run's folder; a glob of several with a label, for seeds of one model",
  )
  parser.add_argument("--step", type=int, help="of the evaluation; default the last")
  parser.add_argument(
    "--dataset", default="held_out", help="what was evaluated on (%(default)s)"
  )
  parser.add_argument("--against", metavar="LABEL", help="row that others are set off")
  parser.add_argument("--output", metavar="FILE", help="write the table there as well")
  parser.add_argument(
    "--picture", metavar="FILE", help="draw all evaluations: .svg, .pdf or .png"
  )
  arguments = parser.parse_args(argv)
  runs = {
    label: [comparison.read_run(folder, arguments.dataset) for folder in folders]
    for label, folders in comparison.labelled(arguments.runs)
  }
  rows = [
    comparison.row_at(label, of_label, arguments.step)
    for label, of_label in runs.items()
  ]
  text = comparison.markdown(rows, arguments.against)
  print(text, end="")
  if arguments.output is not None:
    try:
      pathlib.Path(arguments.output).write_text(text, encoding="utf-8")
    except OSError as error:
      raise UserError(f"--output={arguments.output}: {error.strerror}") from None
  if arguments.picture is not None:
    curves = {
      label: comparison.curve(label, of_label) for label, of_label in runs.items()
    }
    compare_pictures.draw(curves, arguments.picture)
  return 0


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
