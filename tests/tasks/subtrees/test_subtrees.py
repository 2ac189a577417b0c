import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import (
  PreprocessingConfig,
  SubtreeConfig,
  TreeConfig,
)
from commentree.tasks.subtrees import splitting
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.trees.comment_tree import Comment, CommentTree


class WordTokenizer:
  """Every word its own id, by first appearance."""

  def __init__(self):
    self.ids = {}

  def encode_batch(self, texts):
    return [
      np.array([self.ids.setdefault(w, len(self.ids) + 1) for w in t.split()], np.int32)
      for t in texts
    ]


def tree(parents, lengths):
  """Comments of unlike words; comment n is answered to comment parents[n]."""
  return CommentTree(
    id="t",
    comments=[
      Comment(
        id=f"c{n}",
        parent=parent,
        author=f"author{n % 3}",
        text=" ".join(f"w{n}x{i}" for i in range(length)),
        created_utc=n,
      )
      for n, (parent, length) in enumerate(zip(parents, lengths))
    ],
  )


def build(parents, lengths, trees=TreeConfig(), **settings):
  builder = SubtreeBuilder(
    WordTokenizer(),
    PreprocessingConfig(trees=trees, subtrees=SubtreeConfig(**settings)),
  )
  return list(builder(tree(parents, lengths))), builder


def nodes(subtree):
  ends = np.cumsum(subtree["lengths"])
  return [
    subtree["tokens"][end - length : end].tolist()
    for end, length in zip(ends, subtree["lengths"])
  ]


def test_a_small_tree_is_one_subtree_with_the_post_as_context():
  (subtree,), _ = build([-1, 0, 1, 0], [3, 2, 4, 1])
  assert subtree["is_target"].tolist() == [0, 1, 1, 1]
  assert subtree["lengths"].tolist() == [4, 3, 5, 2]  # an author's marker each
  assert subtree["parents"].tolist() == [-1, 0, 1, 0]
  assert subtree["depths"].tolist() == [0, 1, 2, 1]


def test_the_post_is_a_target_if_a_setting_says_so():
  (subtree,), _ = build([-1, 0], [3, 2], trees=TreeConfig(target_post=True))
  assert subtree["is_target"].tolist() == [1, 1]


def test_an_empty_post_has_no_tokens_and_is_no_target():
  (subtree,), _ = build([-1, 0], [0, 2], trees=TreeConfig(target_post=True))
  assert subtree["lengths"].tolist() == [0, 3]
  assert subtree["is_target"].tolist() == [0, 1]


def test_long_comments_are_truncated_and_the_share_cut_off_is_reported():
  (subtree,), builder = build([-1, 0], [4, 30], max_comment_tokens=10)
  assert subtree["lengths"].tolist() == [5, 10]
  assert builder.counts.tokens == 36
  assert builder.counts.tokens_cut == 21
  assert "58.3% cut off" in builder.counts.report()


def test_a_chunked_comment_loses_nothing_and_sees_its_earlier_chunks_at_distance_0():
  (subtree,), builder = build(
    [-1, 0, 1], [4, 24, 3], max_comment_tokens=10, long_comments="chunk"
  )
  assert subtree["lengths"].tolist() == [5, 10, 10, 5, 4]
  assert subtree["node_ids"].tolist() == [0, 1, 1, 1, 2]
  assert subtree["depths"].tolist() == [0, 1, 1, 1, 2]
  assert subtree["parents"].tolist() == [-1, 0, 1, 2, 3]
  assert builder.counts.tokens_cut == 0
  ancestors = splitting.visible_ancestors(subtree["parents"], 8)
  hops = [
    [int(subtree["depths"][n] - subtree["depths"][a]) for a in row if a >= 0]
    for n, row in enumerate(ancestors)
  ]
  assert hops == [[], [1], [0, 1], [0, 0, 1], [1, 1, 1, 2]]


def test_over_all_subtrees_of_a_large_tree_every_comment_is_a_target_once():
  rng = np.random.default_rng(0)
  parents = [-1] + [int(rng.integers(0, n)) for n in range(1, 300)]
  subtrees, builder = build(parents, [3] * 300, max_tree_size=24, max_ancestors=6)
  targets = np.concatenate([p["node_ids"][p["is_target"] == 1] for p in subtrees])
  assert sorted(targets.tolist()) == list(range(1, 300))
  assert all(len(p["lengths"]) <= 24 for p in subtrees)
  (whole,), _ = build(parents, [3] * 300, max_tree_size=300, max_ancestors=6)
  words = nodes(whole)
  seen_in = {
    int(n): [int(whole["node_ids"][a]) for a in row if a >= 0]
    for n, row in zip(
      whole["node_ids"], splitting.visible_ancestors(whole["parents"], 6)
    )
  }
  for subtree in subtrees:
    # The tokens of a node are its own, and it sees whom it sees in the whole tree.
    tokens, sees = nodes(subtree), splitting.visible_ancestors(subtree["parents"], 6)
    for place, node in enumerate(subtree["node_ids"]):
      assert len(tokens[place]) == len(words[node])
      if subtree["is_target"][place]:
        assert [int(subtree["node_ids"][a]) for a in sees[place] if a >= 0] == seen_in[
          int(node)
        ]
  assert builder.counts.context_copies > 0


def test_a_subtree_must_hold_more_than_a_comments_context():
  with pytest.raises(UserError, match="max_tree_size"):
    SubtreeConfig(max_tree_size=16, max_ancestors=16)
