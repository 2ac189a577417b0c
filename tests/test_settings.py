"""A setting's annotation says what it may hold, and that is what is checked."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from commentree.errors import UserError
from commentree.launch.settings import settings_page
from commentree.settings import (
  ByContent,
  MayChange,
  PositiveInt,
  Share,
  check_fields,
  identity,
  kinds_of,
  unpack,
)

# What a class needs to be made, where it has no default.
NEEDED = {
  "DecodingConfig": {"start_id": 1, "end_id": 2},
  "TrainConfig": {"model_dir": "d", "train_steps": 1, "batch_size": 1},
  "DataConfig": {
    "mixture_or_task_name": "commentree_generated",
    "task_feature_lengths": {"encoder": 64, "decoder": 64},
  },
}


@dataclasses.dataclass(frozen=True)
class Example:
  count: PositiveInt = 1
  share: Share = 0.5
  small: Annotated[int, Meta(ge=2, le=9)] = 2
  any_number: float = 0.0
  kind: Literal["first", "second"] = "first"
  on: bool = False
  limit: PositiveInt | None = None
  norm: Annotated[float, Meta(ge=1)] | Literal["auto"] | None = "auto"
  edges: tuple[PositiveInt, ...] = ()
  kinds: tuple[Literal["first", "second"], ...] = ()
  names: tuple[str, ...] = ()
  seconds: Mapping[str, Share] = dataclasses.field(default_factory=dict)
  files: str | tuple[str, ...] | None = None

  def __post_init__(self):
    check_fields(self)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("count", 0, "must be a whole number of at least 1"),
    ("count", 1.0, "must be a whole number of at least 1"),
    ("count", True, "must be a whole number of at least 1"),
    ("count", None, "must be a whole number of at least 1"),
    ("count", "3", "must be a whole number of at least 1"),
    ("share", 1.5, "must be a number from 0 to 1"),
    ("share", math.nan, "must be a number from 0 to 1"),
    ("share", False, "must be a number from 0 to 1"),
    ("small", 10, "must be a whole number from 2 to 9"),
    ("any_number", math.inf, "must be a number"),
    ("any_number", "x", "must be a number"),
    ("kind", "secnd", "must be one of 'first', 'second'; did you mean second?"),
    ("kind", None, "must be one of 'first', 'second'"),
    ("on", 1, "must be True or False"),
    ("on", "yes", "must be True or False"),
    ("limit", 0, "must be a whole number of at least 1"),
    ("norm", 0.5, "must be a number of at least 1"),
    ("norm", "none", "must be a number of at least 1"),
    ("edges", 5, "must be a list"),
    ("kinds", "third", "must be one of 'first', 'second'"),
  ],
)
def test_a_value_that_an_annotation_does_not_allow_is_one_line(field, value, message):
  with pytest.raises(UserError) as raised:
    Example(**{field: value})
  shown = repr(value)
  assert str(raised.value) == f"Example.{field} = {shown}: {message}"


def test_a_member_is_named_with_its_value():
  with pytest.raises(UserError, match=r"^Example.edges = 0: must be a whole number"):
    Example(edges=[1, 0])
  with pytest.raises(UserError, match=r"^Example.seconds\['a'\] = 2: must be a number"):
    Example(seconds={"a": 2})


def test_allowed_values_pass_and_lists_become_tuples():
  example = Example(
    3, 1, 9, -5, "second", True, 7, None, [1, 2], "first", ["a"], {"x": 0}, ["f"]
  )
  assert example.edges == (1, 2)
  assert example.kinds == ("first",)
  assert example.names == ("a",)
  assert example.files == ["f"]  # of no one kind: as it was given
  assert Example(norm=2.0).norm == 2.0


@dataclasses.dataclass(frozen=True)
class Part:
  count: PositiveInt = 1
  period: MayChange[PositiveInt | None] = 5

  def __post_init__(self):
    check_fields(self)


@dataclasses.dataclass(frozen=True)
class Whole:
  files: ByContent[str] = "a"
  seed: int = 0
  part: Part = Part()
  other: MayChange[Example] = Example()


def test_what_must_stay_the_same_is_what_no_mark_exempts():
  assert identity(Whole()) == {"Whole.seed": 0, "Part.count": 1}
  with pytest.raises(UserError, match=r"^Part.period = 0: must be a whole number"):
    Part(period=0)


def checked_fields():
  for config in settings_page.configs():
    for name, kind in kinds_of(config).items():
      if unpack(kind)[0] in (int, float, bool):
        yield pytest.param(config, name, id=f"{config.__name__}.{name}")


@pytest.mark.parametrize(("config", "name"), checked_fields())
def test_no_number_and_no_switch_of_any_setting_takes_text(config, name):
  given = {**NEEDED.get(config.__name__, {}), name: "some text"}
  with pytest.raises(UserError) as raised:
    config(**given)
  assert str(raised.value).startswith(
    f"{config.__name__}.{name} = 'some text': must be"
  )


def test_settings_load_nothing_heavy():
  heavy = "{'numpy', 'jax', 'flax', 'tensorflow', 'seqio', 'sentencepiece'}"
  code = (
    "import sys, commentree.settings, commentree.models.config,"
    " commentree.tasks.config.preprocessing, commentree.training.config;"
    f" assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
