"""From the rows of a tree to the tree, if it is wanted."""

from __future__ import annotations

from commentree.tasks.building import filters
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.grouping import TooLarge, TreeRows
from commentree.tasks.trees import assembly, comment_tree
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts
from commentree.tasks.trees.row import Row


class TreeBuilder:
  """Makes trees that are wanted of rows, and counts what becomes of all others."""

  def __init__(self, config: BuildConfig):
    self._config = config
    self._judge = filters.comment_judge(config)
    self._fates = ReadCounts()
    self._filters_trees = (
      config.after is not None
      or config.before is not None
      or config.min_comments > 1
      or config.max_comments is not None
    )

  def take_fates(self) -> ReadCounts:
    """The read_counts since the last call."""
    taken, self._fates = self._fates, ReadCounts()
    return taken

  def build(self, rows: TreeRows) -> tuple[CommentTree | None, int]:
    """Builds a tree.

    Args:
      rows: of one tree, in `grouping.ORDER`; exhausted afterwards.

    Returns:
      The tree, None if it is not wanted; the number of its rows.
    """
    if isinstance(rows, TooLarge):
      self._leave_out(rows)
      return None, rows.posts + rows.comments
    held: list[Row] = []
    post: Row | None = None
    repeated = 0
    for row in rows:
      if row.is_post and post is not None and assembly.same_post(row, post):
        repeated += 1
      else:
        held.append(row)
        if row.is_post and post is None:
          post = row
    if repeated:
      self._fates.trees[comment_tree.TREE_DUPLICATE] += repeated
    read_counts = ReadCounts() if self._filters_trees else self._fates
    tree = assembly.assemble(held, read_counts, self._config.trees, self._judge)
    if self._filters_trees:
      if tree is not None and (fate := filters.tree_fate(tree, self._config)):
        filters.leave_out(read_counts, fate)
        tree = None
      self._fates += read_counts
    return tree, len(held) + repeated

  def _leave_out(self, tree: TooLarge) -> None:
    if tree.comments > self._config.max_tree_comments:
      fate, of_comments = filters.TREE_LARGE, filters.DROPPED_IN_LARGE_TREE
    else:
      fate, of_comments = filters.TREE_LONG, filters.DROPPED_IN_LONG_TREE
    self._fates.trees[fate if tree.posts else filters.without_post(fate)] += 1
    if tree.posts > 1:
      self._fates.trees[comment_tree.TREE_DUPLICATE] += tree.posts - 1
    if tree.comments:
      self._fates.comments[of_comments] += tree.comments
