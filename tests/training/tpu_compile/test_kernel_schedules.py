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


# Of a chip the rows and heads that take the most for a register of scores, and base's.
@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
  "topology", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
)
def test_kernels_take_as_many_bundles_as_reports_count_at_most(
  topology, width, tmp_path
):
  run = subprocess.run(
    [sys.executable, str(_SCRIPT), str(tmp_path), topology, "128", str(width)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=_SECONDS,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  found = json.loads(run.stdout.splitlines()[-1])
  expected = compiled_costs.KERNEL_CYCLES[topology.split(":")[0]]
  assert found.keys() == expected.keys()
  for name, most in expected.items():
    # Wide heads are what takes the most; of base's, kernels take at least half of it.
    assert 0.5 * most < found[name] <= most, name
    if width == 128:
      assert most < found[name] + 1.5, name
