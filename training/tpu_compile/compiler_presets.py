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
  # On-chip memory for one operation, twice the compiler's own choice: larger tiles of
  # products, which read their operands less often.
  "vmem_32": {"xla_tpu_scoped_vmem_limit_kib": "32768"},
}
# Where 'vmem_32' was compared with 'none', and is faster: see docs/performance.md.
_FASTER_WITH_VMEM_32 = frozenset(("v5e",))


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
    preset = "vmem_32" if chip.name in _FASTER_WITH_VMEM_32 else "none"
  return dict(OPTIONS[preset])
