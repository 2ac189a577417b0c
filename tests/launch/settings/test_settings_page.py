"""docs/settings.md is what the classes say."""

from __future__ import annotations

import dataclasses

import pytest

from commentree.launch.settings import settings_page
from commentree.launch.settings.configurables import register


def test_the_page_is_what_the_classes_say():
  assert settings_page.PAGE.read_text() == settings_page.text(), "run `make settings`"


@pytest.mark.parametrize("config", register(), ids=lambda config: config.__name__)
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
  ):
    assert any(line.startswith(start) for line in lines), start
