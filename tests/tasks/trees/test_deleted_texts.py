"""Which texts stand in place of a deleted one."""

import pytest

from commentree.tasks.trees import comment_tree


@pytest.mark.parametrize(
  "text",
  [
    "[removed] but why",
    "[removed by me]",
    "[deleted",
    "[removed by Reddit because] I say [so]",
    "removed by Reddit",
    "[]",
    "[ Removed by Reddit " + "x" * 300 + "]",
  ],
)
def test_what_people_write_in_brackets_is_a_text(text):
  assert not comment_tree.is_deleted(text)
