from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from commentree.launch.settings import library_noise


@pytest.fixture
def machine(monkeypatch):
  """Makes a machine with these device files and libtpu; returns its environment."""

  def make(*devices: str, libtpu: bool = True):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(
      library_noise.glob,
      "glob",
      lambda pattern: [d for d in devices if d.startswith(pattern.split("[")[0][:-1])],
    )
    monkeypatch.setattr(
      importlib.util, "find_spec", lambda name: object() if libtpu else None
    )
    library_noise.disable_libtpu_without_tpu()
    chosen = os.environ.get("JAX_PLATFORMS")
    # What the function set is not monkeypatch's to undo.
    os.environ.pop("JAX_PLATFORMS", None)
    return chosen

  before = os.environ.get("JAX_PLATFORMS")
  yield make
  if before is not None:
    os.environ["JAX_PLATFORMS"] = before


def test_without_an_accelerator_jax_is_told_to_use_the_cpu(machine):
  assert machine() == "cpu"


@pytest.mark.parametrize("device", ["/dev/accel0", "/dev/vfio/0", "/dev/nvidia0"])
def test_with_an_accelerator_the_choice_is_jaxs(machine, device):
  assert machine(device) is None


def test_without_libtpu_nothing_is_set(machine):
  assert machine(libtpu=False) is None


def test_a_users_own_choice_stands(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
  library_noise.disable_libtpu_without_tpu()
  assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"


@pytest.mark.long
def test_jax_says_nothing_on_a_machine_with_libtpu_and_no_tpu():
  environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      "from commentree.launch.settings import library_noise;"
      " library_noise.disable_libtpu_without_tpu();"
      "import jax; jax.devices()",
    ],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert done.stderr == ""
