"""The cycles that reports count for kernels are those of libtpu's schedules."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from commentree.training.tpu_compile import compiled_costs

_SCRIPT = pathlib.Path(__file__).parents[2] / "support/training/kernel_schedules.py"
_SECONDS = 300


@pytest.mark.slow
def test_kernels_take_as_many_bundles_as_reports_count_at_most(tmp_path):
  run = subprocess.run(
    [sys.executable, str(_SCRIPT), str(tmp_path)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=_SECONDS,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  found = json.loads(run.stdout.splitlines()[-1])
  assert found.keys() == compiled_costs.KERNEL_CYCLES.keys()
  for name, most in compiled_costs.KERNEL_CYCLES.items():
    assert 0.4 * most < found[name] <= most, name
