"""JSON that is nested more deeply than Python's stack, some levels at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

_NO_BRACKET = re.compile(r'(?:[^"\[\]{}N]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_OPENERS, _CLOSERS = re.compile(r"[\[{]++"), re.compile(r"[\]}]++")
_LEVELS = 100  # parsed at once, of JSON that is nested more deeply than Python's stack


@dataclasses.dataclass
class _Container:
  """A container that is open, with what is known of it so far.

  Attributes:
    start: where its bracket stands.
    at: from where on its text is not in `text` yet.
    text: with `NaN` in place of containers that were parsed by themselves.
    values: those containers' values, and those of what is written as NaN, in order.
    is_deep: whether `levels` more are open in it, or were.
  """

  start: int
  at: int
  text: list[str] = dataclasses.field(default_factory=list)
  values: list[Any] = dataclasses.field(default_factory=list)
  is_deep: bool = False

  def parse(self, content: str, end: int) -> Any:
    """The value, of the container's text up to a place."""
    values = iter(self.values)
    decoder = json.JSONDecoder(
      strict=False,
      parse_constant=lambda name: next(values) if name == "NaN" else float(name),
    )
    return decoder.decode("".join([*self.text, content[self.at : end]]))

  def take(self, inner: _Container, content: str, end: int) -> None:
    """Takes the value of a container in this one that ends before a place."""
    if not inner.is_deep:  # parsed with this one
      self.values += inner.values
      return
    self.text += [content[self.at : inner.start], "NaN"]
    self.values.append(inner.parse(content, end))
    self.at = end


def parse(content: str, levels: int = _LEVELS) -> Any:
  """Returns what `json.loads` would, were it not for the depth; takes linear time.

  Args:
    content: JSON or not.
    levels: so many levels are parsed at once, or up to twice as many.

  Raises:
    ValueError: if it is no JSON.
  """
  # The whole, and what is open at each level that is a multiple of `levels`.
  containers = [_Container(0, 0)]
  depth = at = 0
  while (at := _match_end(_NO_BRACKET, content, at)) < len(content):
    end = _match_end(_OPENERS, content, at)
    if end > at:
      for place in range(at + levels - 1 - depth % levels, end, levels):
        containers[-1].is_deep = True
        containers.append(_Container(place, place))
      depth += end - at
    elif (end := _match_end(_CLOSERS, content, at)) > at:
      if end - at > depth:
        raise ValueError("a bracket that closes none")
      for place in range(at + depth % levels, end, levels):
        inner = containers.pop()
        containers[-1].take(inner, content, place + 1)
      depth -= end - at
    elif content.startswith("NaN", at):
      containers[-1].values.append(math.nan)
      end = at + len("NaN")
    else:
      raise ValueError("a string without an end, or a word that is none")
    at = end
  if depth:
    raise ValueError("a bracket that is not closed")
  return containers[0].parse(content, len(content))


def _match_end(pattern: re.Pattern[str], content: str, at: int) -> int:
  match = pattern.match(content, at)
  return at if match is None else match.end()
