"""What a compiled program costs a device: cycles, FLOPs, messages, loops multiplied.

The cycles are the compiler's own estimates, which libtpu writes beside each operation.
Kernels have none: what they take is told apart, as a range.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from commentree.training.tpu_compile import hbm_traffic, hlo
from commentree.training.tpu_compile.hlo import Instruction, Module
from commentree.training.tpu_compile.sources import Sources
from commentree.training.tpu_compile.tpu_chips import Chip

_COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_KERNEL = 'custom_call_target="tpu_custom_call"'
# Stands for an estimate where the compiler has none.
_NO_ESTIMATE = 2**62
_KERNELS = (
  "self_attention_kernel",
  "self_attention_gradient_kernel",
  "ancestor_attention_kernel",
  "ancestor_attention_gradient_kernel",
)
# Cycles that kernels take for a register of 1,024 exponentials, one for each score, by
# chip: the bundles of the final schedules of libtpu 0.0.42, the most of heads of 32, 64
# and 128, of rows of 128 and 256, and of 129 vectors and 177 targets.
KERNEL_CYCLES: Mapping[str, Mapping[str, int]] = {
  chip: dict(zip(_KERNELS, cycles, strict=True))
  for chip, cycles in {
    "v4": (18, 26, 22, 35),
    "v5e": (11, 17, 16, 27),
    "v5p": (12, 18, 16, 28),
    "v6e": (9, 14, 14, 22),
    "tpu7x": (9, 14, 13, 21),
  }.items()
}
_REGISTER = 1024
# Parts of a program that instructions hand over to, apart from loops and fusions.
_CALLS = ("to_apply", "called_computations", "calls")


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation that the compiler estimates, or a copy beside others.

  Attributes:
    name: in the compiled module.
    opcode: its kind.
    source: where it comes from in the model.
    place: the file and line that traced it.
    cycles: of all its repetitions; 0 for copies that run beside other operations.
    times: repetitions.
    flops: of products of matrices, of all its repetitions.
    bytes: that it reads and writes in HBM, of all its repetitions.
  """

  name: str
  opcode: str
  source: str
  place: str
  cycles: int
  times: int
  flops: int
  bytes: int

  @property
  def is_collective(self) -> bool:
    """Whether it is a message between devices, and nothing else."""
    return self.opcode.removesuffix("-start").removesuffix("-done") in _COLLECTIVES


@dataclasses.dataclass(frozen=True)
class Untimed:
  """An operation that the compiler does not estimate: a kernel, or one it gives up on.

  Attributes:
    name: in the compiled module.
    source: where it comes from in the model.
    place: the file and line that traced it.
    times: repetitions.
    flops: of products of matrices, one repetition.
    bytes: that it states to move, or `hbm_bytes`, one repetition.
    hbm_bytes: of operands and results that lie in HBM, one repetition.
    kernel: its name among `_KERNELS`; None if it is none of these.
    registers: of exponentials that it computes, one repetition.
  """

  name: str
  source: str
  place: str
  times: int
  flops: int
  bytes: int
  hbm_bytes: int
  kernel: str | None
  registers: int

  def least_seconds(self, chip: Chip) -> float:
    """Returns the time of all repetitions, with nothing waiting for anything else."""
    products = self.flops / (chip.flops_per_cycle * chip.clock_hz)
    return self.times * max(products, self._moving_seconds(chip))

  def most_seconds(self, chip: Chip) -> float | None:
    """Returns the time of all repetitions, computing after reading; None if unknown."""
    cycles = KERNEL_CYCLES.get(chip.name, {}).get(self.kernel or "")
    if cycles is None or not self.registers:
      return None
    computing = self.registers * cycles / chip.clock_hz
    return self.times * (computing + self._moving_seconds(chip))

  def _moving_seconds(self, chip: Chip) -> float:
    return self.bytes / (chip.hbm_bytes_per_second / chip.devices)


@dataclasses.dataclass(frozen=True)
class Collective:
  """A message between devices.

  Attributes:
    kind: all-reduce, all-gather, …
    bytes: of its larger side on a device, one repetition; of the smaller where both
      hold the same numbers, some rounded on the way.
    group: devices that take part.
    between_slices: whether it crosses the data-centre network.
    asynchronous: whether other operations run meanwhile.
    times: repetitions.
    source: where it comes from in the model.
  """

  kind: str
  bytes: int
  group: int
  between_slices: bool
  asynchronous: bool
  times: int
  source: str

  def seconds(self, chip: Chip) -> float:
    """Returns the least time of all repetitions, every link of the chip in use."""
    if self.group < 2:
      return 0.0
    share = (self.group - 1) / self.group
    sent = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
    rate = (
      chip.dcn_bytes_per_second if self.between_slices else chip.ici_bytes_per_second
    )
    return self.times * self.bytes * sent / (rate / chip.devices)


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of one run of a program on a device.

  Attributes:
    cycles: the compiler's estimates, added up.
    flops: of products of matrices.
    operations: with their estimates, the costliest first.
    collectives: messages.
    untimed: operations that are not in `cycles`, nor in `operations`.
    unknown_loops: loops whose repetitions could not be seen; counted once.
  """

  cycles: int
  flops: int
  operations: Sequence[Operation]
  collectives: Sequence[Collective]
  untimed: Sequence[Untimed]
  unknown_loops: int


def costs_of(module: Module, num_devices: int, num_slices: int = 1) -> Costs:
  """Adds up the costs of a compiled module.

  Args:
    module: the module of one device.
    num_devices: devices that run it.
    num_slices: slices that they form.
  """
  walk = _Walk(module, num_devices // num_slices, num_slices)
  walk.computation(module.entry, 1)
  operations = sorted(walk.operations, key=lambda operation: -operation.cycles)
  return Costs(
    cycles=sum(operation.cycles for operation in operations),
    flops=walk.flops,
    operations=operations,
    collectives=walk.collectives,
    untimed=walk.untimed,
    unknown_loops=walk.unknown_loops,
  )


class _Walk:
  """Goes through a program as it runs, each loop's body as often as it repeats."""

  def __init__(self, module: Module, slice_devices: int, num_slices: int):
    self._module = module
    self._slice_devices = slice_devices
    self._num_slices = num_slices
    self._sources = Sources(module)
    self.operations: list[Operation] = []
    self.collectives: list[Collective] = []
    self.untimed: list[Untimed] = []
    self.flops = 0
    self.unknown_loops = 0

  def computation(self, name: str, times: int) -> None:
    for instruction in self._module.instructions(name):
      self._instruction(name, instruction, times)

  def _instruction(
    self, computation: str, instruction: Instruction, times: int
  ) -> None:
    opcode = instruction.opcode
    if opcode == "while":
      count = self._module.trip_count(instruction)
      self.unknown_loops += count is None
      for name in instruction.called("condition", "body"):
        self.computation(name, times * (count or 1))
      return
    if opcode == "conditional":
      self._branches(instruction, times)
      return
    cycles = int(instruction.config("estimated_cycles") or 0)
    before = self.flops
    self._hand_over(computation, instruction, times)
    flops = 0 if opcode == "call" else self.flops - before
    if cycles >= _NO_ESTIMATE or (not cycles and _KERNEL in instruction.attributes):
      untimed = self._untimed(computation, instruction, times, flops // times)
      self.untimed.append(untimed)
      self.flops += times * untimed.flops - flops
      return
    moved = times * hbm_traffic.traffic(self._module, computation, instruction)
    if cycles or flops or moved:
      self.operations.append(
        Operation(
          name=instruction.name,
          opcode=opcode,
          source=self._sources.of(computation, instruction),
          place=self._module.place(instruction),
          cycles=cycles * times,
          times=times,
          flops=flops,
          bytes=moved,
        )
      )

  def _hand_over(self, computation: str, instruction: Instruction, times: int) -> None:
    """Counts products and messages of an instruction, and of what it calls."""
    opcode = instruction.opcode
    if opcode == "fusion":
      for name in instruction.called("calls"):
        self._fused(name, instruction, times)
    elif opcode == "call":
      for name in instruction.called(*_CALLS):
        self.computation(name, times)
    elif opcode in ("async-start", "call-start"):
      # What another core does meanwhile, SparseCores mostly: its messages count.
      for name in instruction.called(*_CALLS):
        for inner in self._module.instructions(name):
          self._message(name, inner, times, asynchronous=True)
    else:
      self._message(computation, instruction, times, asynchronous=False)
      self.flops += times * hlo.matmul_flops(
        self._module.computations[computation], instruction
      )

  def _untimed(
    self, computation: str, instruction: Instruction, times: int, flops: int
  ) -> Untimed:
    """Returns an operation with the costs that it states, or what it reads and writes.

    A kernel states products, bytes and exponentials; `flops` are those seen of others.
    """
    stated_flops, exponentials, stated_bytes = (
      int(instruction.config(key) or 0)
      for key in ("flops", "transcendentals", "bytes_accessed")
    )
    hbm_bytes = hbm_traffic.traffic(self._module, computation, instruction)
    parts = re.split(r"[/()]+", instruction.source)
    return Untimed(
      name=instruction.name,
      source=self._sources.of(computation, instruction),
      place=self._module.place(instruction),
      times=times,
      flops=stated_flops or flops,
      bytes=stated_bytes or hbm_bytes,
      hbm_bytes=hbm_bytes,
      kernel=next((part for part in parts if part in _KERNELS), None),
      registers=-(-exponentials // _REGISTER),
    )

  def _branches(self, instruction: Instruction, times: int) -> None:
    """Counts the costliest branch."""
    names = instruction.called(
      "branch_computations", "true_computation", "false_computation"
    )
    walks = []
    for name in names:
      walk = _Walk(self._module, self._slice_devices, self._num_slices)
      walk.computation(name, times)
      walks.append(walk)
    if walks:
      worst = max(walks, key=lambda walk: sum(o.cycles for o in walk.operations))
      self.operations += worst.operations
      self.collectives += worst.collectives
      self.untimed += worst.untimed
      self.flops += worst.flops
      self.unknown_loops += worst.unknown_loops

  def _fused(self, name: str, fusion: Instruction, times: int) -> None:
    """Counts products and messages inside a fusion; its cycles are counted already."""
    for instruction in self._module.instructions(name):
      self.flops += times * hlo.matmul_flops(
        self._module.computations[name], instruction
      )
      # A message that runs beside other operations is repeated in each of their
      # fusions; the one that starts it has no flag yet.
      if instruction.config("flag_start") in (None, "-1"):
        starts = "async-collective-start" in fusion.name
        self._message(name, instruction, times, asynchronous=starts)
      for inner in instruction.called("calls"):
        self._fused(inner, fusion, times)

  def _message(
    self, computation: str, instruction: Instruction, times: int, *, asynchronous: bool
  ) -> None:
    kind = instruction.opcode.removesuffix("-start")
    between_slices = kind == "send" and "xla_megascale" in instruction.attributes
    if between_slices:
      found = re.search(r'_transfer_type="(\w+)"', instruction.attributes)
      kind = found[1].lower().replace("_", "-") if found else "send"
      group, asynchronous = self._num_slices, True
    elif kind in _COLLECTIVES:
      group = hlo.group_size(instruction, self._slice_devices * self._num_slices)
      asynchronous |= instruction.opcode.endswith("-start")
      if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    else:
      return
    self.collectives.append(
      Collective(
        kind=kind,
        bytes=self._message_bytes(computation, instruction),
        group=group,
        between_slices=between_slices,
        asynchronous=asynchronous,
        times=times,
        source=instruction.source,
      )
    )

  def _message_bytes(self, computation: str, instruction: Instruction) -> int:
    """Returns the bytes of a message; see `Collective.bytes`."""
    known = self._module.computations[computation]
    operands = sum(known[name].bytes for name in instruction.operands if name in known)
    if instruction.opcode in ("send", "collective-permute-start"):
      return operands
    if instruction.opcode == "all-reduce":
      return min(operands, instruction.bytes) if operands else instruction.bytes
    if instruction.opcode.endswith("-start") and instruction.type.startswith("("):
      # Its result holds the operands beside what they become.
      return max(operands, instruction.bytes - operands)
    return max(operands, instruction.bytes)


def by_kind(collectives: Sequence[Collective]) -> Iterator[tuple[str, bool, int, int]]:
  """Yields (kind, between slices, count, bytes) of all repetitions, largest first."""
  totals: dict[tuple[str, bool], list[int]] = {}
  for collective in collectives:
    total = totals.setdefault((collective.kind, collective.between_slices), [0, 0])
    total[0] += collective.times
    total[1] += collective.times * collective.bytes
  for (kind, between), (count, size) in sorted(totals.items(), key=lambda t: -t[1][1]):
    yield kind, between, count, size
