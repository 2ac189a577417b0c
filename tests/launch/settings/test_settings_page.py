"""docs/settings.md is what the classes say."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

import pytest

from commentree.launch.settings import settings_page

ROOT = pathlib.Path(settings_page.__file__).parents[2]


def test_the_page_is_what_the_classes_say():
  assert settings_page.PAGE.read_text() == settings_page.text(), "run `make settings`"


def checked_classes():
  """Names of the product's classes whose fields are checked by their annotations."""
  for folder in ("models", "tasks", "training", "launch"):
    for path in (ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and "check_fields(self)" in ast.unparse(node):
          yield node.name


def test_no_class_of_settings_is_left_out():
  shown = [config.__name__ for config in settings_page.configs()]
  assert len(set(shown)) == len(shown)
  groups_alone = {"RunConfig", "PreprocessingConfig"}  # they have no values to check
  assert set(shown) == {*groups_alone, *checked_classes()}


@pytest.mark.parametrize(
  "config", settings_page.configs(), ids=lambda config: config.__name__
)
def test_every_setting_says_what_it_means(config):
  names = {field.name for field in dataclasses.fields(config)}
  assert settings_page.meanings(config).keys() == names


def test_bounds_defaults_and_macros_are_on_the_page():
  lines = settings_page.text().splitlines()
  for start in (
    "| `rate` | number from 0 to 1 | `0.15` |  | share of",
    "| `learning_rate` | number of at least 0 | `0.01` | `LEARNING_RATE` | the peak",
    "| `decay_steps` | whole number of at least 1 or None | `None` |",
    "| `long_comments` | `'truncate'`, `'chunk'` |",
    "| `schedule` | [ScheduleConfig](#scheduleconfig) | its defaults |",
    "What goes into a dataset, and where. Set by flags of `commentree build`; not by",
  ):
    assert any(line.startswith(start) for line in lines), start
