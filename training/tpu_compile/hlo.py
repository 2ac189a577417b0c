"""The text of a compiled HLO module, parsed as far as costs need.

XLA prints a module as computations of one instruction a line:

    %name (parameters) -> type {
      %result = type opcode(%operand, …), attribute=value, …, backend_config={…}
    }

The module's protocol buffer is not read: its schema in Python comes only in a private
module of TensorFlow, which is older than the compiler.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
# Tables at a module's head: names of files, places in them, and frames of the trace.
_TABLE_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')
_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of a computation.

  Attributes:
    name: unique in the module.
    opcode: what it does.
    type: its result's, layouts included.
    operands: names of instructions of the same computation.
    attributes: the rest of the line; a constant's begin with its value, a parameter's
      with its number.
    is_root: whether its result is the computation's.
  """

  name: str
  opcode: str
  type: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool = False

  @property
  def bytes(self) -> int:
    """Bytes of the result, padding of its layout not counted."""
    return type_bytes(self.type)

  def called(self, *attributes: str) -> list[str]:
    """Returns names of the computations that attributes refer to."""
    names: list[str] = []
    for attribute in attributes:
      if found := re.search(
        rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes
      ):
        names += re.findall(r"[\w.-]+", found[1].replace("%", ""))
    return names

  def config(self, key: str) -> str | None:
    """Returns a scalar of the backend's configuration, None if it is not there."""
    found = re.search(rf'"{key}":"?(-?\w+)', self.attributes)
    return found[1] if found else None

  @property
  def source(self) -> str:
    """Path of the operation in the traced program."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
  """A module.

  Attributes:
    computations: by name, the instructions by theirs, in order.
    entry: the computation that the program is.
    places: file and line that each frame of the trace stands at.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str
  places: dict[int, str] = dataclasses.field(default_factory=dict)

  def place(self, instruction: Instruction) -> str:
    """Returns the file and line that traced an instruction, empty if not known."""
    found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
    return self.places.get(int(found[1]), "") if found else ""

  def instructions(self, computation: str) -> Iterator[Instruction]:
    """Returns the instructions of a computation, none if it is not there."""
    return iter(self.computations.get(computation, {}).values())

  def trip_count(self, loop: Instruction) -> int | None:
    """Returns how often a `while` repeats, None if that cannot be seen.

    The compiler's own count counts; without it, the constant that the condition
    compares the counter with, as loops of JAX's scan start at 0.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
      return int(found[1])
    constants, directions = set(), set()
    for instruction in self._within(loop.called("condition")):
      if instruction.opcode == "constant" and instruction.type.startswith(("s", "u")):
        constants.add(instruction.attributes.partition(")")[0])
      if instruction.opcode == "compare":
        directions |= set(re.findall(r"direction=(\w+)", instruction.attributes))
    if len(constants) != 1 or len(directions) != 1:
      return None
    bound = int(constants.pop())
    count = {"LT": bound, "NE": bound, "GT": bound, "LE": bound + 1}.get(
      directions.pop(), 0
    )
    return count if count > 0 else None

  def _within(self, names: list[str]) -> Iterator[Instruction]:
    """Yields the instructions of computations and of the fusions in them."""
    for name in names:
      for instruction in self.instructions(name):
        yield instruction
        yield from self._within(instruction.called("calls"))


def parse(text: str) -> Module:
  """Parses what `compiled.as_text()` returns.

  Raises:
    ValueError: if it has no entry computation.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  tables: dict[str, dict[int, str]] = {}
  entry, current, table = None, None, {}
  for line in text.splitlines():
    if not line.startswith(" "):
      if header := _HEADER.match(line):
        current = computations.setdefault(header[2], {})
        entry = header[2] if header[1] else entry
      elif row := _TABLE_ROW.match(line):
        table[int(row[1])] = row[2] or row[3] or ""
      elif line.isalpha():
        table = tables.setdefault(line, {})
      continue
    found = _INSTRUCTION.match(line)
    if found is None or current is None:
      continue
    root, name, type_, opcode, rest = found.groups()
    operands, attributes = _split_operands(rest)
    if opcode in ("constant", "parameter"):
      operands, attributes = "", rest
    names = tuple(re.findall(r"%([\w.-]+)", operands))
    current[name] = Instruction(name, opcode, type_, names, attributes, bool(root))
  if entry is None:
    raise ValueError("not the text of an HLO module: it has no ENTRY computation")
  return Module(computations, entry, _places(tables))


def _places(tables: dict[str, dict[int, str]]) -> dict[int, str]:
  """Returns the folder, file and line of each frame."""
  files = {
    number: "/".join(path.split("/")[-2:])
    for number, path in tables.get("FileNames", {}).items()
  }
  lines = {}
  for number, row in tables.get("FileLocations", {}).items():
    fields = dict(re.findall(r"(\w+)=(\d+)", row))
    file = files.get(int(fields.get("file_name_id", 0)), "")
    lines[number] = f"{file}:{fields.get('line', '?')}"
  return {
    number: lines.get(int(found[1]), "")
    for number, row in tables.get("StackFrames", {}).items()
    if (found := re.search(r"file_location_id=(\d+)", row))
  }


def _split_operands(rest: str) -> tuple[str, str]:
  """Splits what follows an opcode's parenthesis where that closes."""
  depth = 1
  for place, character in enumerate(rest):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return rest[:place], rest[place + 1 :]
  return rest, ""


def arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
  """Returns (element type, shape) of each array of a type."""
  return [
    (kind, tuple(int(size) for size in shape.split(",") if size))
    for kind, shape in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", type_))
  ]


def type_bytes(type_: str) -> int:
  """Returns the bytes of a type's arrays."""
  return sum(_bits(kind) * math.prod(shape) // 8 for kind, shape in arrays(type_))


def _bits(kind: str) -> int:
  if kind in _BITS:
    return _BITS[kind]
  # f32, s8, bf16, f8e4m3fn, c64: the digits after the kind's letters.
  found = re.match(r"[a-z]+(\d+)", kind)
  return int(found[1]) if found else 0


def group_size(instruction: Instruction, devices: int) -> int:
  """Returns how many devices take part in one group of a collective.

  Args:
    instruction: the collective.
    devices: how many there are, all of which take part if no groups are given.
  """
  text = instruction.attributes
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=", text):
    return int(found[1].split(",")[-1])
  if found := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\)\))? \{([^}]*)\}", text
  ):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    # An axis may be used in part, 'a':(offset)size.
    used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[axis]) for axis, part in used)
  return devices


def matmul_flops(
  computation: Mapping[str, Instruction], instruction: Instruction
) -> int:
  """Returns the FLOPs of a `dot` or a `convolution`, 0 of anything else.

  Products that padding and dilation leave empty are not counted: XLA writes batched
  matrix products as convolutions, most of whose windows hold one element.
  """
  if instruction.opcode not in ("dot", "convolution"):
    return 0
  left, right = (
    arrays(computation[name].type)[0][1] for name in instruction.operands[:2]
  )
  out = arrays(instruction.type)[0][1]
  text = instruction.attributes
  if instruction.opcode == "dot":
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
    contracted = [int(d) for d in found[1].split(",") if d] if found else []
    return 2 * math.prod(out) * math.prod(left[d] for d in contracted)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
  if labels is None:
    return 0
  window = _window(text)
  # Features and batch come once, spatial dimensions by how many windows are inside.
  products = math.prod(out[labels[3].index(label)] for label in "bf")
  products *= right[labels[2].index("i")]
  for spatial in sorted(c for c in labels[1] if c.isdigit()):
    number = int(spatial)
    products *= _windows_inside(
      left[labels[1].index(spatial)],
      out[labels[3].index(spatial)],
      {name: values[number] for name, values in window.items()},
    )
  return 2 * products


def _window(text: str) -> dict[str, list[tuple[int, ...]]]:
  """Returns a window's fields, a tuple for each spatial dimension."""
  found = re.search(r"window=\{([^}]*)\}", text)
  fields = dict(part.split("=") for part in found[1].split()) if found else {}
  return {
    name: [tuple(int(n) for n in part.split("_")) for part in value.split("x")]
    for name, value in fields.items()
  }


def _windows_inside(size: int, out: int, window: dict[str, tuple[int, ...]]) -> int:
  """Returns over how many (output, kernel) places of a dimension an input lies."""
  (kernel,) = window.get("size", (1,))
  (stride,) = window.get("stride", (1,))
  (dilation,) = window.get("rhs_dilate", (1,))
  (spread,) = window.get("lhs_dilate", (1,))
  before = window.get("pad", (0, 0))[0]
  last = (size - 1) * spread
  count = 0
  for place in range(kernel):
    first = place * dilation - before
    count += sum(
      1
      for start in range(first, first + out * stride, stride)
      if 0 <= start <= last and start % spread == 0
    )
  return count
