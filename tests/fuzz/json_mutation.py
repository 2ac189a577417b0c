"""Mutations of JSON that is JSON still: what parsers written in C pass on."""

from __future__ import annotations

import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
  *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**400), 0.5),
  *(float("nan"), float("inf"), "", "a", "-1", "[removed]", "\ud800", "\0\n", "é" * 99),
  *([], {}, [None], [[]], {"": 0}, {"id": "a", "parent_id": "a"}, [{"id": 1}, "x"]),
)


def mutate(data: bytes, draw: random.Random) -> bytes | None:
  """Returns JSON, or lines of it, with one to four of its values changed.

  Args:
    data: JSON, or lines of it.
    draw: what chooses.

  Returns:
    None if that is no JSON, or nested too deeply.
  """
  try:
    try:
      documents, line_end = [json.loads(data)], b""
    except ValueError:
      lines = [line for line in data.split(b"\n") if line.strip()]
      documents, line_end = [json.loads(line) for line in lines], b"\n"
    if not documents:
      return None
    for _ in range(draw.choice((1, 1, 2, 4))):
      _change(documents, draw)
    return b"".join(json.dumps(one).encode() + line_end for one in documents)
  except (ValueError, RecursionError):
    return None


def _change(documents: list[Any], draw: random.Random) -> None:
  """Changes a value, a key, or how many there are of them."""
  places = _places(documents)
  if not places:
    documents.append(draw.choice(_VALUES))
    return
  inside, key = draw.choice(places)
  other, other_key = draw.choice(places)
  match draw.randrange(6):
    case 0 | 1:
      inside[key] = _copy(draw.choice(_VALUES))
    case 2:
      inside[key] = _copy(other[other_key])
    case 3:
      del inside[key]
    case 4 if isinstance(inside, dict):
      name = (
        other_key if isinstance(other_key, str) else draw.choice(("", "id", "data"))
      )
      inside[name] = inside.pop(key)
    case 4:
      inside.insert(key, _copy(inside[key]))
    case 5:
      inside[key] = [inside[key]] if draw.random() < 0.5 else {str(key): inside[key]}


def _places(documents: list[Any]) -> list[tuple[Any, Any]]:
  """Each value's place: what it is in, and its key or index there."""
  found: list[tuple[Any, Any]] = []
  waiting: list[Any] = [documents]
  while waiting:
    inside = waiting.pop()
    keys = list(inside) if isinstance(inside, dict) else range(len(inside))
    for key in keys:
      found.append((inside, key))
      if isinstance(inside[key], (dict, list)):
        waiting.append(inside[key])
  return found


def _copy(value: Any) -> Any:
  """A value of its own, so that none is ever inside of itself."""
  return json.loads(json.dumps(value))
