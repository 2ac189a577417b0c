"""What the classes of settings share: a field's annotation says what it may hold.

A setting is a field of a frozen dataclass:

    max_ancestors: PositiveInt = 16
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    method: Literal["greedy", "sample"] = "greedy"
    decay_steps: PositiveInt | None = None

`check_fields`, called first in `__post_init__`, checks each value by its annotation; by
hand, `__post_init__` checks only what depends on several fields.

A run that continues in its MODEL_DIR must have the settings that it began with, except
those marked as not deciding its results:

    log_period: MayChange[PositiveInt] = 10
    files: ByContent[str | None] = None

`identity` returns the others. This module loads neither NumPy nor JAX.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from msgspec import Meta

from commentree.errors import UserError, suggestion

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Resume(enum.Enum):
  """What a run that continues allows of a setting."""

  SAME = "same"
  """It must be as before; so are settings without a mark."""
  BY_CONTENT = "by content"
  """It may be written otherwise; the data that come of it must be as before."""
  MAY_CHANGE = "may change"
  """It does not decide results, or another value continues the run as well."""


_T = TypeVar("_T")
ByContent = Annotated[_T, Resume.BY_CONTENT]
MayChange = Annotated[_T, Resume.MAY_CHANGE]


@functools.cache
def kinds_of(config: type) -> dict[str, Any]:
  """Returns the annotations of a class's fields by name, `Annotated` included."""
  return typing.get_type_hints(config, include_extras=True)


def check_fields(config: Any) -> None:
  """Checks every field of a dataclass by its annotation.

  A number is checked for its kind and the bounds in `msgspec.Meta`, a `Literal` for its
  choices, a bool for being one; the members of a tuple and the values of a mapping
  likewise. gin and JSON hand over lists: where the annotation is a tuple, the field
  becomes one, since frozen settings are hashed. Text and other types are let through.

  Raises:
    UserError: naming the setting, its value and what it must be.
  """
  owner = type(config).__name__
  for name, kind in kinds_of(config.__class__).items():
    value = getattr(config, name)
    checked = _checked(owner, name, value, kind)
    if checked is not value:
      object.__setattr__(config, name, checked)


def _checked(owner: str, name: str, value: Any, kind: Any) -> Any:
  """Returns a value that its annotation allows; a list as the tuple asked for."""
  base, bounds = unpack(kind)
  if get_origin(base) in (typing.Union, types.UnionType):
    return _checked_alternative(owner, name, value, get_args(base))
  if base is bool:
    check_switch(owner, name, value)
  elif base in (int, float):
    check_range(owner, name, value, *bounds, whole=base is int)
  elif get_origin(base) is Literal:
    check_choice(owner, name, value, base)
  elif get_origin(base) is tuple and get_args(base)[-1] is Ellipsis:
    member = get_args(base)[0]
    return tuple(
      _checked(owner, name, each, member) for each in _members(owner, name, value)
    )
  elif get_origin(base) is Mapping and isinstance(value, Mapping):
    key, member = get_args(base)
    if get_origin(member) is Annotated:
      for key, each in value.items():
        _checked(owner, f"{name}[{key!r}]", each, member)
  return value


def _checked_alternative(
  owner: str, name: str, value: Any, kinds: tuple[Any, ...]
) -> Any:
  """As `_checked`, of a union: None, a choice, or the one kind that is checked."""
  for kind in kinds:
    if kind is type(None) and value is None:
      return value
    if get_origin(kind) is Literal and value in get_args(kind):
      return value
  others = [kind for kind in kinds if kind is not type(None)]
  numbers = [kind for kind in others if unpack(kind)[0] in (int, float)]
  if numbers or len(others) == 1:
    return _checked(owner, name, value, (numbers or others)[0])
  return value


def _members(owner: str, name: str, value: Any) -> tuple[Any, ...]:
  """Returns the members of what is to be a tuple; text is one member."""
  if isinstance(value, str):
    return (value,)
  try:
    return tuple(value)
  except TypeError:
    raise UserError(f"{owner}.{name} = {value!r}: must be a list") from None


def resume_rule(kind: Any) -> Resume:
  """Returns what an annotation says a run that continues allows."""
  marks = kind.__metadata__ if get_origin(kind) is Annotated else ()
  return next((mark for mark in marks if isinstance(mark, Resume)), Resume.SAME)


def identity(config: Any) -> dict[str, Any]:
  """Returns the settings that a run which continues must have as before.

  Args:
    config: a dataclass of settings; those in it are gone through too.

  Returns:
    Values by 'CLASS.FIELD'.
  """
  found: dict[str, Any] = {}
  for name, kind in kinds_of(config.__class__).items():
    value = getattr(config, name)
    if resume_rule(kind) is not Resume.SAME:
      continue
    if dataclasses.is_dataclass(value):
      found |= identity(value)
    else:
      found[f"{type(config).__name__}.{name}"] = value
  return found


def unpack(kind: Any) -> tuple[Any, tuple[float, float]]:
  """Returns an annotation without `Annotated`, and its lower and upper bound."""
  low, high = -math.inf, math.inf
  if get_origin(kind) is Annotated:
    kind, *marks = get_args(kind)
    for mark in marks:
      if isinstance(mark, Meta):
        low = low if mark.ge is None else mark.ge
        high = high if mark.le is None else mark.le
  return kind, (low, high)


def bounds_text(low: float, high: float) -> str:
  """Returns bounds in words, such as 'from 0 to 1'; '' without bounds."""
  if high == math.inf:
    return "" if low == -math.inf else f"of at least {low}"
  return f"from {low} to {high}"


def check_names(owner: str, field: str, names: tuple[str, ...], what: str) -> None:
  """Raises UserError unless `names` are texts, each there once."""
  if not all(isinstance(name, str) and name for name in names):
    raise UserError(f"{owner}.{field} = {names!r}: must be names in quotes")
  if len(set(names)) < len(names):
    raise UserError(f"{owner}.{field} = {names!r}: must name each {what} once")


def check_switch(owner: str, field: str, value: object) -> None:
  """Raises UserError unless `value` is True or False."""
  if not isinstance(value, bool):
    raise UserError(f"{owner}.{field} = {value!r}: must be True or False")


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
  high: float = math.inf,
  *,
  whole: bool = False,
) -> None:
  """Raises UserError unless `low <= value <= high` (and, if asked, a whole number).

  Infinity is no number, regardless of the bounds.
  """
  number = isinstance(value, int if whole else (int, float))
  if isinstance(value, float) and not math.isfinite(value):
    number = False
  if not number or isinstance(value, bool) or not low <= value <= high:
    kind = "a whole number" if whole else "a number"
    bounds = bounds_text(low, high)
    raise UserError(
      f"{owner}.{field} = {value!r}: must be {f'{kind} {bounds}'.strip()}"
    )
