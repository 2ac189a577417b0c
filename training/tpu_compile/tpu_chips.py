"""Generations of TPU chips: what each is called where, and what it can do.

Plain data, importable without JAX: the compiler's topologies, the utilization of a run
and the launchers of clouds go by this one table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A generation of TPU chips.

  Attributes:
    name: as we call it, and as in the names of topologies.
    device_kinds: what the names begin with that JAX gives its devices.
    accelerator_prefix: of Cloud TPU's accelerator types, "v5litepod" of v5litepod-64.
    runtime_version: software of a TPU VM to run JAX on; None: there are no TPU VMs of
      it, only GKE has it.
    gke_accelerator: value of the node label cloud.google.com/gke-tpu-accelerator;
      None: GKE has no slices of it.
    dimensions: of the torus that links the chips.
    max_chips: in the largest slice.
    cores: TensorCores of a chip, which Google's names of v2 to v5p count.
    devices: JAX devices of a chip; two cores that share memory are one device.
    hbm_bytes: memory of a device that programs can use.
    hbm_bytes_per_second: what a chip reads and writes there at most.
    clock_hz: TensorCore cycles a second.
    flops_per_cycle: bfloat16 FLOPs of a device in a cycle, at most.
    peak_flops: bfloat16 FLOPs of a device in a second, as published.
    ici_bytes_per_second: what a chip sends to its neighbours, all links together.
    dcn_bytes_per_second: what a chip sends to other slices.
    options: what is passed to libtpu besides the name.
  """

  name: str
  device_kinds: tuple[str, ...]
  accelerator_prefix: str
  runtime_version: str | None
  gke_accelerator: str | None
  dimensions: int
  max_chips: int
  cores: int
  devices: int
  hbm_bytes: int
  hbm_bytes_per_second: float
  clock_hz: float
  flops_per_cycle: int
  peak_flops: float
  ici_bytes_per_second: float
  dcn_bytes_per_second: float
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _mxus(count: int, width: int) -> int:
  """FLOPs that matrix units of `width` x `width` do in a cycle."""
  return 2 * count * width**2


# Names and sizes: Google's pages "TPU software versions", "TPU architecture" and "Plan
# TPUs in GKE".
# HBM: what libtpu 0.0.42 itself grants a program, as its refusals state it.
# Clocks: v2 to v4 from Norrie et al. 2021 (IEEE Micro 41-2) and Jouppi et al. 2023
# (ISCA, table 4). Of the later ones Google publishes the peak alone; it is the FLOPs
# of a cycle times this clock. Those of v6e and TPU7x are of libtpu's cost model, in
# which a matrix unit takes two rows a cycle.
# Bandwidth of HBM: docs.cloud.google.com/tpu/docs, a generation a page.
# Networks: docs.cloud.google.com/tpu/docs, a generation a page; half of what it calls
# bidirectional. v2 and v3: Norrie et al. 2021.
CHIPS: Mapping[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      name="v2",
      device_kinds=("TPU v2",),
      accelerator_prefix="v2",
      runtime_version="tpu-ubuntu2204-base",
      gke_accelerator=None,
      dimensions=2,
      max_chips=256,
      cores=2,
      devices=2,
      hbm_bytes=int(7.48 * GIB),
      hbm_bytes_per_second=700e9,
      clock_hz=700e6,
      flops_per_cycle=_mxus(1, 128),
      peak_flops=22.5e12,
      ici_bytes_per_second=248e9,
      dcn_bytes_per_second=3.1e9,
    ),
    Chip(
      name="v3",
      device_kinds=("TPU v3",),
      accelerator_prefix="v3",
      runtime_version="tpu-ubuntu2204-base",
      gke_accelerator=None,
      dimensions=2,
      max_chips=1024,
      cores=2,
      devices=2,
      hbm_bytes=int(15.48 * GIB),
      hbm_bytes_per_second=900e9,
      clock_hz=940e6,
      flops_per_cycle=_mxus(2, 128),
      peak_flops=61.5e12,
      ici_bytes_per_second=328e9,
      dcn_bytes_per_second=3.1e9,
    ),
    Chip(
      name="v4",
      device_kinds=("TPU v4",),
      accelerator_prefix="v4",
      runtime_version="tpu-ubuntu2204-base",
      gke_accelerator="tpu-v4-podslice",
      dimensions=3,
      max_chips=4096,
      cores=2,
      devices=1,
      hbm_bytes=int(30.75 * GIB),
      hbm_bytes_per_second=1228e9,
      clock_hz=1050e6,
      flops_per_cycle=_mxus(8, 128),
      peak_flops=275e12,
      ici_bytes_per_second=300e9,
      dcn_bytes_per_second=6.25e9,
      # As on Cloud TPUs: libtpu's default would make each core a device.
      options={"chip_config_name": "megacore"},
    ),
    Chip(
      name="v5e",
      device_kinds=("TPU v5 lite", "TPU v5e"),
      accelerator_prefix="v5litepod",
      runtime_version="v2-alpha-tpuv5-lite",
      gke_accelerator="tpu-v5-lite-podslice",
      dimensions=2,
      max_chips=256,
      cores=1,
      devices=1,
      hbm_bytes=int(15.75 * GIB),
      hbm_bytes_per_second=819e9,
      clock_hz=1500e6,
      flops_per_cycle=_mxus(4, 128),
      peak_flops=197e12,
      ici_bytes_per_second=200e9,
      dcn_bytes_per_second=3.1e9,
    ),
    Chip(
      name="v5p",
      device_kinds=("TPU v5",),
      accelerator_prefix="v5p",
      runtime_version="v2-alpha-tpuv5",
      gke_accelerator="tpu-v5p-slice",
      dimensions=3,
      max_chips=6144,
      cores=2,
      devices=1,
      hbm_bytes=int(95.74 * GIB),
      hbm_bytes_per_second=2765e9,
      clock_hz=1750e6,
      flops_per_cycle=_mxus(8, 128),
      peak_flops=459e12,
      ici_bytes_per_second=600e9,
      dcn_bytes_per_second=6.25e9,
    ),
    Chip(
      name="v6e",
      device_kinds=("TPU v6",),
      accelerator_prefix="v6e",
      runtime_version="v2-alpha-tpuv6e",
      gke_accelerator="tpu-v6e-slice",
      dimensions=2,
      max_chips=256,
      cores=1,
      devices=1,
      hbm_bytes=int(31.25 * GIB),
      hbm_bytes_per_second=1638e9,
      clock_hz=1750e6,
      flops_per_cycle=_mxus(4, 256),
      peak_flops=918e12,
      ici_bytes_per_second=400e9,
      dcn_bytes_per_second=12.5e9,
    ),
    Chip(
      name="tpu7x",
      device_kinds=("TPU7x",),
      accelerator_prefix="tpu7x",
      runtime_version=None,
      gke_accelerator="tpu7x",
      dimensions=3,
      max_chips=9216,
      cores=2,
      devices=2,
      hbm_bytes=int(94.75 * GIB),
      hbm_bytes_per_second=7370e9,
      clock_hz=2200e6,
      flops_per_cycle=_mxus(4, 256),
      peak_flops=1153.5e12,
      ici_bytes_per_second=600e9,
      dcn_bytes_per_second=12.5e9,
    ),
  )
}


def of_device_kind(device_kind: str) -> Chip | None:
  """Returns the generation of a JAX device by its kind; None if it is no TPU's."""
  kinds = {kind: chip for chip in CHIPS.values() for kind in chip.device_kinds}
  # The longest first: "TPU v5 lite" is not the "TPU v5".
  for kind in sorted(kinds, key=len, reverse=True):
    if device_kind.startswith(kind):
      return kinds[kind]
  return None
