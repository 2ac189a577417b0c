"""Where operations of a compiled program come from in the traced one.

The compiler names a fusion after one of the operations in it, and what it adds itself,
copies mostly, after none.
"""

from __future__ import annotations

from collections.abc import Iterator

from commentree.training.tpu_compile import hlo
from commentree.training.tpu_compile.hlo import Instruction, Module

# How many instructions without a name lie between one and its user at most.
_STEPS = 8


class Sources:
  """The sources of a module's instructions."""

  def __init__(self, module: Module):
    """Takes the module."""
    self._module = module
    self._users: dict[str, dict[str, list[Instruction]]] = {}

  def of(self, computation: str, instruction: Instruction) -> str:
    """Returns the path of an instruction in the traced program, "" if none is known.

    A fusion's is its largest product's unless it is named after another product; what
    has no name takes that of what is in it, else of who uses it, else of what it uses.
    """
    if instruction.opcode == "fusion":
      inside = list(self._within(instruction))
      products = {source: flops for source, flops in inside if flops}
      if products and instruction.source not in products:
        return max(products, key=lambda source: products[source])
      if not _says(instruction.source):
        found = next((source for source, _ in inside if _says(source)), "")
        return found or self._nearby(computation, instruction)
    if _says(instruction.source):
      return instruction.source
    return self._nearby(computation, instruction)

  def _within(self, fusion: Instruction) -> Iterator[tuple[str, int]]:
    """Yields (source, FLOPs of its product) of what is in a fusion."""
    for name in fusion.called("calls"):
      known = self._module.computations.get(name, {})
      for inner in reversed(known.values()):
        if inner.opcode == "fusion":
          yield from self._within(inner)
        elif inner.opcode not in ("parameter", "constant"):
          yield inner.source, hlo.matmul_flops(known, inner)

  def _nearby(self, computation: str, instruction: Instruction) -> str:
    known = self._module.computations[computation]
    users = self._users_in(computation)
    steps = [
      lambda each: users.get(each.name, []),
      lambda each: [known[name] for name in each.operands if name in known],
    ]
    for step in steps:
      reached = [instruction]
      for _ in range(_STEPS):
        reached = [there for each in reached for there in step(each)][:_STEPS]
        if found := next((e.source for e in reached if _says(e.source)), ""):
          return found
    return instruction.source

  def _users_in(self, computation: str) -> dict[str, list[Instruction]]:
    if computation not in self._users:
      users = self._users[computation] = {}
      for instruction in self._module.instructions(computation):
        for name in instruction.operands:
          users.setdefault(name, []).append(instruction)
    return self._users[computation]


def _says(source: str) -> bool:
  """Whether it is a place in the program, and not a name of the compiler's."""
  return "/" in source
