"""TPU slices by name, without a TPU: the devices that the compiler knows, and chips.

libtpu describes slices of every generation to JAX and compiles for them on any machine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies as jax_topologies

from commentree.errors import UserError
from commentree.training.tpu_compile.tpu_chips import CHIPS, Chip

EXAMPLES = "v5e:4x4, v5p:4x4x4, v5e-256 (chips), v5p-128 (cores)"


# What else a generation is called, besides its name and Cloud TPU's prefix.
_ALIASES = {
  **{chip.accelerator_prefix: chip.name for chip in CHIPS.values()},
  "v5lite": "v5e",
  "v6lite": "v6e",
  "7x": "tpu7x",
  "v7x": "tpu7x",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or several equal slices, and their devices.

  Attributes:
    name: of one slice, `v5e:16x16`.
    chip: the generation.
    num_slices: slices, joined by the data-centre network.
    devices: all devices; nothing runs on them.
  """

  name: str
  chip: Chip
  num_slices: int
  devices: tuple[jax.Device, ...]

  @property
  def chips(self) -> int:
    """Chips of all slices."""
    return len(self.devices) // self.chip.devices


def parse_name(name: str) -> tuple[Chip, tuple[int, ...]]:
  """Returns the generation and the shape of a slice, in chips.

  Args:
    name: `v5e:16x16`, or as Google names accelerators: `v5e-256`, `v5litepod-256` and
      `v6e-256` count chips, `v2-32` to `v5p-128` and `tpu7x-128` TensorCores.

  Raises:
    UserError: if it is neither.
  """
  found = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", name.strip().lower())
  chip = found and CHIPS.get(_ALIASES.get(found[1], found[1]))
  if not found or not chip:
    raise UserError(
      f"--topology={name}: names no TPU slice; examples: {EXAMPLES}; generations:"
      f" {', '.join(CHIPS)}"
    )
  if found[2]:
    shape = tuple(int(size) for size in found[2].split("x"))
    if len(shape) != chip.dimensions or 0 in shape:
      example = "x".join(["4"] * chip.dimensions)
      raise UserError(
        f"--topology={name}: a slice of {chip.name} has {chip.dimensions} dimensions,"
        f" as in {chip.name}:{example}"
      )
    return chip, shape
  chips, rest = divmod(int(found[3]), chip.cores)
  if rest or chips < 1 or chips & (chips - 1):
    unit = "TensorCores" if chip.cores > 1 else "chips"
    raise UserError(
      f"--topology={name}: the number counts {unit}, of a power of two chips; for"
      f" other slices give the shape, as in {chip.name}:"
      f"{'x'.join(['4'] * chip.dimensions)}"
    )
  return chip, _most_even(chips, chip.dimensions)


def _most_even(chips: int, dimensions: int) -> tuple[int, ...]:
  """Returns a power of two as a shape, the larger sizes last: 32 as 4x8 or 2x4x4."""
  exponent = chips.bit_length() - 1
  sizes = [
    2 ** (exponent // dimensions + (i < exponent % dimensions))
    for i in range(dimensions)
  ]
  # A single host of a 3D generation is 2x2x1, not 1x2x2.
  return tuple(sorted(sizes, reverse=chips <= 4))


def open_topology(name: str, num_slices: int = 1) -> Topology:
  """Returns a slice, or several, by name.

  Raises:
    UserError: if there is no such slice, or no libtpu here.
  """
  if num_slices < 1:
    raise UserError(f"--num_slices={num_slices}: must be at least 1")
  chip, shape = parse_name(name)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "compiling for TPUs takes libtpu, which is not installed:"
      " pip install 'commentree[tpu]'"
    )
  proper = f"{chip.name}:{'x'.join(map(str, shape))}"
  options = dict(chip.options)
  if num_slices > 1:
    options["num_slices"] = num_slices
  if math.prod(shape) < 4:
    # Fewer chips than the usual host has.
    bounds = (*shape, *[1] * (3 - len(shape)))
    options["chips_per_host_bounds"] = bounds
  _keep_to_itself()
  try:
    found = jax_topologies.get_topology_desc(proper, "tpu", **options)
  except jax.errors.JaxRuntimeError as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"--topology={name}: libtpu has no such slice ({reason}); examples: {EXAMPLES}"
    ) from error
  return Topology(proper, chip, num_slices, tuple(found.devices))


def _keep_to_itself() -> None:
  """Tells libtpu not to look for a TPU: no metadata server, no lock, no host names."""
  for variable, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
  }.items():
    os.environ.setdefault(variable, value)
