"""Starts `run_training.py` in a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

_SCRIPT = pathlib.Path(__file__).with_name("run_training.py")


def run(devices: int = 1, **options) -> subprocess.CompletedProcess[str]:
  """Trains; returns the exit code, output and errors."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.run(
    [sys.executable, str(_SCRIPT), json.dumps(options)],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=500,
    check=False,
  )
