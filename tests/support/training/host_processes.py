"""Starts the hosts of a run, `run_host.py`, on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

from commentree.training.cluster.coordination import host_secret

_SCRIPT = pathlib.Path(__file__).with_name("run_host.py")
_SECONDS = 120
SECRET = "a secret that only these tests know"


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a host ended."""

  code: int
  out: list[str]
  err: list[str]
  seconds: float


class Hosts:
  """Processes of one run, or of several; killed in the end, whatever comes."""

  def __init__(self, log_dir: pathlib.Path):
    self._log_dir = log_dir
    self._started: list[subprocess.Popen[str]] = []

  def start(
    self, count: int, *each: dict[str, Any], secret: str | None = SECRET, **options
  ) -> list:
    """Starts a process for each of `each`, which holds its own options.

    All are given the secret, but those whose own options say another.
    """
    options = {
      "address": f"127.0.0.1:{free_port()}",
      "count": count,
      "log_dir": str(self._log_dir),
      **options,
    }
    processes = [
      subprocess.Popen(
        [sys.executable, str(_SCRIPT), json.dumps({**options, **own})],
        env=_environment(own.get("secret", secret)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for own in each
    ]
    self._started += processes
    return processes

  def kill_all(self) -> None:
    for process in self._started:
      process.kill()
      process.communicate()

  def log(self, index: int) -> str:
    return (self._log_dir / f"host_{index}.log").read_text()


def _environment(secret: str | None) -> dict[str, str]:
  given = {} if secret is None else {host_secret.VARIABLE: secret}
  return {**os.environ, "JAX_PLATFORMS": "cpu", **given}


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def at_step(process: subprocess.Popen[str], step: int) -> None:
  """Waits until a host has come to a step."""
  assert any(line == f"step {step}\n" for line in process.stdout)


def ends(*processes: subprocess.Popen[str]) -> list[Ended]:
  """Waits for the end of all."""
  start = time.monotonic()
  ended = []
  for process in processes:
    out, err = process.communicate(timeout=_SECONDS)
    seconds = time.monotonic() - start
    ended.append(Ended(process.returncode, out.split("\n"), err.splitlines(), seconds))
  return ended
