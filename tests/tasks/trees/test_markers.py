import pytest

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees import markers
from commentree.tasks.trees.comment_tree import Comment, CommentTree


def tree_of(*authors):
  comments = [
    Comment(str(i), i - 1, author, "text", None) for i, author in enumerate(authors)
  ]
  return CommentTree("t", comments)


def test_authors_are_numbered_as_they_first_appear():
  tree = tree_of("ann", "bob", "ann", "eve", "bob")
  assert markers.author_markers(tree, MarkersConfig()) == [
    "<user_0>",
    "<user_1>",
    "<user_0>",
    "<user_2>",
    "<user_1>",
  ]


def test_authors_beyond_the_limit_and_unknown_ones_share_a_marker():
  tree = tree_of("ann", None, "bob", "eve")
  assert markers.author_markers(tree, MarkersConfig(max_users=2)) == [
    "<user_0>",
    "<unu>",
    "<user_1>",
    "<unu>",
  ]


def test_user_0_is_kept_for_the_posts_author_even_if_unknown():
  tree = tree_of(None, "bob", None, "eve")
  assert markers.author_markers(tree, MarkersConfig()) == [
    "<unu>",
    "<user_1>",
    "<unu>",
    "<user_2>",
  ]


def test_author_markers_can_be_switched_off():
  tree = tree_of("ann", "bob")
  assert markers.author_markers(tree, MarkersConfig(authors=False)) == ["", ""]


def test_all_markers_holds_every_marker_once():
  config = MarkersConfig(max_users=3)
  everything = markers.all_markers(config)
  assert len(set(everything)) == len(everything)
  used = markers.author_markers(tree_of("a", "b", "c", "d", None), config)
  assert set(used) <= set(everything)
  constants = (markers.MASK, markers.URL, markers.QUOTE_START, markers.QUOTE_END)
  assert {*constants, markers.DELETED} <= set(everything)


@pytest.mark.parametrize("bad", [-1, 1.5, True, "10"])
def test_a_bad_number_of_users_is_refused(bad):
  with pytest.raises(UserError, match="max_users"):
    MarkersConfig(max_users=bad)
