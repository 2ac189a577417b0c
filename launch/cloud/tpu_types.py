"""Generations of TPUs: what each is called where, and which slices there are of it.

Names and shapes are those of Google's pages "TPU software versions", "TPU
architecture" and "Plan TPUs in GKE".
"""

from __future__ import annotations

import dataclasses
import math
import re

from commentree.errors import UserError, suggestion


@dataclasses.dataclass(frozen=True)
class Generation:
  """One generation of TPU.

  Attributes:
    name: as we call it.
    prefix: of Cloud TPU's accelerator types, "v5litepod" of v5litepod-64.
    cores_per_chip: what the number in an accelerator type counts for each chip.
    runtime_version: software of a TPU VM to run JAX on; None: there are no TPU VMs of
      it, only GKE has it.
    gke_accelerator: value of the node label cloud.google.com/gke-tpu-accelerator;
      None: GKE has no slices of it.
    dimensions: of a topology, 2 or 3.
    max_chips: in the largest slice.
  """

  name: str
  prefix: str
  cores_per_chip: int
  runtime_version: str | None
  gke_accelerator: str | None
  dimensions: int
  max_chips: int

  @property
  def shapes(self) -> str:
    """The topologies there are, in words."""
    if self.dimensions == 2:
      return ", ".join(_FLAT)
    return f"{', '.join(_SMALL_CUBES)}, or multiples of 4 as in 4x4x8"

  def chips(self, topology: str) -> int:
    """Returns the chips of a topology such as 4x8.

    Raises:
      UserError: if this generation has no such slice.
    """
    if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
      raise UserError(f"--topology={topology}: write it as 4x8 or 4x4x8")
    sides = [int(side) for side in topology.split("x")]
    chips = math.prod(sides)
    if self.dimensions == 2:
      fits = topology in _FLAT
    else:
      cubes = len(sides) == 3 and all(side and side % 4 == 0 for side in sides)
      fits = topology in _SMALL_CUBES or (cubes and sides == sorted(sides))
    if not fits or chips > self.max_chips:
      raise UserError(
        f"--topology={topology}: {self.name} has {self.shapes}; up to"
        f" {self.max_chips} chips"
      )
    return chips


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

# All GKE hosts of slices of more than one chip have as many.
CHIPS_PER_HOST = 4

GENERATIONS = {
  generation.name: generation
  for generation in (
    Generation("v2", "v2", 2, "tpu-ubuntu2204-base", None, 2, 256),
    Generation("v3", "v3", 2, "tpu-ubuntu2204-base", None, 2, 1024),
    Generation("v4", "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3, 4096),
    Generation(
      "v5e", "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2, 256
    ),
    Generation("v5p", "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 3, 6144),
    Generation("v6e", "v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2, 256),
    Generation("tpu7x", "tpu7x", 2, None, "tpu7x", 3, 9216),
  )
}


def of_accelerator_type(accelerator_type: str) -> tuple[Generation, int]:
  """Returns (generation, chips) of a Cloud TPU accelerator type such as v5litepod-64.

  Raises:
    UserError: if there is no such type, or no TPU VM of it.
  """
  found = re.fullmatch(r"(\w+)-(\d+)", accelerator_type)
  prefixes = {generation.prefix: generation for generation in GENERATIONS.values()}
  if not found or found[1] not in prefixes:
    known = ", ".join(f"{prefix}-N" for prefix in prefixes)
    raise UserError(f"--accelerator_type={accelerator_type}: write one of {known}")
  generation, count = prefixes[found[1]], int(found[2])
  if generation.runtime_version is None:
    raise UserError(
      f"--accelerator_type={accelerator_type}: {generation.name} comes by GKE alone;"
      " use `commentree launch jobset` or `commentree launch xpk`"
    )
  chips, rest = divmod(count, generation.cores_per_chip)
  if rest or not 1 <= chips <= generation.max_chips:
    raise UserError(
      f"--accelerator_type={accelerator_type}: the number counts"
      f" {'TensorCores, two a chip' if generation.cores_per_chip == 2 else 'chips'},"
      f" of at most {generation.max_chips} chips"
    )
  return generation, chips


def for_gke(name: str) -> Generation:
  """Returns a generation that GKE has, by our name for it.

  Raises:
    UserError: if there is no such generation.
  """
  known = [g.name for g in GENERATIONS.values() if g.gke_accelerator]
  if name not in known:
    hint = suggestion(name, known)
    raise UserError(f"--tpu={name}: must be one of {', '.join(known)}{hint}")
  return GENERATIONS[name]
