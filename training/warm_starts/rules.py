"""Which array each parameter comes from: rules, and the plan that they make.

A plan accounts for every parameter and for every array of the source. What does not
fit is reported at once, all of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
import msgspec

from commentree.errors import UserError
from commentree.training.warm_starts import transforms
from commentree.training.warm_starts.formats.array_source import ArraySource, ArraySpec
from commentree.training.warm_starts.transforms import TransformChain

Fate = Literal["loaded", "grown", "fresh", "zero"]
NEW: tuple[Fate, ...] = ("fresh", "zero")
"""What becomes of parameters that no array is for."""

OPTIMIZER_PREFIX = "state."
"""Of arrays in T5X's layout that are no parameters: a warm start leaves them behind."""

# A table may have more rows than the vocabulary has tokens, by what it was padded to:
# multiples of up to 1,024. One of another vocabulary differs by more, as a rule, and
# that must not go unnoticed. With fewer rows than tokens, it grows.
ROWS, COLUMNS = (f"grow:{axis}, cut:{axis}:1023" for axis in (0, 1))

Mismatches = dict[tuple[str, str], list[str]]

_SHOWN_ARRAYS = 4
_MOST_LAYERS = 10_000
_STACK = re.compile(r"(^|\.)layers(?=\.)")
_LAYER = re.compile(r"(?<![A-Za-z])((?:layers?|blocks?|h)[._])(\d+)(?=[._]|$)")


@dataclasses.dataclass(frozen=True)
class Rule:
  r"""Where some parameters come from.

  Attributes:
    parameter: regular expression that the whole of a parameter's name must match, as
      in `encoder.layers_3.mlp.wi_0.kernel`. Stacked layers (`scan_layers`) are sought
      one by one under these names, too.
    source: name of the array, where `\1` or `\g<name>` stand for groups of the
      expression; with a `?` at its end, the parameter is fresh where there is no such
      array. None: always fresh.
    transform: what is done to the array; see `transforms`.
  """

  parameter: str
  source: str | None
  transform: str = ""


Assignment = Sequence[Rule]
"""The first rule that matches a parameter counts."""


@dataclasses.dataclass(frozen=True)
class SourceSlice:
  """An array of the source, and what is done to it."""

  source: str
  chain: TransformChain


@dataclasses.dataclass(frozen=True)
class PlanEntry:
  """What becomes of a parameter.

  Attributes:
    parameter: its name.
    spec: its shape and type.
    fate: `loaded`; `grown`, loaded and longer than what is there; `fresh`, drawn; or
      `zero`, new as well but 0 everywhere.
    slices: what it is made of: one array, or one for each layer if they are stacked;
      none if it is new.
    stacked: whether the slices are layers, along axis 0.
    transform: the rule's.
    length: entries of a grown or cut axis in the source; of a cut one all that it has.
  """

  parameter: str
  spec: ArraySpec
  fate: Fate
  slices: tuple[SourceSlice, ...] = ()
  stacked: bool = False
  transform: str = ""
  length: int | None = None


@dataclasses.dataclass(frozen=True)
class WarmStartPlan:
  """What becomes of every parameter, and of every array.

  Attributes:
    path: the source, as named to the user.
    kind: what it is.
    lines: one for each parameter, in their order.
    unused: arrays that no parameter comes from, optimizer state apart.
    left_behind: how many arrays of optimizer state there are.
  """

  path: str
  kind: str
  lines: tuple[PlanEntry, ...]
  unused: tuple[str, ...]
  left_behind: int

  def of(self, *read_counts: Fate) -> list[PlanEntry]:
    """Returns the lines with one of these read_counts."""
    return [line for line in self.lines if line.fate in read_counts]

  def fresh(self) -> list[str]:
    """Returns the names of parameters that no array is for."""
    return [line.parameter for line in self.of(*NEW)]

  def summary(self) -> str:
    """Returns one line about what is done."""
    parts = []
    for fate in get_args(Fate):
      lines = self.of(fate)
      numbers = sum(math.prod(line.spec.shape) for line in lines)
      if lines or fate != "zero":
        word = "fresh at 0" if fate == "zero" else fate
        parts.append(f"{len(lines)} {word} ({numbers:,} numbers)")
    said = f"parameters: {', '.join(parts)}; arrays unused: {len(self.unused)}"
    if self.left_behind:
      said += f", and {self.left_behind} of optimizer state and step left behind"
    return said

  def report(self) -> list[str]:
    """Returns lines that name every parameter and every unused array."""
    rows: dict[Any, list[PlanEntry]] = collections.defaultdict(list)
    for line in self.lines:
      names = collapse([line.parameter, *(part.source for part in line.slices)])
      key = dataclasses.replace(line, parameter="", slices=line.slices[:0])
      rows[(tuple(template for template, _ in names), key)].append(line)
    table = []
    for group in rows.values():
      joined = " ".join(collapsed(line.parameter for line in group))
      shape = " x ".join(map(str, group[0].spec.shape)) or "scalar"
      sources = " ".join(collapsed(p.source for line in group for p in line.slices))
      table.append((joined, shape, _fate_in_words(group[0], sources)))
    widths = [max((len(row[i]) for row in table), default=0) for i in (0, 1)]
    said = [
      f"  {names:<{widths[0]}}  {shape:<{widths[1]}}  {fate}"
      for names, shape, fate in table
    ]
    said += [f"  unused: {name}" for name in collapsed(self.unused)]
    if self.left_behind:
      said.append(f"  left behind: optimizer state and step, {self.left_behind} arrays")
    return said

  def to_json(self) -> dict[str, Any]:
    """Returns what the run's record keeps of it."""
    return {
      "path": self.path,
      "kind": self.kind,
      "loaded": len(self.of("loaded")),
      "grown": collapsed(line.parameter for line in self.of("grown")),
      **{fate: collapsed(line.parameter for line in self.of(fate)) for fate in NEW},
      "unused": collapsed(self.unused),
      "optimizer_arrays_left_behind": self.left_behind,
    }


def fresh_of(noted: Mapping[str, Any]) -> list[str]:
  """Returns `Plan.fresh` of a plan that `Plan.to_json` was asked of.

  Raises:
    ValueError: if it is not what that returns.
  """
  noted = msgspec.convert(noted, dict[str, Any])
  names = [msgspec.convert(noted.get(fate, ()), list[str]) for fate in NEW]
  return [name for some in names for name in expanded(some)]


def plan(
  target: Mapping[str, ArraySpec],
  source: ArraySource,
  rules: Assignment,
  own: Assignment = (),
) -> WarmStartPlan:
  """Works out where every parameter comes from; reads no values.

  Args:
    target: the parameters.
    source: the arrays there are.
    rules: for any source of this kind.
    own: the user's, which come first; each must match some parameter.

  Raises:
    UserError: naming all parameters that no rule is for, arrays that are not there,
      and shapes that differ; or a rule that cannot be read or matches nothing.
  """
  planner = _Planner(source, [*own, *rules])
  lines = [planner.line(name, spec) for name, spec in target.items()]
  for number, rule in enumerate(own):
    if number not in planner.matched:
      raise UserError(
        f"WARM_START_RULES: {rule.parameter!r} matches no parameter; `commentree train"
        " --dry_run` lists them"
      )
  if planner.mismatches:
    raise UserError(_mismatch_message(source, planner.mismatches))
  if not planner.used:
    raise UserError(
      f"{source.path} ({source.kind}) holds no array that a parameter could come from;"
      f" it has {', '.join(list(source.arrays)[:_SHOWN_ARRAYS]) or 'none'}: say by"
      " WARM_START_RULES which to take"
    )
  rest = [name for name in source.arrays if name not in planner.used]
  optimizer = [name for name in rest if name.startswith(OPTIMIZER_PREFIX)]
  return WarmStartPlan(
    path=str(source.path),
    kind=source.kind,
    lines=tuple(lines),
    unused=tuple(name for name in rest if not name.startswith(OPTIMIZER_PREFIX)),
    left_behind=len(optimizer),
  )


class _Planner:
  """Applies rules, and collects what does not fit."""

  def __init__(self, source: ArraySource, rules: Assignment):
    self._source = source
    self._rules = [(_compiled(rule), rule) for rule in rules]
    self.matched: set[int] = set()
    self.used: set[str] = set()
    # By what is wrong, and the array if it has another name: the parameters.
    self.mismatches: Mismatches = collections.defaultdict(list)

  def _note(self, why: str, name: str, source: str = "") -> None:
    array = "" if source.endswith(name) else collapse([source])[0][0]
    self.mismatches[why, array].append(name)

  def line(self, name: str, spec: ArraySpec) -> PlanEntry:
    """Returns a parameter's line; fresh if something is wrong, which is noted."""
    stacked = _STACK.search(name) is not None and bool(spec.shape)
    if not stacked:
      return self._line(name, spec, [(name, spec)], stacked=False)
    each = ArraySpec(spec.shape[1:], spec.dtype)
    layers = [
      (_STACK.sub(rf"\1layers_{layer}", name, count=1), each)
      for layer in range(spec.shape[0])
    ]
    return self._line(name, spec, layers, stacked=True)

  def _line(
    self,
    name: str,
    spec: ArraySpec,
    parts: Sequence[tuple[str, ArraySpec]],
    *,
    stacked: bool,
  ) -> PlanEntry:
    made = [self._part(part, part_spec) for part, part_spec in parts]
    there = [line for line in made if line is not None and line.slices]
    if not there:
      read_counts = {line.fate for line in made if line is not None}
      if len(read_counts) > 1:
        self._note("some of its layers are 0 and others drawn", name)
      return PlanEntry(name, spec, "zero" if read_counts == {"zero"} else "fresh")
    if len(there) < len(made):
      if None not in made:
        self._note("only some of its layers are there", name)
      return PlanEntry(name, spec, "fresh")
    first = there[0]
    if first.fate == "grown" and stacked:
      self._note("stacked layers cannot grow", name)
    return dataclasses.replace(
      first,
      parameter=name,
      spec=spec,
      slices=tuple(part for line in there for part in line.slices),
      stacked=stacked,
    )

  def _part(self, name: str, spec: ArraySpec) -> PlanEntry | None:
    """Returns the line of one array, None if something is wrong."""
    for number, (pattern, rule) in enumerate(self._rules):
      match = pattern.fullmatch(name)
      if match:
        self.matched.add(number)
        return self._by_rule(name, spec, rule, match)
    self._note("no rule says where it comes from", name)
    return None

  def _by_rule(
    self, name: str, spec: ArraySpec, rule: Rule, match: re.Match[str]
  ) -> PlanEntry | None:
    source = rule.source or ""
    optional = rule.source is None or source.endswith("?")
    try:
      wanted = match.expand(source.removesuffix("?"))
      chain = transforms.parse(rule.transform, spec.shape)
    except (re.error, IndexError, ValueError) as error:
      raise UserError(
        f"WARM_START_RULES: the rule for {rule.parameter!r} cannot be read: {error}"
      ) from error
    there = self._source.arrays.get(wanted)
    if rule.source is None or there is None:
      if optional:
        return PlanEntry(name, spec, "zero" if chain.zeros else "fresh")
      self._note("is not there", name, wanted)
      return None
    self.used.add(wanted)
    why, fate, length = _fit(there, spec, chain)
    if why is not None:
      self._note(why, name, wanted)
      return None
    part = SourceSlice(wanted, chain)
    return PlanEntry(
      name, spec, fate, (part,), transform=rule.transform.strip(), length=length
    )


def _fit(
  there: ArraySpec, here: ArraySpec, chain: TransformChain
) -> tuple[str | None, Fate, int | None]:
  """Returns why an array does not fit, or None; what is done; and the length there."""
  if not jnp.issubdtype(there.dtype, jnp.floating):
    return f"is {there.dtype} there, {here.dtype} here", "loaded", None
  try:
    shape = chain.shape(there.shape)
  except ValueError as error:
    return f"of shape {there.shape} {error}", "loaded", None
  if shape == here.shape:
    return None, "loaded", None
  for axis, longer in ((chain.grow, True), (chain.cut, False)):
    if axis is None or len(shape) != len(here.shape) or axis >= len(shape):
      continue
    rest = (*shape[:axis], here.shape[axis], *shape[axis + 1 :])
    cut = shape[axis] - here.shape[axis]
    allowed = cut < 0 if longer else chain.most_cut is None or cut <= chain.most_cut
    if rest == here.shape and allowed and (cut < 0) == longer:
      return None, "grown" if longer else "loaded", shape[axis]
  given = f" as {shape}" if chain.transforms else ""
  return f"has shape {there.shape} there{given}, {here.shape} here", "loaded", None


def _compiled(rule: Rule) -> re.Pattern[str]:
  try:
    return re.compile(rule.parameter)
  except re.error as error:
    raise UserError(
      f"WARM_START_RULES: {rule.parameter!r} is no regular expression: {error}"
    ) from error


def _mismatch_message(source: ArraySource, mismatches: Mismatches) -> str:
  """Returns one line with all that is wrong, layers together."""
  said = []
  for (why, array), names in mismatches.items():
    origin = f" (from {array.format('#')})" if array else ""
    said.append(f"{', '.join(collapsed(names))}{origin}: {why}")
  count = sum(map(len, mismatches.values()))
  return (
    f"{source.path} ({source.kind}) is of another model, {count} parameters do not fit:"
    f" {'; '.join(said)}: use the same sizes and vocabulary, or say by"
    " WARM_START_RULES where they come from"
  )


def collapse(names: Iterable[str]) -> list[tuple[str, list[int]]]:
  """Returns names with `{}` for the number of a layer, and the numbers, in order."""
  found: dict[str, list[int]] = {}
  for name in names:
    match = _LAYER.search(name)
    if match is None:
      found.setdefault(name.replace("{", "{{").replace("}", "}}"), [])
      continue
    head, tail = name[: match.start(2)], name[match.end(2) :]
    template = "{}".join(t.replace("{", "{{").replace("}", "}}") for t in (head, tail))
    found.setdefault(template, []).append(int(match[2]))
  return list(found.items())


def collapsed(names: Iterable[str]) -> list[str]:
  """Returns names with those of several layers as one, as in `layers_{0-11}.mlp`."""
  said = []
  for template, numbers in collapse(names):
    ranges = _ranges(sorted(set(numbers)))
    said.append(template.format("{" + ranges + "}" if len(numbers) > 1 else ranges))
  return said


def expanded(names: Iterable[str]) -> list[str]:
  """Returns the names that `collapsed` was given, in order of the layers."""
  found: list[str] = []
  for name in names:
    head, brace, rest = name.partition("{")
    if not brace:
      found.append(name)
      continue
    ranges, _, tail = rest.partition("}")
    for ends in ranges.split(","):
      first, _, last = ends.partition("-")
      layers = range(int(first), int(last or first) + 1)
      if len(layers) > _MOST_LAYERS:
        raise ValueError(f"{name} stands for {len(layers):,} layers")
      found += [f"{head}{layer}{tail}" for layer in layers]
  return found


def _ranges(numbers: Sequence[int]) -> str:
  runs: list[list[int]] = []
  for number in numbers:
    if runs and runs[-1][-1] == number - 1:
      runs[-1].append(number)
    else:
      runs.append([number])
  return ",".join(
    str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs
  )


def _fate_in_words(line: PlanEntry, sources: str) -> str:
  if line.fate in NEW:
    return "fresh" if line.fate == "fresh" else "fresh, at 0"
  # That a rule allows for growth is worth no word where nothing grows.
  words = [w.strip() for w in line.transform.split(",")]
  done = ", ".join(w for w in words if not w.startswith(("grow", "cut", "zeros")))
  how = f" ({done})" if done else ""
  said = f"from {sources}{how}"
  if line.fate == "grown":
    said += f": grown from {line.length}, what is new is their mean"
  elif line.length is not None:
    said += f": cut from {line.length}"
  return said
