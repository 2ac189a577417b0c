"""What is told where settings are not as before."""

from __future__ import annotations

from commentree import differences


def test_settings_that_differ_are_named_with_both_values_those_within_others_too():
  before = {"a": 1, "same": (1, 2), "part": {"b": "x", "c": 0}, "gone": None}
  now = {"a": 2, "same": [1, 2], "part": {"b": "y", "c": 0}, "new": True}
  assert differences.find(before, now) == [
    ("a", "1", "2"),
    ("gone", "None", "absent"),
    ("new", "absent", "True"),
    ("part.b", "'x'", "'y'"),
  ]
  assert differences.find(now, now) == []


def test_a_long_value_is_shortened():
  (found,) = differences.find({"a": "x" * 1000}, {"a": ""})
  assert len(found.before) == 80
  assert found.before.endswith("x…")


def test_what_is_listed_says_how_many_more_there_are():
  assert differences.listed("abc", 3) == "a, b, c"
  assert differences.listed("abcd", 2, "; ") == "a; b and 2 more"
