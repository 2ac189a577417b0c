"""Forests of the comments to answer for, filled in order.

Nothing is held back to fill forests better: which comments share a forest depends on
what comes before them in their chunk, and on nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from commentree.tasks.config.preprocessing import SubtreeConfig
from commentree.tasks.forests import forest_layout, pack_items, packing
from commentree.tasks.forests.forest_layout import (
  ForestLayout,
  ForestShape,
  SubtreeTotals,
)
from commentree.tasks.forests.pack_items import PackItem
from commentree.tasks.forests.packing import Forest, ForestBuilder
from commentree.tasks.subtrees import splitting
from commentree.tasks.subtrees.subtree_builder import LANGUAGES, Subtree, ranges

# Tokens of a comment that rows and slots are made for; where comments are shorter a
# forest is full of them before its rows are.
_TARGET_TOKENS, _ENCODED_TOKENS = 16, 12

DOCUMENT = "document"
"""What a subtree is part of; comes along with all that becomes of the subtree."""


def shape_for(
  layout: ForestLayout,
  task_feature_lengths: Mapping[str, int],
  predicted_per_row: int,
  optional_features: tuple[str, ...] = (),
  encoded_share: float = 0.6,
) -> ForestShape:
  """Returns what a forest holds: as in training, by settings and not by the data.

  Args:
    layout: the run's.
    task_feature_lengths: the run's.
    predicted_per_row: most tokens to predict in a row.
    optional_features: optional features of the batch.
    encoded_share: tokens to encode for each that the decoder reads.
  """
  layout = dataclasses.replace(
    layout, masked_groups=layout.decoder_rows, masked_per_group=predicted_per_row
  )
  totals = SubtreeTotals(
    subtrees=1,
    targets=100,
    target_tokens=100 * _TARGET_TOKENS,
    masked_tokens=100,
    encoded=round(100 * _TARGET_TOKENS * encoded_share / _ENCODED_TOKENS),
    encoded_tokens=round(100 * _TARGET_TOKENS * encoded_share),
  )
  return forest_layout.resolve(layout, task_feature_lengths, totals, optional_features)


@dataclasses.dataclass(frozen=True)
class PackedForest:
  """A forest, and whose each of its targets and encoder slots is.

  Attributes:
    forest: the features of one example.
    targets: (document, number of the node in it) of targets 1, 2, …
    slots: likewise, of encoder slots.
  """

  forest: Forest
  targets: list[tuple[Any, int]]
  slots: list[tuple[Any, int]]

  def predicted(self) -> list[tuple[int, int, int, int]]:
    """Returns where each predicted token stands.

    Its place in the features `[G, M]`, its target, counted from 0, and its position in
    the target's tokens.
    """
    forest = self.forest
    groups, columns = np.nonzero(forest["decoder_loss_weights"] > 0)
    places = forest["decoder_masked_positions"][groups, columns]
    by_group = (len(forest["decoder_loss_weights"]), -1)
    targets = forest["decoder_segment_ids"].reshape(by_group)[groups, places] - 1
    positions = forest["decoder_positions"].reshape(by_group)[groups, places]
    found = (groups, columns, targets, positions)
    return list(zip(*(values.tolist() for values in found)))


def fill(items: Iterable[PackItem], shape: ForestShape) -> Iterator[PackedForest]:
  """Lays items out in forests, one after the other.

  An item that does not fit into what is left of a forest is cut.
  """
  builder, held = ForestBuilder(shape), list[PackItem]()
  for item in items:
    left = item
    while not builder.add(left):
      if count := builder.most_fitting(left):
        first = pack_items.part(left, slice(count))
        builder.add(first)
        held.append(first)
        left = pack_items.part(left, slice(count, None))
      if not held:
        raise AssertionError("an item of which nothing fits an empty forest")
      yield _filled(builder, held)
      builder, held = ForestBuilder(shape), []
    held.append(left)
  if held:
    yield _filled(builder, held)


def _filled(builder: ForestBuilder, items: Sequence[PackItem]) -> PackedForest:
  def owners(item: PackItem, nodes: np.ndarray) -> list[tuple[Any, int]]:
    document = item.subtree[DOCUMENT]
    return [(document, node) for node in item.subtree["node_ids"][nodes].tolist()]

  return PackedForest(
    builder.build(),
    [owner for item in items for owner in owners(item, item.targets)],
    [owner for item in items for owner in owners(item, item.encoded)],
  )


def items_of(subtree: Subtree, shape: ForestShape) -> Iterator[PackItem]:
  """Yields what of a subtree is to be predicted, in parts that fit a forest."""
  return packing.fitting_items(subtree, shape)


def encoded_alone(nodes: Subtree, shape: ForestShape) -> Iterator[PackItem]:
  """Yields each node with tokens as something to encode, with nothing to predict."""
  lengths = nodes["lengths"]
  starts = np.cumsum(lengths) - lengths
  for node in np.flatnonzero(lengths).tolist():
    one = slice(node, node + 1)
    own = slice(starts[node], starts[node] + lengths[node])
    tokens = nodes["tokens"][own]
    subtree = {
      **nodes,
      **{name: nodes[name][own] for name in languages_in(nodes)},
      "tokens": tokens,
      "lengths": lengths[one],
      "depths": nodes["depths"][one],
      "node_ids": nodes["node_ids"][one],
      "input_tokens": tokens,
      "is_masked": np.zeros(len(tokens), np.int32),
    }
    yield PackItem(
      subtree=subtree,
      targets=np.empty(0, np.int64),
      target_lengths=np.empty(0, np.int64),
      masked=np.empty(0, np.int64),
      encoded=np.zeros(1, np.int64),
      encoded_lengths=np.minimum(lengths[one], shape.encoder_length),
      ancestors=np.empty((0, shape.max_ancestors), np.int64),
    )


def cut(
  nodes: Subtree,
  is_target: np.ndarray,
  config: SubtreeConfig,
  per_token: Sequence[str] = ("tokens",),
) -> Iterator[Subtree]:
  """Yields subtrees of a tree in which each of the targets is one once.

  Args:
    nodes: all nodes of the tree, as `SubtreeBuilder.nodes` returns them.
    is_target: which are to be answered for. [N]
    config: how large subtrees are, and what a node sees.
    per_token: features of which each token has one; languages, if they are there,
      come along.
  """
  lengths = nodes["lengths"]
  starts = np.cumsum(lengths) - lengths
  per_token = (*per_token, *languages_in(nodes))
  for split in splitting.split_nodes(
    nodes["parents"],
    is_target,
    max_tree_size=config.max_tree_size,
    max_ancestors=config.max_ancestors,
  ):
    kept = split.nodes
    tokens = ranges(starts[kept], lengths[kept])
    yield {
      **nodes,
      **{name: nodes[name][tokens] for name in per_token},
      "lengths": lengths[kept],
      "depths": nodes["depths"][kept],
      "node_ids": nodes["node_ids"][kept],
      "parents": splitting.extract_parents(kept, nodes["parents"]),
      "is_target": split.is_target.astype(np.int32),
    }


def languages_in(nodes: Subtree) -> tuple[str, ...]:
  """Returns the name of the feature of languages, if the nodes have it."""
  return (LANGUAGES,) if LANGUAGES in nodes else ()


def columns(lengths: np.ndarray) -> np.ndarray:
  """Returns the place of each token in its node."""
  return ranges(np.zeros_like(lengths), lengths)
