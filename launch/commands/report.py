"""`commentree report`: a run as one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from commentree.launch.reports import run_page

_EPILOG = """\
examples:
  what a run has come to, to look at in a browser:
    commentree report --model_dir=runs/mine --html=mine.html

The page holds the evaluations (loss under each condition, what ancestors save with its
standard error, slices), the training's curves, where the time went, and the settings.
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
  parser.add_argument(
    "--model_dir", required=True, metavar="DIR", help="the run's folder, gs:// as well"
  )
  parser.add_argument("--html", required=True, metavar="FILE", help="the page to write")
  arguments = parser.parse_args(argv)
  run_page.write(run_page.read(arguments.model_dir), arguments.html)
  print(arguments.html)
  return 0


if __name__ == "__main__":
  from commentree.launch.main import run_verb

  sys.exit(run_verb(main, sys.argv[1:]))
