"""Where a compiled program's time goes: parts of the model, and what bounds each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from rich.table import Table

from commentree.training.tpu_compile.compiled_costs import Costs
from commentree.training.tpu_compile.tpu_chips import Chip

_OTHER = "other"
_COLLECTIVES = "collectives"
_OPTIMIZER = "optimizer"
_SCANNED = "scanned layers"
# Parts by the names of modules and scopes, the innermost that is here.
_PARTS: tuple[tuple[str, str], ...] = (
  (r"token_embedder|language_embedding", "embedding"),
  (r"(self_)?attention|self_attention\w*_kernel|relpos_bias", "self-attention"),
  (
    r"encoder_decoder_attention|ancestor_attention\w*|ancestors|distance_bias",
    "ancestor-attention",
  ),
  (r"mlp", "MLP"),
  (r"logits\w*|masked_tokens|loss|head|vectors_to_logits|reply_matcher", "logits"),
  (r"pointer", "pointer"),
  (r"\w*norm", "norms"),
  (r"pooling|thread_transformer", "pooling"),
  # What layers add to each other: streams, and their gradients.
  (r"layers(_\d+)?|block", "norms"),
)
_PASSES = ("forward", "recompute", "backward", "update", "")
# Of its time, what products or bytes must take at least to be what bounds a part.
_BOUND = 0.5


@dataclasses.dataclass(frozen=True)
class Row:
  """What a part of the model takes in one of the passes, on a device.

  Attributes:
    part: embedding, self-attention, …
    phase: forward, recompute, backward; update for the optimizer, "" for collectives.
    seconds: as the step counts them; rows add up to the step.
    flops: of products of matrices.
    bytes: read and written in HBM.
    products_seconds: what the products take at the chip's peak.
    bytes_seconds: what the bytes take at the bandwidth of its memory.
    bound: "products" or "bytes", whichever takes longer; "elementwise" where the
      estimate is more than twice either; "network" for collectives.
    kernel_seconds: of `seconds`, of kernels, at most.
    unestimated: operations that count at least, the compiler having no estimate.
  """

  part: str
  phase: str
  seconds: float
  flops: int
  bytes: int
  products_seconds: float
  bytes_seconds: float
  bound: str
  kernel_seconds: float
  unestimated: int


@dataclasses.dataclass
class _Sum:
  seconds: float = 0.0
  flops: int = 0
  bytes: int = 0
  kernel_seconds: float = 0.0
  unestimated: int = 0


def part_of(source: str) -> str:
  """Returns the part of the model that a traced operation belongs to."""
  names = [name for name in re.split(r"[/()]+", source) if name]
  if _OPTIMIZER in names:
    return _OPTIMIZER
  for name in reversed(names):
    module, _, method = name.partition(".")
    if module in ("encoder", "decoder"):
      # Besides its layers, the decoder picks the tokens that are predicted, unless
      # its last layer does.
      return _SCANNED if method == "run" else "logits"
    if (module, method) == ("token_embedder", "attend"):
      return "logits"
    for expression, part in _PARTS:
      if re.fullmatch(expression, module):
        return part
  return _OTHER


def phase_of(source: str) -> str:
  """Returns the pass that a traced operation is of."""
  if part_of(source) == _OPTIMIZER:
    return "update"
  if "rematted_computation" in source:
    return "recompute"
  return "backward" if "transpose(" in source else "forward"


def rows_of(costs: Costs, chip: Chip, step_seconds: float) -> list[Row]:
  """Returns a row for each part and pass, parts that take longest first.

  Args:
    costs: of the program.
    chip: that it runs on.
    step_seconds: that the rows add up to; what operations do not take of them is
      waiting for collectives.
  """
  sums: dict[tuple[str, str], _Sum] = {}

  def of(part: str, phase: str) -> _Sum:
    return sums.setdefault((part, phase), _Sum())

  for operation in costs.operations:
    if operation.is_collective:
      each = of(_COLLECTIVES, "")
    else:
      each = of(part_of(operation.source), phase_of(operation.source))
    each.seconds += operation.cycles / chip.clock_hz
    each.flops += operation.flops
    each.bytes += operation.bytes
  for untimed in costs.untimed:
    each = of(part_of(untimed.source), phase_of(untimed.source))
    most = untimed.most_seconds(chip)
    each.seconds += untimed.least_seconds(chip) if most is None else most
    each.kernel_seconds += most or 0
    each.unestimated += untimed.times if most is None else 0
    each.flops += untimed.times * untimed.flops
    each.bytes += untimed.times * untimed.hbm_bytes
  waiting = step_seconds - sum(each.seconds for each in sums.values())
  if costs.collectives:
    of(_COLLECTIVES, "").seconds += waiting
  whole: dict[str, float] = {}
  for (part, _), each in sums.items():
    whole[part] = whole.get(part, 0) + each.seconds
  order = sorted(sums, key=lambda key: (-whole[key[0]], _PASSES.index(key[1])))
  return [_row(*key, sums[key], chip) for key in order]


def _row(part: str, phase: str, each: _Sum, chip: Chip) -> Row:
  products = each.flops / (chip.flops_per_cycle * chip.clock_hz)
  moving = each.bytes / (chip.hbm_bytes_per_second / chip.devices)
  bound = "products" if products > moving else "bytes"
  if max(products, moving) < _BOUND * each.seconds:
    bound = "elementwise"
  if part == _COLLECTIVES:
    bound = "network"
  return Row(
    part=part,
    phase=phase,
    seconds=each.seconds,
    flops=each.flops,
    bytes=each.bytes,
    products_seconds=products,
    bytes_seconds=moving,
    bound=bound,
    kernel_seconds=each.kernel_seconds,
    unestimated=each.unestimated,
  )


def table(rows: Sequence[Row]) -> Table:
  """Returns the rows and their sum, narrow enough for a terminal of 80 columns."""
  total = sum(row.seconds for row in rows)
  made = Table(
    title="where the time goes, ms",
    title_justify="left",
    show_footer=True,
    box=None,
    pad_edge=False,
  )
  made.add_column("part", "all", no_wrap=True)
  made.add_column("pass", no_wrap=True)
  sums = (
    ("ms", f"{1e3 * total:,.1f}"),
    ("share", "100.0%"),
    ("kernels", f"{1e3 * sum(row.kernel_seconds for row in rows):,.1f}"),
    ("products", f"{1e3 * sum(row.products_seconds for row in rows):,.1f}"),
    ("bytes", f"{1e3 * sum(row.bytes_seconds for row in rows):,.1f}"),
  )
  for heading, footer in sums:
    made.add_column(heading, footer, justify="right")
  made.add_column("bound by")
  before = None
  for row in rows:
    missing = f", {row.unestimated} not estimated" if row.unestimated else ""
    made.add_row(
      row.part if row.part != before else "",
      row.phase,
      f"{1e3 * row.seconds:,.1f}",
      f"{row.seconds / total:.1%}" if total else "-",
      f"{1e3 * row.kernel_seconds:,.1f}",
      f"{1e3 * row.products_seconds:,.1f}",
      f"{1e3 * row.bytes_seconds:,.1f}",
      f"{row.bound}{missing}",
    )
    before = row.part
  return made
