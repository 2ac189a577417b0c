"""The tests themselves, where the shell has them ignore signals (`make test &`)."""

import os
import signal
import subprocess
import sys

import pytest

_SHOW = """
import signal
print(signal.getsignal(signal.{name}) == signal.SIG_IGN)
import tests.conftest
import subprocess, sys
code = "import signal; print(signal.getsignal(signal.{name}) == signal.SIG_IGN)"
subprocess.run([sys.executable, "-c", code])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_child_of_a_test_does_not_ignore_what_the_shell_ignores(name, pytestconfig):
  number = getattr(signal, name)
  done = subprocess.run(
    [sys.executable, "-u", "-c", _SHOW.format(name=name)],
    capture_output=True,
    text=True,
    cwd=pytestconfig.rootpath,
    env={**os.environ, "PYTHONPATH": os.fspath(pytestconfig.rootpath)},
    preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
  )
  assert done.stdout.split() == ["True", "False"], done.stderr
