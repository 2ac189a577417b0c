"""Options of the TPU compiler under a name, for the train step.

They are part of the compiled program, not of a process: a run, `commentree compile` and
every host of a pod compile the same, and no launcher has to set an environment.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

from commentree.training.config import XlaPreset
from commentree.training.tpu_compile import tpu_chips

# Names and values of XLA's options.
OPTIONS: Mapping[str, Mapping[str, str]] = {
  "none": {},
  # On-chip memory for one operation, twice the compiler's own choice on v5e and v6e:
  # larger tiles of products, which read their operands less often.
  "vmem_32": {"xla_tpu_scoped_vmem_limit_kib": "32768"},
  "vmem_64": {"xla_tpu_scoped_vmem_limit_kib": "65536"},
}
# Those that were compared with 'none', and are faster: see docs/performance.md.
_FASTEST: Mapping[str, XlaPreset] = {"v5e": "vmem_32", "v6e": "vmem_64"}


def options_for(preset: XlaPreset, device: jax.Device) -> dict[str, str]:
  """Returns options for `jax.jit`; none for what is no TPU, whose XLA has others.

  Args:
    preset: `TrainConfig.xla_preset`.
    device: one of those that are compiled for.
  """
  chip = tpu_chips.of_device_kind(device.device_kind)
  if chip is None:
    return {}
  if preset == "auto":
    preset = _FASTEST.get(chip.name, "none")
  return dict(OPTIONS[preset])
