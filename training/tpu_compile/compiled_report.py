"""What is known of a compiled program, for people and for programs."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from commentree.training.tpu_compile import roofline
from commentree.training.tpu_compile.compiled_costs import (
  Costs,
  Operation,
  Untimed,
  by_kind,
)
from commentree.training.tpu_compile.topologies import Topology
from commentree.training.tpu_compile.tpu_chips import GIB, Chip

COSTLIEST = 10

# Parts of a traced operation's path that say nothing to a reader of the model.
_NOISE = re.compile(
  r"^jit\([^)]*\)|^(?:while|body|closed_call|checkpoint|rematted_computation|block)$"
  r"|^CommentTreeTransformer\.?"
)


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device's memory.

  Attributes:
    arguments: parameters, optimizer state, batch.
    outputs: what the program returns.
    aliased: outputs that lie where arguments lay.
    temporaries: activations and the like, at their highest.
    code: the program itself.
    needed: all of it; None if it does not fit and the compiler did not say.
    limit: what a program may use.
  """

  arguments: int
  outputs: int = 0
  aliased: int = 0
  temporaries: int = 0
  code: int = 0
  needed: int | None = None
  limit: int = 0

  @property
  def suffices(self) -> bool:
    """Whether a program that compiled also has room: libtpu refuses only some."""
    return self.needed is not None and self.needed <= self.limit


@dataclasses.dataclass(frozen=True)
class Messages:
  """All collectives of one kind, repetitions included.

  Attributes:
    kind: all-reduce, all-gather, …
    network: "ICI" within a slice, "DCN" between slices.
    count: how many.
    bytes: of their larger side on a device.
  """

  kind: str
  network: str
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Costly:
  """The operations from one place in the model, of those that cost most.

  Attributes:
    name: in the compiled module, of the costliest.
    source: where it comes from in the model.
    place: the file and line that traced it.
    times: repetitions, in all layers.
    milliseconds: of all of them.
    share: of the time of all operations.
  """

  name: str
  source: str
  place: str
  times: int
  milliseconds: float
  share: float


@dataclasses.dataclass(frozen=True)
class UntimedKind:
  """All operations from one place in the model that the compiler does not estimate.

  Attributes:
    source: where they come from in the model.
    place: the file and line that traced them.
    times: repetitions.
    least_seconds: of all, by their products at the chip's peak or their bytes at the
      bandwidth of its memory.
    most_seconds: of all, computing and bytes one after the other; None if not known.
  """

  source: str
  place: str
  times: int
  least_seconds: float
  most_seconds: float | None

  @property
  def counted_seconds(self) -> float:
    """What the step counts."""
    return self.least_seconds if self.most_seconds is None else self.most_seconds


@dataclasses.dataclass(frozen=True)
class CompiledReport:
  """A compiled program.

  Seconds are the compiler's estimated cycles by the chip's clock, unless said
  otherwise. What did not fit has None for all that only a compiled program shows.

  Attributes:
    program: train, eval or infer.
    topology: one slice's name.
    num_slices: slices.
    chips: chips of all slices.
    devices: JAX devices of all slices.
    mesh: devices along each axis of the mesh.
    parameters: of the model.
    batch_size: forests.
    comments: expected in a batch.
    fits: whether a device's memory is enough.
    memory: of a device.
    model_flops: that the batch needs on all devices, recomputation not counted.
    device_flops: products of matrices that a device does.
    operations_seconds: of a device's operations, one after the other; of those in
      `untimed` the most, or where that is not known, the least.
    untimed: operations that the compiler does not estimate.
    blocking_seconds: least time of messages that nothing else runs beside.
    ici_seconds: least time of all messages within slices.
    dcn_seconds: least time of all messages between slices.
    step_seconds: the estimate: operations and blocking messages, or a network's
      messages if they take longer.
    comments_per_second_per_chip: by that estimate.
    utilization: model FLOPs over what the chips could do at most meanwhile.
    messages: collectives by kind.
    roofline: where the time goes; rows add up to the step.
    costliest: operations.
    unknown_loops: loops counted once, their repetitions not being seen.
    compile_seconds: what compiling took.
  """

  program: str
  topology: str
  num_slices: int
  chips: int
  devices: int
  mesh: Mapping[str, int]
  parameters: int
  batch_size: int
  comments: float
  fits: bool
  memory: Memory
  model_flops: float
  compile_seconds: float
  device_flops: float | None = None
  operations_seconds: float | None = None
  blocking_seconds: float | None = None
  ici_seconds: float | None = None
  dcn_seconds: float | None = None
  step_seconds: float | None = None
  comments_per_second_per_chip: float | None = None
  utilization: float | None = None
  messages: Sequence[Messages] = ()
  roofline: Sequence[roofline.Row] = ()
  costliest: Sequence[Costly] = ()
  untimed: Sequence[UntimedKind] = ()
  unknown_loops: int = 0

  @classmethod
  def of(
    cls,
    *,
    topology: Topology,
    comments: float,
    model_flops: float,
    costs: Costs | None,
    **known: Any,
  ) -> CompiledReport:
    """Makes the report of a program from its costs, None if it did not fit."""
    chip = topology.chip
    known |= {
      "topology": topology.name,
      "num_slices": topology.num_slices,
      "chips": topology.chips,
      "devices": len(topology.devices),
      "comments": comments,
      "model_flops": model_flops,
    }
    if costs is None:
      return cls(**known)
    untimed = _untimed(costs, chip)
    operations = costs.cycles / chip.clock_hz
    operations += sum(kind.counted_seconds for kind in untimed)
    timed = [(each, each.seconds(chip)) for each in costs.collectives]
    blocking = sum(s for each, s in timed if not each.asynchronous)
    dcn = sum(s for each, s in timed if each.between_slices)
    ici = sum(s for each, s in timed if not each.between_slices)
    step = max(operations + blocking, ici, dcn)
    peak = chip.clock_hz * chip.flops_per_cycle * len(topology.devices)
    return cls(
      **known,
      device_flops=costs.flops,
      operations_seconds=operations,
      blocking_seconds=blocking,
      ici_seconds=ici,
      dcn_seconds=dcn,
      step_seconds=step,
      comments_per_second_per_chip=comments / step / topology.chips,
      utilization=model_flops / (peak * step),
      messages=[
        Messages(kind, "DCN" if between else "ICI", count, size)
        for kind, between, count, size in by_kind(costs.collectives)
      ],
      roofline=roofline.rows_of(costs, chip, step),
      costliest=costliest_places(costs, chip, operations),
      untimed=untimed,
      unknown_loops=costs.unknown_loops,
    )

  def to_json(self) -> dict[str, Any]:
    """Returns the report as JSON has it, sizes in bytes and times in seconds."""
    return dataclasses.asdict(self)

  @property
  def untimed_seconds(self) -> tuple[float, float | None]:
    """The least and the most that untimed operations take; None if not known."""
    most = [kind.most_seconds for kind in self.untimed]
    known = [seconds for seconds in most if seconds is not None]
    return (
      sum(kind.least_seconds for kind in self.untimed),
      sum(known) if len(known) == len(most) else None,
    )

  def verdict(self) -> str:
    """Returns one sentence: whether it fits."""
    memory = self.memory
    limit = f"{memory.limit / GIB:.2f} GiB"
    if self.fits and memory.needed is not None:
      return f"fits: {memory.needed / GIB:.2f} of {limit} on each device"
    if memory.needed is None:
      return f"does not fit the {limit} of a device"
    return f"does not fit: needs {memory.needed / GIB:.2f} of {limit} on each device"


def _untimed(costs: Costs, chip: Chip) -> list[UntimedKind]:
  """Adds up untimed operations by their source, the costliest first."""
  kinds: dict[tuple[str, str], list[Untimed]] = {}
  for each in costs.untimed:
    kinds.setdefault((readable_source(each.source), each.place), []).append(each)
  found = []
  for (source, place), alike in kinds.items():
    most = [each.most_seconds(chip) for each in alike]
    known = [seconds for seconds in most if seconds is not None]
    found.append(
      UntimedKind(
        source=source,
        place=place,
        times=sum(each.times for each in alike),
        least_seconds=sum(each.least_seconds(chip) for each in alike),
        most_seconds=sum(known) if len(known) == len(most) else None,
      )
    )
  return sorted(found, key=lambda kind: -kind.counted_seconds)


def costliest_places(costs: Costs, chip: Chip, seconds: float) -> list[Costly]:
  """Adds up operations by their source, all layers of a stack together."""
  kinds: dict[tuple[str, str], list[Operation]] = {}
  for each in costs.operations:
    kinds.setdefault((readable_source(each.source), each.place), []).append(each)
  found = []
  for (source, place), alike in kinds.items():
    taken = sum(each.cycles for each in alike) / chip.clock_hz
    found.append(
      Costly(
        name=alike[0].name,
        source=source,
        place=place,
        times=sum(each.times for each in alike),
        milliseconds=1e3 * taken,
        share=taken / seconds,
      )
    )
  return sorted(found, key=lambda kind: -kind.milliseconds)[:COSTLIEST]


def readable_source(source: str) -> str:
  """Returns an operation's path without what tracing adds to it.

  `backward` and `again` mark gradients and what is computed a second time for them.
  Unrolled layers are called as scanned ones, "layers".
  """
  backward = "transpose(jvp" in source
  again = "rematted_computation" in source
  parts = re.sub(r"transpose\(jvp\((.*?)\)\)|jvp\((.*?)\)", r"\1\2", source).split("/")
  said = [part for part in (_NOISE.sub("", p) for p in parts) if part]
  # A scan's layers are named by the scan and by the layer.
  kept = [
    re.sub(r"^layers_\d+$", "layers", part) for part, _ in itertools.groupby(said)
  ]
  marks = [
    mark
    for mark, there in (("again", again), ("backward", backward and not again))
    if there
  ]
  # So is a gradient's path, by the layer's place and within it.
  path = re.sub(r"^(.+)/\1/", r"\1/", "/".join(kept))
  return " ".join([*marks, path])


def render(report: CompiledReport) -> RenderableType:
  """Returns the report for a terminal."""
  title = Text(f"{report.program}: {report.verdict()}", style="bold")
  parts: list[RenderableType] = [title, _facts(report)]
  if report.roofline:
    parts.append(roofline.table(report.roofline))
  if report.messages:
    parts.append(_messages(report))
  if report.untimed:
    parts.append(_untimed_table(report))
  if report.costliest:
    parts.append(_operations(report))
  if report.unknown_loops:
    parts.append(
      Text(f"{report.unknown_loops} loops counted once: how often they run is not seen")
    )
  return Group(*parts)


def _facts(report: CompiledReport) -> Table:
  memory = report.memory
  axes = " x ".join(f"{n} {axis}" for axis, n in report.mesh.items() if n > 1) or "1"
  table = Table.grid(padding=(0, 2))
  chips = f"{report.chips} chips" + (
    f" in {report.num_slices} slices" if report.num_slices > 1 else ""
  )
  table.add_row("slice", f"{report.topology}, {chips}; mesh {axes}")
  table.add_row(
    "work",
    f"{report.parameters:,} parameters; {report.batch_size:,} forests,"
    f" {report.comments:,.0f} comments a step",
  )
  if not report.fits:
    table.add_row("arguments", f"{memory.arguments / GIB:.2f} GiB on each device")
    return table
  table.add_row(
    "memory",
    f"{memory.arguments / GIB:.2f} GiB arguments,"
    f" {memory.temporaries / GIB:.2f} temporaries,"
    f" {(memory.outputs - memory.aliased) / GIB:.2f} outputs besides,"
    f" {memory.code / GIB:.2f} code",
  )
  table.add_row(
    "FLOPs",
    f"{report.model_flops:.3g} for the model; {report.device_flops:.3g} on each device",
  )
  table.add_row(
    "step",
    f"{1e3 * (report.step_seconds or 0):,.1f} ms estimated:"
    f" {1e3 * (report.operations_seconds or 0):,.1f} operations,"
    f" {1e3 * (report.blocking_seconds or 0):,.1f} waiting for messages",
  )
  if report.untimed:
    least, most = report.untimed_seconds
    table.add_row(
      "kernels",
      f"not timed by the compiler: {1e3 * least:,.1f} ms at least,"
      f" {'unknown' if most is None else f'{1e3 * most:,.1f} ms'} at most;"
      " operations count the most",
    )
  network = f"{1e3 * (report.ici_seconds or 0):,.1f} ms of messages within slices"
  if report.dcn_seconds:
    network += f", {1e3 * report.dcn_seconds:,.1f} between them"
  table.add_row("network", f"{network}, at the least")
  table.add_row(
    "rate",
    f"{report.comments_per_second_per_chip or 0:,.0f} comments/s/chip,"
    f" {report.utilization or 0:.1%} model FLOP utilisation",
  )
  return table


def _messages(report: CompiledReport) -> Table:
  table = Table(title="messages of a device", title_justify="left")
  for heading in ("kind", "network"):
    table.add_column(heading)
  for heading in ("count", "MB"):
    table.add_column(heading, justify="right")
  for each in report.messages:
    table.add_row(
      each.kind, each.network, f"{each.count:,}", f"{each.bytes / 1e6:,.1f}"
    )
  return table


def _untimed_table(report: CompiledReport) -> Table:
  table = Table(
    title="kernels, and others that the compiler does not time",
    title_justify="left",
  )
  for heading in ("ms at least", "at most", "times"):
    table.add_column(heading, justify="right")
  table.add_column("where", overflow="fold")
  for kind in report.untimed:
    most = kind.most_seconds
    table.add_row(
      f"{1e3 * kind.least_seconds:,.2f}",
      "unknown" if most is None else f"{1e3 * most:,.2f}",
      str(kind.times),
      f"{kind.source}  {kind.place}",
    )
  return table


def _operations(report: CompiledReport) -> Table:
  table = Table(title="costliest operations", title_justify="left")
  table.add_column("share", justify="right")
  table.add_column("ms", justify="right")
  table.add_column("times", justify="right")
  table.add_column("where", overflow="fold")
  for each in report.costliest:
    table.add_row(
      f"{each.share:.1%}",
      f"{each.milliseconds:,.2f}",
      str(each.times),
      f"{each.source}  {each.place}",
    )
  return table
