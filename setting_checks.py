"""Checks of single settings, each with an error that names the setting."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

from commentree.errors import UserError, suggestion


def check_choice(owner: str, field: str, value: object, choices: object) -> None:
  """Raises UserError unless `value` is one of the `Literal`'s `choices`."""
  allowed = get_args(choices)
  if value not in allowed:
    raise UserError(
      f"{owner}.{field} = {value!r}: must be one of {', '.join(map(repr, allowed))}"
      + suggestion(value, map(str, allowed))
    )


def check_range(
  owner: str,
  field: str,
  value: float,
  low: float,
  high: float = float("inf"),
  *,
  whole: bool = False,
) -> None:
  """Raises UserError unless `low <= value <= high` (and, if asked, a whole number).

  Infinity is no number, whatever the bounds.
  """
  number = isinstance(value, int if whole else (int, float))
  if isinstance(value, float) and not math.isfinite(value):
    number = False
  if not number or isinstance(value, bool) or not low <= value <= high:
    kind = "a whole number" if whole else "a number"
    bounds = f"of at least {low}" if high == float("inf") else f"from {low} to {high}"
    raise UserError(f"{owner}.{field} = {value!r}: must be {kind} {bounds}")


def check_switches(config: object) -> None:
  """Raises UserError for a field annotated `bool` that holds anything else."""
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    value = getattr(config, field.name)
    if field.type == "bool" and not isinstance(value, bool):
      raise UserError(
        f"{type(config).__name__}.{field.name} = {value!r}: must be True or False"
      )
