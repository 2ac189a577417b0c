"""Stands in for commentree on a worker: the real supervisor over a small trainer."""

import pathlib
import sys

from commentree.launch.main import run_verb
from commentree.launch.supervision import local, supervise

if __name__ == "__main__":
  launch, target, *flags = sys.argv[1:]
  assert (launch, target) == ("launch", "supervise"), sys.argv
  trainer = str(pathlib.Path(__file__).with_name("trainer.py"))
  local.program = lambda: [sys.executable, trainer]
  sys.exit(run_verb(supervise.main, flags))
