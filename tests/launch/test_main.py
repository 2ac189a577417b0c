"""The command itself, before any verb."""

import os
import subprocess
import sys

from commentree.launch.main import VERBS, main


def test_help_names_every_verb_and_takes_it_that_nobody_reads_on(capsys):
  assert main(["--help"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)
  read, written = os.pipe()
  os.close(read)
  command = [sys.executable, "-m", "commentree.launch.main", "--help"]
  ended = subprocess.run(command, stdout=written, stderr=subprocess.PIPE)
  os.close(written)
  assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_unknown_verb_is_one_line_that_names_those_there_are(capsys):
  assert main(["trian"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("commentree: no verb 'trian'; there are train, ")
  assert error.count("\n") == 1
