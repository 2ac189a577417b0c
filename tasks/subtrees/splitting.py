"""Cutting a tree into subtrees, and who sees whom within one.

A tree is an array of `parents`: node 0 is the post and has parent -1, every other
node's parent comes before it. A node is a comment, or a chunk of one.

A node sees at most `max_ancestors` of its ancestors: the nearest, and the topmost (the
post) in place of those that are too many; if it sees one, its parent. A subtree is some
targets, all that they see, and the post. It keeps its nodes' order, and a node whose
parent is left out gets the nearest ancestor that is there, so that targets see the same
in the subtree as in the tree.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import most_context


@dataclasses.dataclass(frozen=True)
class SplitSubtree:
  """Part of a tree.

  Attributes:
    nodes: indices in the tree, ascending; the post comes first. [N]
    is_target: whether the node is to be predicted here, or only context. bool [N]
  """

  nodes: np.ndarray
  is_target: np.ndarray


def visible_ancestors(parents: np.ndarray, max_ancestors: int) -> np.ndarray:
  """Lists the ancestors that each node sees: intp [N, max_ancestors].

  Nearest first, -1 for no ancestor. Where there are too many, the last is the
  post, unless it is the only one.
  """
  above = np.empty(len(parents) + 1, np.intp)  # the last stands for -1
  above[:-1] = parents
  above[-1] = -1
  table = np.empty((max_ancestors, len(parents)), np.intp)
  table[0] = above[:-1]
  for level in range(1, max_ancestors):
    np.take(above, table[level - 1], out=table[level], mode="wrap")
  if max_ancestors > 1:
    np.minimum(table[-1], 0, out=table[-1])
  return table.T


def extract_parents(nodes: np.ndarray, parents: np.ndarray) -> np.ndarray:
  """Renumbers parents within a subtree: int32 [nodes of the subtree].

  A parent that is not there gives way to the nearest ancestor that is; the post has
  -1.

  Args:
    nodes: indices of the subtree's nodes in the tree, ascending, the post first.
    parents: of the whole tree.
  """
  up = parents[nodes]
  if len(nodes) == len(parents):
    return up.astype(np.int32)
  at = np.searchsorted(nodes, up)
  missing = np.flatnonzero(nodes[at] != up)[1:]  # the post's is missing first
  at[0] = -1
  if len(missing):
    known = nodes.tolist()
    for index in missing.tolist():
      ancestor = int(up[index])
      place = bisect.bisect_left(known, ancestor)
      # Below the second node, none but the post can be an ancestor.
      while place > 1 and known[place] != ancestor:
        ancestor = int(parents[ancestor])
        place = bisect.bisect_left(known, ancestor)
      at[index] = place if known[place] == ancestor else 0
  return at.astype(np.int32)


def split_nodes(
  parents: np.ndarray,
  is_target: np.ndarray,
  *,
  max_tree_size: int,
  max_ancestors: int,
) -> list[SplitSubtree]:
  """Cuts a tree into subtrees in which every target is a target exactly once.

  A tree that fits is one subtree. Else subtrees are cut off from the leaves up wherever
  they would outgrow a subtree, and sibling subtrees share a subtree, and its context,
  where they fit. Nodes that are no targets and that no target sees are left out.

  Args:
    parents: of each node; see above. [N]
    is_target: nonzero for nodes to be predicted. [N]
    max_tree_size: most nodes in a subtree, context included.
    max_ancestors: most ancestors that a node sees.

  Returns:
    The subtrees, in order of their first targets; none if there are no targets.

  Raises:
    UserError: if a node and what it sees may not fit into a subtree.
  """
  if max_tree_size <= most_context(max_ancestors):
    raise UserError(
      f"max_tree_size = {max_tree_size}: must exceed the {most_context(max_ancestors)}"
      f" nodes of context (max_ancestors = {max_ancestors}), or a deep comment's leave"
      " no room for the comment"
    )
  targets = np.flatnonzero(is_target)
  if not len(targets):
    return []
  if len(parents) <= max_tree_size:
    group = np.zeros(len(targets), np.int64)
  else:
    group = _group_nodes(parents, is_target, max_tree_size, max_ancestors)[targets]
  return _with_context(parents, targets, group, max_ancestors)


def count_copies(subtrees: Sequence[SplitSubtree]) -> int:
  """Nodes that are in the subtrees of one tree once more than they need be."""
  if not subtrees:
    return 0
  nodes = np.concatenate([subtree.nodes for subtree in subtrees])
  return len(nodes) - len(np.unique(nodes))


def _with_context(
  parents: np.ndarray, targets: np.ndarray, group: np.ndarray, max_ancestors: int
) -> list[SplitSubtree]:
  """Subtrees of the targets of each group and what those see."""
  count = len(parents)
  seen = visible_ancestors(parents, max_ancestors)[targets]
  of_target, column = np.nonzero(seen >= 0)
  # A node in a subtree is one number: the subtree in the high part, the node in the
  #   low.
  target_keys = group * count + targets
  context_keys = group[of_target] * count + seen[of_target, column]
  keys = np.unique(np.concatenate([group * count, target_keys, context_keys]))
  is_target = np.zeros(len(keys), bool)
  is_target[np.searchsorted(keys, target_keys)] = True
  subtrees, nodes = np.divmod(keys, count)
  starts = np.flatnonzero(np.diff(subtrees, prepend=-1))
  split = [
    SplitSubtree(*part)
    for part in zip(np.split(nodes, starts[1:]), np.split(is_target, starts[1:]))
  ]
  return sorted(split, key=lambda subtree: subtree.nodes[np.argmax(subtree.is_target)])


def _group_nodes(
  parents: np.ndarray,
  is_target: np.ndarray,
  max_tree_size: int,
  max_ancestors: int,
) -> np.ndarray:
  """Assigns every node to a group whose targets fit into one subtree: int64 [N].

  Goes from the leaves up. A *cluster* is a node and those clusters of its children
  that are still attached to it; its subtree takes the cluster's nodes and at most
  `most_context` above. Where that is too much, the children's clusters are put into
  bins of what siblings can share, best fit decreasing; each bin becomes a group, but
  for the one with most room left, which stays attached.
  """
  context = most_context(max_ancestors)
  above = parents.tolist()
  wanted = np.asarray(is_target, bool).tolist()
  ancestors = [0] * len(above)
  for node in range(1, len(above)):
    ancestors[node] = ancestors[above[node]] + 1

  attached: list[list[tuple[int, int]]] = [[] for _ in above]  # (size, child)
  size_below = [0] * len(above)
  group = np.full(len(above), -1, np.int64)
  groups = 0
  for node in range(len(above) - 1, -1, -1):
    below = size_below[node]
    room = max_tree_size - min(ancestors[node], context)
    if below >= room:
      capacity = max_tree_size - min(ancestors[node] + 1, context)
      bins = _best_fit_decreasing(attached[node], capacity)
      below, kept = min(bins, key=lambda item: item[0])
      if below >= room:
        below, kept = 0, []
      for _, children in bins:
        if children is not kept:
          group[children] = groups
          groups += 1
    if node and (below or wanted[node]):
      size_below[above[node]] += below + 1
      attached[above[node]].append((below + 1, node))
  # What was not cut off goes with what it is attached to, in the end with the post.
  group[0] = groups
  assigned = group.tolist()
  for node, own in enumerate(assigned):
    if own < 0:
      assigned[node] = assigned[above[node]]
  return np.array(assigned, np.int64)


def _best_fit_decreasing(
  items: list[tuple[int, int]], capacity: int
) -> list[tuple[int, list[int]]]:
  """Puts (size, item) pairs into bins; returns each bin's size and items."""
  bins: list[list[int]] = []
  free: list[tuple[int, int]] = []  # (room left, bin), ascending
  for size, item in sorted(items, reverse=True):
    at = bisect.bisect_left(free, (size, -1))
    if at == len(free):
      bins.append([item])
      bisect.insort(free, (capacity - size, len(bins) - 1))
    else:
      left, number = free.pop(at)
      bins[number].append(item)
      bisect.insort(free, (left - size, number))
  return [(capacity - left, bins[number]) for left, number in free]
