"""Labelled parts of a text, cut up for a page or a terminal to show."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from commentree.tasks.trees.comment_tree import Span

_MAX_SPANS = 200  # of one text


class Label(NamedTuple):
  """A label that begins; or continues, where the end of another broke it off."""

  name: str
  goes_on: bool


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledText:
  """A stretch of text in which no label begins or ends.

  Attributes:
    text: the stretch, not empty.
    opened: the labels that begin in front of it, outer before inner.
    closed: how many of those that are open end behind it, inner before outer.
  """

  text: str
  opened: tuple[Label, ...] = ()
  closed: int = 0


def cut(text: str, spans: Sequence[Span], limit: int) -> tuple[LabelledText, ...]:
  """Cuts the beginning of a text where labels begin and end.

  Args:
    text: as written.
    spans: of it; may overlap. Of very many, the first are shown.
    limit: characters to take.

  Returns:
    Stretches that make up the text; none if no label begins in it.
  """
  text = text[:limit]
  inside = sorted(
    (Span(span.start, min(span.end, len(text)), span.label) for span in spans),
    key=lambda span: (span.start, -span.end),
  )
  inside = [span for span in inside if span.start < span.end][:_MAX_SPANS]
  if not inside:
    return ()
  places = sorted({0, len(text)}.union(*((s.start, s.end) for s in inside)))
  over = [
    [i for i, span in enumerate(inside) if span.start <= start and end <= span.end]
    for start, end in itertools.pairwise(places)
  ]
  stretches = []
  before: list[int] = []
  begun: set[int] = set()
  for number, (start, end) in enumerate(itertools.pairwise(places)):
    here = over[number]
    behind = over[number + 1] if number + 1 < len(over) else []
    opened = here[_common(before, here) :]
    stretches.append(
      LabelledText(
        text[start:end],
        tuple(Label(inside[i].label, i in begun) for i in opened),
        len(here) - _common(here, behind),
      )
    )
    begun.update(opened)
    before = here
  return tuple(stretches)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
  """How many of the first are the same."""
  number = 0
  for number, (a, b) in enumerate(zip(one, other), 1):
    if a != b:
      return number - 1
  return number
