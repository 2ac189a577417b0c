"""A mixture by settings alone: `MIXTURE`, and the corpora that it names."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import get_args

from commentree.errors import UserError
from commentree.tasks.config.objective import ObjectiveName

# Names of tasks that settings make.
GENERATED = "commentree_generated"
FILES = "commentree_files"
MIXTURE = "commentree_mixture"

_OBJECTIVES = get_args(ObjectiveName)
_LEAST_SHARE = Fraction(1, 100_000)


@dataclasses.dataclass(frozen=True)
class Member:
  """A task of a mixture.

  Attributes:
    source: the corpus: one of CORPORA, or FILES or GENERATED.
    objective: what is predicted of its comments.
    rate: relative to the others'.
  """

  source: str
  objective: str
  rate: float

  @property
  def name(self) -> str:
    """What SeqIO knows the task by."""
    return f"{self.source}:{self.objective}"


def members(
  mixture: Mapping[str, float],
  corpora: Mapping[str, str | Sequence[str]],
  objective: str,
) -> list[Member]:
  """The tasks that `MIXTURE` names, by name: gin writes no other order of a mapping.

  Args:
    mixture: rates of 'CORPUS:OBJECTIVE', 'CORPUS' or 'OBJECTIVE'.
    corpora: `CORPORA`.
    objective: of those that name none.

  Raises:
    UserError: naming the entry that cannot be.
  """
  sources = (*corpora, FILES, GENERATED)
  for name in corpora:
    if not re.fullmatch(r"\w+", str(name)) or name in (*_OBJECTIVES, FILES, GENERATED):
      raise UserError(
        f"CORPORA: {name!r} cannot be a corpus's name: take letters, digits and _, and"
        " none of commentree's own names"
      )
  found: dict[str, Member] = {}
  for key, rate in mixture.items():
    source, _, predicted = str(key).partition(":")
    if source in _OBJECTIVES and not predicted:
      source, predicted = FILES, source
    member = Member(source, predicted or objective, rate)
    if source not in sources:
      raise UserError(
        f"MIXTURE: {key!r}: there is no corpus {source!r}; CORPORA has"
        f" {', '.join(corpora) or 'none'}, FILES are {FILES!r}"
      )
    if member.objective not in _OBJECTIVES:
      raise UserError(
        f"MIXTURE: {key!r}: there is no objective {member.objective!r}; there are"
        f" {', '.join(_OBJECTIVES)}"
      )
    if member.name in found:
      raise UserError(f"MIXTURE: {key!r}: {member.name!r} is in it twice")
    found[member.name] = member
  unread = set(corpora) - {member.source for member in found.values()}
  if unread:
    raise UserError(
      f"CORPORA: MIXTURE has no rate for {', '.join(sorted(unread))}; add one or leave"
      " the corpus out"
    )
  return [found[name] for name in sorted(found)]


def shares(name: str, rates: Mapping[str, float]) -> list[Fraction]:
  """What part of a mixture each of its tasks is; together exactly 1.

  Rates are taken as they are written: 0.1 is a tenth.

  Args:
    name: of the mixture, for what is said of it.
    rates: of each task, relative to the others.

  Raises:
    UserError: for a rate that is no positive number, or far below the others.
  """
  if not rates:
    raise UserError(f"{name}: is a mixture without tasks")
  exact = []
  for task, rate in rates.items():
    real = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not real or not math.isfinite(rate) or rate <= 0:
      raise UserError(f"{name}: the rate of {task!r} is {rate!r}: must be above 0")
    exact.append(Fraction(repr(float(rate))))
  total = sum(exact)
  found = [rate / total for rate in exact]
  if (least := min(found)) < _LEAST_SHARE:
    task = list(rates)[found.index(least)]
    raise UserError(
      f"{name}: the rate of {task!r} is {float(least):.2g} of all: less than"
      f" {float(_LEAST_SHARE):g} cannot be mixed in; leave it out"
    )
  return found
