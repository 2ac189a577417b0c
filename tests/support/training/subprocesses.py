"""Starts `run_training.py` in processes of their own."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

_SCRIPT = pathlib.Path(__file__).with_name("run_training.py")
_SECONDS = 500


def run(devices: int = 1, **options) -> subprocess.CompletedProcess[str]:
  """Trains; returns the exit code, output and errors."""
  (result,) = run_hosts(1, devices, **options)
  return result


def run_hosts(
  hosts: int, devices: int = 1, **options
) -> list[subprocess.CompletedProcess[str]]:
  """Trains over as many processes of as many devices each; returns how each ended.

  An option `only` maps a host to options of its own.
  """
  only = options.pop("only", {})
  count = f"--xla_force_host_platform_device_count={devices}"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {count}"
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  address = f"127.0.0.1:{_free_port()}"
  processes = []
  for host in range(hosts):
    own = {**options, **only.get(host, {})}
    if hosts > 1:
      own["place"] = [address, hosts, host]
    command = [sys.executable, str(_SCRIPT), json.dumps(own)]
    pipe = subprocess.PIPE
    processes.append(
      subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)
    )
  try:
    results = [process.communicate(timeout=_SECONDS) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    subprocess.CompletedProcess(process.args, process.returncode, *output)
    for process, output in zip(processes, results)
  ]


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]
