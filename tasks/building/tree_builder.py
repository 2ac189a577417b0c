"""From the rows of a tree to the tree, if it is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .. import trees
from ..readers.rows import Row
from ..trees import CommentTree, Fates
from . import filters
from .config import BuildConfig


class TreeBuilder:
  """Makes trees that are wanted of rows, and counts what becomes of all others."""

  def __init__(self, config: BuildConfig):
    self._config = config
    self._judge = filters.comment_judge(config)
    self._fates = Fates()
    self._filters_trees = (
      config.after is not None
      or config.before is not None
      or config.min_comments > 1
      or config.max_comments is not None
    )

  def take_fates(self) -> Fates:
    """The fates since the last call."""
    taken, self._fates = self._fates, Fates()
    return taken

  def build(self, rows: Iterator[Row]) -> tuple[CommentTree | None, int]:
    """Builds a tree.

    Args:
      rows: of one tree, in `grouping.ORDER`; exhausted afterwards.

    Returns:
      The tree, None if it is not wanted; the number of its rows.
    """
    limit = self._config.max_tree_comments
    held = list(itertools.islice(rows, limit + 1))
    if len(held) > limit:
      posts = sum(row.is_post for row in held)
      held += itertools.islice(rows, posts)
      if len(held) - posts > limit:
        return None, self._leave_out_large(held, rows)
    fates = Fates() if self._filters_trees else self._fates
    tree = trees.assemble(held, fates, self._config.trees, self._judge)
    if self._filters_trees:
      if tree is not None and (fate := filters.tree_fate(tree, self._config)):
        filters.leave_out(fates, fate)
        tree = None
      self._fates += fates
    return tree, len(held)

  def _leave_out_large(self, held: list[Row], rows: Iterator[Row]) -> int:
    posts = comments = 0
    for row in itertools.chain(held, rows):
      if row.is_post:
        posts += 1
      else:
        comments += 1
    fate = filters.TREE_LARGE if posts else filters.without_post(filters.TREE_LARGE)
    self._fates.trees[fate] += 1
    if posts > 1:
      self._fates.trees[trees.TREE_DUPLICATE] += posts - 1
    self._fates.comments[filters.DROPPED_IN_LARGE_TREE] += comments
    return posts + comments
