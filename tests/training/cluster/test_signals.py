from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from commentree.training.cluster import signals

_PROGRAM = """
import os, signal, time
from commentree.training.cluster import signals
with signals.StopRequest() as stop:
  for _ in range(2):
    os.kill(os.getpid(), signal.{name})
    time.sleep({pause})
  print("lived on", stop.number)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_remembered_and_its_echo_changes_nothing(name):
  number = getattr(signal, name)
  before = signal.getsignal(number)
  with signals.StopRequest() as stop:
    assert not stop
    assert stop.number == 0
    for _ in range(2):
      os.kill(os.getpid(), number)
      time.sleep(0.01)
    assert stop
    assert stop.number == number
  assert signal.getsignal(number) == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_same_signal_later_takes_its_usual_effect(name):
  program = _PROGRAM.format(name=name, pause=0.2).replace(
    "with", "signals._ECHO_SECONDS = 0.1\nwith", 1
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.returncode == -getattr(signal, name)
  assert "lived on" not in done.stdout
