"""TPU slices as clouds name them: accelerator types of TPU VMs, topologies of GKE."""

from __future__ import annotations

import math
import re

from commentree.errors import UserError, suggestion
from commentree.training.tpu_compile.tpu_chips import CHIPS, Chip

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

# All GKE hosts of slices of more than one chip have as many.
CHIPS_PER_HOST = 4


def count_chips(chip: Chip, topology: str) -> int:
  """Returns the chips of a topology such as 4x8.

  Raises:
    UserError: if this generation has no such slice.
  """
  if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
    raise UserError(f"--topology={topology}: write it as 4x8 or 4x4x8")
  sides = [int(side) for side in topology.split("x")]
  chips = math.prod(sides)
  if chip.dimensions == 2:
    fits, shapes = topology in _FLAT, ", ".join(_FLAT)
  else:
    cubes = len(sides) == 3 and all(side and side % 4 == 0 for side in sides)
    fits = topology in _SMALL_CUBES or (cubes and sides == sorted(sides))
    shapes = f"{', '.join(_SMALL_CUBES)}, or multiples of 4 as in 4x4x8"
  if not fits or chips > chip.max_chips:
    raise UserError(
      f"--topology={topology}: {chip.name} has {shapes}; up to {chip.max_chips} chips"
    )
  return chips


def of_accelerator_type(accelerator_type: str) -> tuple[Chip, int]:
  """Returns the generation and the chips of an accelerator type: v5litepod-64.

  Raises:
    UserError: if there is no such type, or no TPU VM of it.
  """
  found = re.fullmatch(r"(\w+)-(\d+)", accelerator_type)
  prefixes = {chip.accelerator_prefix: chip for chip in CHIPS.values()}
  if not found or found[1] not in prefixes:
    known = ", ".join(f"{prefix}-N" for prefix in prefixes)
    raise UserError(f"--accelerator_type={accelerator_type}: write one of {known}")
  chip, count = prefixes[found[1]], int(found[2])
  if chip.runtime_version is None:
    raise UserError(
      f"--accelerator_type={accelerator_type}: {chip.name} comes by GKE alone;"
      " use `commentree launch jobset` or `commentree launch xpk`"
    )
  chips, rest = divmod(count, chip.cores)
  if rest or not 1 <= chips <= chip.max_chips:
    raise UserError(
      f"--accelerator_type={accelerator_type}: the number counts"
      f" {'TensorCores, two a chip' if chip.cores == 2 else 'chips'},"
      f" of at most {chip.max_chips} chips"
    )
  return chip, chips


def for_gke(name: str) -> Chip:
  """Returns a generation that GKE has, by our name for it.

  Raises:
    UserError: if there is no such generation.
  """
  known = [chip.name for chip in CHIPS.values() if chip.gke_accelerator]
  if name not in known:
    hint = suggestion(name, known)
    raise UserError(f"--tpu={name}: must be one of {', '.join(known)}{hint}")
  return CHIPS[name]
