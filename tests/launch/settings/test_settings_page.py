"""docs/settings.md is what the classes say."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re

import pytest

from commentree.launch.settings import settings_page
from commentree.launch.settings.configurables import RunConfig
from commentree.settings import Resume

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
    "| `rate` | number from 0 to 1 | `0.15` |  | same | share of",
    "| `learning_rate` | number of at least 0 | `0.01` | `LEARNING_RATE` | same | the",
    "| `decay_steps` | whole number of at least 1 or None | `None` |",
    "| `long_comments` | `'truncate'`, `'chunk'` |",
    "| `schedule` | [ScheduleConfig](#scheduleconfig) | its defaults |",
    "What goes into a dataset, and where. Set by flags of `commentree build`; not by",
  ):
    assert any(line.startswith(start) for line in lines), start


def test_the_page_says_what_a_run_that_continues_allows():
  rules = settings_page.resume_rules(RunConfig)
  for name, rule in {
    "ModelConfig.remat_policy": Resume.MAY_CHANGE,
    "ModelConfig.emb_dim": Resume.SAME,
    "DataConfig.files": Resume.BY_CONTENT,
    "GeneratedTreesConfig.noise": Resume.BY_CONTENT,  # as all that it is part of
    "MaskingConfig.rate": Resume.SAME,
    "CheckpointConfig.period": Resume.MAY_CHANGE,
    "ScheduleConfig.learning_rate": Resume.SAME,
  }.items():
    assert rules[name] is rule, name
  lines = settings_page.text().splitlines()
  assert any(
    re.match(r"\| `remat_policy` .*\| may change \| what the", x) for x in lines
  )
