"""How settings differ from those that were noted before, for one line to the user."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

_MAX_SHOWN_CHARACTERS = 80


class _Absent:
  """Stands for a value that there is not."""

  def __repr__(self) -> str:
    return "absent"


_ABSENT = _Absent()


class Difference(NamedTuple):
  """A setting that is not as before.

  Attributes:
    name: of the setting; 'subtrees.max_tree_size' of one within another.
    before: its value then, as Python writes it, shortened; 'absent' if there was none.
    now: its value now, likewise.
  """

  name: str
  before: str
  now: str


def find(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
  """Returns the settings that two mappings do not share, by name.

  Values are compared as JSON has them: a list is as a tuple.
  """
  return list(_find(as_json(before), as_json(now)))


def _find(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Difference]:
  for name in sorted({*before, *now}):
    was, has_become = before.get(name, _ABSENT), now.get(name, _ABSENT)
    if isinstance(was, dict) and isinstance(has_become, dict):
      for inner in _find(was, has_become):
        yield inner._replace(name=f"{name}.{inner.name}")
    elif was != has_become:
      yield Difference(name, _shown(was), _shown(has_become))


def as_json(value: Any) -> Any:
  """Returns a value as it is read back from JSON."""
  return json.loads(json.dumps(value))


def listed(texts: Iterable[str], most: int, separator: str = ", ") -> str:
  """Returns the first texts in a row, and how many more there are."""
  texts = list(texts)
  more = len(texts) - most
  return separator.join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
  text = repr(value)
  longest = _MAX_SHOWN_CHARACTERS
  return text if len(text) <= longest else text[: longest - 1] + "…"
