"""The command itself, before any verb."""

import os
import re
import subprocess
import sys

import pytest

from commentree.launch.commands.launch import TARGETS
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


def help_of(verb, capsys):
  with pytest.raises(SystemExit) as ended:
    main([*verb.split(), "--help"])
  assert ended.value.code == 0
  return capsys.readouterr().out


@pytest.mark.parametrize(
  "verb", [*sorted({*VERBS} - {"launch"}), *(f"launch {t}" for t in TARGETS)]
)
def test_examples_of_help_keep_their_line_breaks(verb, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  examples = help_of(verb, capsys).partition("examples:")[2]
  # A line that lost its break has the next one's indent within.
  assert not re.findall(r"^ {4,6}\S+ .*\S {4,}--.*$", examples, re.MULTILINE)


@pytest.mark.parametrize(
  "verb", ["train", "eval", "infer", "cache", "convert", "export", "compile"]
)
def test_settings_are_listed_among_the_options_of_each_verb_that_takes_them(
  verb, capsys
):
  options = help_of(verb, capsys).partition("examples:")[0]
  assert re.search(r"^  --gin\.NAME=VALUE +", options, re.MULTILINE)
