"""Items of Hacker News: what is peculiar to them."""

import json

import pytest

from commentree.tasks.readers import hacker_news
from commentree.tasks.trees import comment_tree
from commentree.tests.support.tasks.reading import parents
from commentree.tests.support.tasks.reading import read_contents as read


def items(*values):
  return "\n".join(map(json.dumps, values))


def test_items_find_their_story_across_files(tmp_path):
  story = {
    "id": 1,
    "type": "story",
    "title": "A &amp; B",
    "by": "op",
    "time": 5,
    "score": 9,
  }
  low = {"id": 4, "type": "comment", "parent": 3, "text": "low", "by": "x"}
  gone = {"id": 3, "type": "comment", "parent": 2, "deleted": True}
  top = {"id": "2", "type": "comment", "parent": "1", "text": "top<p>more", "by": "y"}
  apart = {"id": 9, "type": "comment", "parent": 8, "text": "apart"}
  found, read_counts = read(
    tmp_path,
    a__jsonl=items(low, apart),
    b__jsonl=items(top, story),
    c__jsonl=items(gone),
  )
  assert parents(found["1"]) == {"2": "1", "4": "2"}
  assert parents(found["8"]) == {"9": "8"}
  assert found["1"].comments[0].text == "A & B"
  assert found["1"].comments[1].text == "top\n\nmore"
  assert read_counts.comments == {comment_tree.KEPT: 3, comment_tree.SPLICED_DELETED: 1}
  assert read_counts.trees == {comment_tree.KEPT: 1, comment_tree.KEPT_NO_POST: 1}


@pytest.mark.parametrize(
  ("item", "fate"),
  [
    (
      {"id": 2, "type": "comment", "parent": 1, "text": "x", "dead": True},
      comment_tree.SPLICED_DELETED,
    ),
    ({"id": 2, "deleted": True, "parent": 1}, comment_tree.SPLICED_DELETED),
    (
      {"id": 2, "type": "pollopt", "parent": 1, "text": "x"},
      hacker_news.DROPPED_POLL_OPTION,
    ),
    ({"id": 2, "type": "comment", "text": "x"}, comment_tree.DROPPED_NO_TREE),
    (
      {"id": -2, "type": "comment", "parent": 1, "text": "x"},
      comment_tree.DROPPED_NO_ID,
    ),
    (
      {"id": 2**40, "type": "comment", "parent": 1, "text": "x"},
      comment_tree.DROPPED_NO_ID,
    ),
    (
      {"id": 2, "type": "comment", "parent": 2, "text": "x"},
      comment_tree.DROPPED_SELF_PARENT,
    ),
    ({"id": 2, "type": "fish"}, comment_tree.DROPPED_NEITHER),
    (None, comment_tree.DROPPED_NOT_OBJECT),
  ],
)
def test_an_item_that_is_no_living_comment_has_a_fate(tmp_path, item, fate):
  story = {"id": 1, "type": "poll", "title": "t", "parts": [2]}
  good = {"id": 7, "type": "comment", "parent": 1, "text": "good"}
  found, read_counts = read(tmp_path, a__jsonl=items(story, good, item))
  assert parents(found["1"]) == {"7": "1"}
  assert read_counts.comments == {comment_tree.KEPT: 1, fate: 1}


def test_items_in_a_cycle_are_dropped_with_what_hangs_below(tmp_path):
  values = [
    {"id": a, "type": "comment", "parent": b, "text": "x"}
    for a, b in [(1, 2), (2, 1), (3, 2)]
  ]
  found, read_counts = read(tmp_path, a__jsonl=items(*values))
  assert found == {}
  assert read_counts.comments == {comment_tree.DROPPED_CYCLE: 3}
