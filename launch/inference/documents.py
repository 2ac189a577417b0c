"""Trees as the model reads them: tokens, nodes, and where text went on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from commentree.launch.inference.forests import DOCUMENT
from commentree.tasks.subtrees import translations
from commentree.tasks.subtrees.subtree_builder import (
  LANGUAGES,
  Subtree,
  SubtreeBuilder,
)
from commentree.tasks.trees.comment_tree import CommentTree

EMPTY = "no text that the model could read"


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedTree:
  """A tree that is being answered for.

  Attributes:
    tree: as it was read.
    nodes: all of it as one subtree; see `SubtreeBuilder.nodes`. If the run has
      languages, with those of the comments; their translations are not read.
    firsts: tokens of its comment that stand before each node. [N]
    tokens_cut: tokens of each comment that there was no room for. [comments]
  """

  tree: CommentTree
  nodes: Subtree
  firsts: np.ndarray
  tokens_cut: np.ndarray

  @classmethod
  def of(
    cls,
    tree: CommentTree,
    encoded: Sequence[np.ndarray],
    builder: SubtreeBuilder,
    **more,
  ) -> Self:
    """Makes the document of a tree.

    Args:
      tree: the tree.
      encoded: all tokens of each of its comments.
      builder: the run's.
      **more: fields of a subclass.
    """
    nodes = builder.nodes(tree, encoded)
    lengths, comments = nodes["lengths"], nodes["node_ids"]
    if names := builder.preprocessing.objective.languages:
      languages = [translations.language_of(c.language, names) for c in tree.comments]
      nodes[LANGUAGES] = np.repeat(np.array(languages, np.int32)[comments], lengths)
    before = np.cumsum(lengths) - lengths
    is_first = np.diff(comments, prepend=-1) > 0
    full = np.fromiter(map(len, encoded), np.int64, len(encoded))
    kept = np.bincount(comments, lengths, len(encoded)).astype(np.int64)
    firsts = before - before[is_first][comments]
    return cls(tree, nodes, firsts, full - kept, **more)

  @classmethod
  def read(cls, tree: CommentTree, builder: SubtreeBuilder, **more) -> Self:
    """Makes the document of a tree as training read it: cleaned, with its authors."""
    texts = builder.texts(tree)
    return cls.of(tree, builder.encode_texts(texts), builder, **more)

  def subtree(self) -> Subtree:
    """All nodes, numbered in the place of `node_ids`, for `forests` to lay out."""
    numbers = np.arange(len(self.firsts), dtype=np.int32)
    return {**self.nodes, "node_ids": numbers, DOCUMENT: self}

  def comment_of(self, node: int) -> int:
    """The comment that a node is, or is a chunk of."""
    return int(self.nodes["node_ids"][node])

  def start_of(self, node: int) -> int:
    """The place of a node's first token among those of all nodes."""
    return int(self.nodes["lengths"][:node].sum())

  def means(self, vectors: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Each comment's vectors from its nodes'; of chunks their mean by tokens."""
    nodes_of: dict[int, list[int]] = {}
    for node in sorted(vectors):
      nodes_of.setdefault(self.comment_of(node), []).append(node)
    found = {}
    for comment, nodes in nodes_of.items():
      found[comment] = vectors[nodes[0]]
      if len(nodes) > 1:
        lengths = self.nodes["lengths"][nodes]
        stacked = np.stack([vectors[node] for node in nodes])
        found[comment] = np.average(stacked, 0, lengths).astype(np.float32)
    return found

  def is_empty(self) -> np.ndarray:
    """Which comments have no tokens, bool [comments]."""
    found = np.bincount(
      self.nodes["node_ids"], self.nodes["lengths"], len(self.tree.comments)
    )
    return found == 0
