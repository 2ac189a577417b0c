from __future__ import annotations

import importlib.util
import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from commentree.errors import UserError
from commentree.training.tpu_compile import compiled_costs, flops, hlo, topologies
from commentree.training.tpu_compile.tpu_chips import CHIPS, GIB

DEVICE_KINDS = {
  "v2": "TPU v2",
  "v3": "TPU v3",
  "v4": "TPU v4",
  "v5e": "TPU v5 lite",
  "v5p": "TPU v5",
  "v6e": "TPU v6 lite",
  "tpu7x": "TPU7x",
}
SMALLEST = {
  name: "2x2" if chip.dimensions == 2 else "2x2x1" for name, chip in CHIPS.items()
}

REST = ("v2", "v3", "v5p", "v6e", "tpu7x")


@pytest.mark.parametrize(
  ("name", "proper"),
  [
    ("v5e:16x16", "v5e:16x16"),
    ("v5e-256", "v5e:16x16"),
    ("v5litepod-8", "v5e:2x4"),
    ("v6e-1", "v6e:1x1"),
    ("v2-8", "v2:2x2"),
    ("v3-32", "v3:4x4"),
    ("v4-8", "v4:2x2x1"),
    ("v4-64", "v4:2x4x4"),
    ("v5p-128", "v5p:4x4x4"),
    ("TPU7x-128", "tpu7x:4x4x4"),
  ],
)
def test_a_slice_goes_by_its_shape_or_by_googles_name(name, proper):
  chip, shape = topologies.parse_name(name)
  assert f"{chip.name}:{'x'.join(map(str, shape))}" == proper


@pytest.mark.parametrize("generation", list(CHIPS))
def test_a_slice_has_the_devices_that_jax_shows_on_it(generation):
  found = topologies.open_topology(f"{generation}:{SMALLEST[generation]}")
  assert found.chips == 4
  # v4 and v5p show a device a chip; the cores of v2, v3 and TPU7x are devices.
  assert len(found.devices) == 4 * CHIPS[generation].devices
  assert found.devices[0].device_kind == DEVICE_KINDS[generation]


def test_slices_of_a_kind_are_told_apart():
  found = topologies.open_topology("v5e-4", num_slices=2)
  assert found.chips == 8
  assert {device.slice_index for device in found.devices} == {0, 1}


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("v9:2x2", "v5e:4x4"),
    ("v5e", "v5e:4x4"),
    ("v5e:2x2x2", "2 dimensions"),
    ("v5p-6", "TensorCores"),
    ("v5e-12", "chips"),
    ("v5e:3x3", "libtpu has no such slice"),
  ],
)
def test_a_wrong_slice_is_one_line_with_a_hint(name, hint):
  with pytest.raises(UserError, match=hint) as caught:
    topologies.open_topology(name)
  assert "\n" not in str(caught.value)
  assert name in str(caught.value)


@pytest.mark.parametrize("number", [0, -2])
def test_there_is_at_least_one_slice(number):
  with pytest.raises(UserError, match=f"--num_slices={number}: must be at least 1"):
    topologies.open_topology("v5e-4", number)


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"commentree\[tpu\]"):
    topologies.open_topology("v5e-4")


@pytest.mark.parametrize("generation", list(CHIPS))
def test_clock_times_flops_of_a_cycle_is_the_published_peak(generation):
  chip = CHIPS[generation]
  peak = flops.peak_flops(types.SimpleNamespace(device_kind=DEVICE_KINDS[generation]))
  assert chip.clock_hz * chip.flops_per_cycle == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize(
  "generation",
  ["v4", "v5e", *(pytest.param(name, marks=pytest.mark.slow) for name in REST)],
)
def test_a_large_product_is_estimated_at_half_to_all_of_the_peak(generation):
  found = topologies.open_topology(f"{generation}:{SMALLEST[generation]}")
  size = 4096
  array = jax.ShapeDtypeStruct(
    (size, size), jnp.bfloat16, sharding=SingleDeviceSharding(found.devices[0])
  )
  compiled = jax.jit(jnp.dot).lower(array, array).compile()
  costs = compiled_costs.costs_of(hlo.parse(compiled.as_text()), 1)
  assert costs.flops == 2 * size**3
  assert 0.5 < costs.flops / costs.cycles / found.chip.flops_per_cycle <= 1.0


@pytest.mark.parametrize("generation", list(CHIPS))
def test_the_memory_limit_is_the_compilers(generation):
  found = topologies.open_topology(f"{generation}:{SMALLEST[generation]}")
  huge = jax.ShapeDtypeStruct(
    (2**38,), jnp.float32, sharding=SingleDeviceSharding(found.devices[0])
  )
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jax.jit(lambda x: x + 1).lower(huge).compile()
  told = re.search(r"available HBM \(([0-9.]+)G\)", str(caught.value))
  assert told is not None
  # The compiler of jax 0.12 keeps some 10 MiB more than that of 0.10 for itself.
  assert float(told[1]) == pytest.approx(found.chip.hbm_bytes / GIB, abs=0.02)
