"""Bytes that a compiled program's operations read and write in a device's HBM.

What lies in on-chip memory, as its layout says, is not counted; of arrays that an
operation only takes a slice of, or changes in place, the slice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from commentree.training.tpu_compile import hlo
from commentree.training.tpu_compile.hlo import Instruction, Module

# They move nothing, or what they call does.
_NOTHING = {
  *("parameter", "constant", "iota", "partition-id", "replica-id", "after-all"),
  *("tuple", "get-tuple-element", "bitcast", "domain", "opt-barrier"),
  *("while", "conditional", "call", "call-start", "call-done"),
  *("async-start", "async-update", "async-done", "copy-done", "slice-done"),
}
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_MEMORY_SPACE = re.compile(r"S\([1-9]")
_ONE_ARRAY = re.compile(r"[a-z]\w*\[[\d,]*\](?:\{[^{}]*\})?")


def traffic(module: Module, computation: str, instruction: Instruction) -> int:
  """Returns the bytes that an instruction reads and writes in HBM.

  Args:
    module: its module.
    computation: the name of its computation.
    instruction: one of a computation that is no fusion's.
  """
  known = module.computations[computation]
  opcode = instruction.opcode
  if opcode in _NOTHING or (opcode == "custom-call" and not _is_kernel(instruction)):
    return 0
  if opcode in ("copy-start", "slice-start"):
    return _moved(known, instruction)
  if opcode == "fusion" and (inside := _called(module, instruction)):
    return _fusion(module, known, instruction, inside)
  if opcode == "dynamic-update-slice":
    return 2 * _hbm_bytes(_operand_type(known, instruction, 1))
  written = _hbm_bytes(instruction.type)
  if opcode in _SLICES:
    source = _operand_type(known, instruction, 0)
    return written + (instruction.bytes if _hbm_bytes(source) else 0)
  return written + sum(
    _hbm_bytes(known[name].type) for name in instruction.operands if name in known
  )


def _is_kernel(instruction: Instruction) -> bool:
  return 'custom_call_target="tpu_custom_call"' in instruction.attributes


def _operand_type(
  known: Mapping[str, Instruction], instruction: Instruction, place: int
) -> str:
  names = instruction.operands[place : place + 1]
  return known[names[0]].type if names and names[0] in known else ""


def _hbm_bytes(type_: str) -> int:
  """Returns the bytes of those of a type's arrays that lie in HBM."""
  return sum(
    hlo.type_bytes(array)
    for array in _ONE_ARRAY.findall(type_)
    if not _MEMORY_SPACE.search(array)
  )


def _moved(known: Mapping[str, Instruction], start: Instruction) -> int:
  """Returns the bytes of a copy between memories that runs beside other operations.

  A copy's result begins with where to and where from, a slice's with ((from), to).
  """
  to, source = _ONE_ARRAY.findall(start.type)[:2]
  if start.opcode == "slice-start":
    to, source = source, to
  size = hlo.type_bytes(to)
  return size * sum(not _MEMORY_SPACE.search(array) for array in (to, source))


def _called(module: Module, fusion: Instruction) -> Mapping[str, Instruction]:
  return module.computations.get(next(iter(fusion.called("calls")), ""), {})


def _fusion(
  module: Module,
  known: Mapping[str, Instruction],
  fusion: Instruction,
  inside: Mapping[str, Instruction],
) -> int:
  total = 0
  for number, parameter in _parameters(inside):
    type_ = _operand_type(known, fusion, number)
    if size := _hbm_bytes(type_):
      total += min(size, _read(module, inside, parameter.name, size))
  for array, result in zip(_ONE_ARRAY.findall(fusion.type), _results(inside)):
    if not _MEMORY_SPACE.search(array):
      total += _written(module, inside, result, hlo.type_bytes(array))
  return total


def _parameters(inside: Mapping[str, Instruction]) -> Iterator[tuple[int, Instruction]]:
  for instruction in inside.values():
    if instruction.opcode == "parameter":
      yield int(instruction.attributes.partition(")")[0] or 0), instruction


def _results(inside: Mapping[str, Instruction]) -> list[Instruction]:
  root = next((each for each in inside.values() if each.is_root), None)
  if root is None:
    return []
  if root.opcode == "tuple":
    return [inside[name] for name in root.operands if name in inside]
  return [root]


def _read(
  module: Module, inside: Mapping[str, Instruction], name: str, size: int
) -> int:
  """Returns the bytes that a fusion reads of one of its values, `size` in all."""
  total = 0
  for user in inside.values():
    if name not in user.operands:
      continue
    first = user.operands[0] == name
    if user.opcode in _SLICES and first:
      total += user.bytes
    elif user.opcode == "dynamic-update-slice" and first:
      continue
    elif user.opcode == "bitcast":
      total += _read(module, inside, user.name, size)
    elif user.opcode == "fusion":
      called = _called(module, user)
      inner = dict(_parameters(called))
      for place, operand in enumerate(user.operands):
        if operand == name and place in inner:
          total += _read(module, called, inner[place].name, size)
    else:
      return size
  return min(size, total)


def _written(
  module: Module, inside: Mapping[str, Instruction], result: Instruction, size: int
) -> int:
  """Returns the bytes that a fusion writes of one of its results, `size` in all."""
  if result.opcode == "bitcast" and result.operands[0] in inside:
    return _written(module, inside, inside[result.operands[0]], size)
  if result.opcode == "fusion":
    called = _called(module, result)
    results = _results(called)
    return _written(module, called, results[0], size) if len(results) == 1 else size
  if result.opcode == "dynamic-update-slice":
    return hlo.type_bytes(_operand_type(inside, result, 1))
  return size
