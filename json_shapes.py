"""JSON that lies in a file, which may hold anything, as what is expected there."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

T = TypeVar("T")


def parse(text: str | bytes, shape: type[T]) -> T:
  """Returns JSON as values of a type.

  Args:
    text: the JSON; NaN and infinities are read as Python writes them.
    shape: what it must be, as msgspec knows types.

  Raises:
    ValueError: if it is no JSON, or of another shape.
  """
  try:
    return msgspec.convert(json.loads(text), shape)
  except RecursionError:
    raise ValueError("is nested too deep") from None
