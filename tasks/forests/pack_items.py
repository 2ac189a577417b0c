"""Subtrees measured for packing: what each takes of a forest."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from commentree.tasks.forests.forest_layout import PackSizes
from commentree.tasks.objectives import objectives
from commentree.tasks.subtrees import comment_numbers, splitting
from commentree.tasks.subtrees.subtree_builder import (
  LABELS,
  LANGUAGES,
  NODE_ANNOTATIONS,
  NODE_FEATURES,
  PHRASES,
  Subtree,
  ranges,
)


@dataclasses.dataclass(frozen=True)
class PackItem:
  """A subtree that an objective was at, measured: what it takes of a forest.

  "Masked" are the tokens to predict, also where the decoder reads other tokens.

  Attributes:
    subtree: features, with those of `objectives`.
    targets: indices of nodes with a masked token, in node order.
    target_lengths: decoder tokens of each target, clipped to the row. [T]
    masked: masked tokens of each target. [T]
    encoded: indices of nodes that a target sees, in node order.
    encoded_lengths: tokens of each encoded node, clipped to the row. [E]
    ancestors: nodes that each target sees, nearest first, -1 where none. [T, A]
  """

  subtree: Subtree
  targets: np.ndarray
  target_lengths: np.ndarray
  masked: np.ndarray
  encoded: np.ndarray
  encoded_lengths: np.ndarray
  ancestors: np.ndarray

  @functools.cached_property
  def sizes(self) -> tuple[int, int, int, int]:
    """Decoder tokens, encoder tokens, targets, encoded nodes."""
    return (
      int(self.target_lengths.sum()),
      int(self.encoded_lengths.sum()),
      len(self.targets),
      len(self.encoded),
    )

  @property
  def pack_sizes(self) -> PackSizes:
    """What totals take."""
    return PackSizes(*self.sizes, int(self.masked.sum()))

  @property
  def prefix_lengths(self) -> np.ndarray:
    """How many leading tokens of each target are seen by all of its tokens, [T]."""
    if objectives.PREFIX_LENGTHS not in self.subtree:
      return self.target_lengths
    lengths = self.subtree[objectives.PREFIX_LENGTHS][self.targets]
    return np.minimum(lengths, self.target_lengths)

  @property
  def numbers(self) -> np.ndarray:
    """The number of each target, float32 [T]."""
    return comment_numbers.from_bits(self.subtree[objectives.NUMBERS][self.targets])

  @functools.cached_property
  def first_seen(self) -> np.ndarray:
    """Which target is the first to see each encoded node: places in `targets`, [E]."""
    target, _ = np.nonzero(self.ancestors >= 0)
    node = np.searchsorted(self.encoded, self.ancestors[self.ancestors >= 0])
    first = np.full(len(self.encoded), len(self.targets))
    np.minimum.at(first, node, target)
    return first

  @functools.cached_property
  def needs(self) -> np.ndarray:
    """What the first targets take, by how many they are, from 1 on: [6, T].

    As `sizes`; then tokens of the longest target and of the longest encoded node.
    """
    count = len(self.targets)
    if not count:
      return np.empty((6, 0))
    longest = np.zeros(count, np.int64)
    np.maximum.at(longest, self.first_seen, self.encoded_lengths)
    taken = [
      self.target_lengths,
      np.bincount(self.first_seen, self.encoded_lengths, count),
      np.ones(count),
      np.bincount(self.first_seen, minlength=count),
    ]
    most = [self.target_lengths, longest]
    return np.concatenate(
      [np.cumsum(taken, axis=1), np.maximum.accumulate(most, axis=1)]
    )


def measure(
  subtree: Subtree, encoder_length: int, decoder_length: int, max_ancestors: int
) -> PackItem:
  """Works out what a masked subtree needs: its targets, its encoder set, who sees whom.

  Nodes without a token to predict are no targets, nodes without tokens are not
  encoded, and nodes that no target sees are not either.
  """
  lengths = subtree["lengths"]
  in_decoder = objectives.decoder_lengths(subtree)
  ends = np.cumsum(in_decoder)
  masked_until = np.concatenate([[0], np.cumsum(subtree["is_masked"])])
  masked = masked_until[ends] - masked_until[ends - in_decoder]
  targets = np.flatnonzero((masked > 0) & (subtree["is_target"] == 1))
  ancestors = splitting.visible_ancestors(subtree["parents"], max_ancestors)[targets]
  if not lengths.all():
    ancestors = drop_empty(ancestors, lengths)
  seen = np.zeros(len(lengths), bool)
  seen[ancestors[ancestors >= 0]] = True
  encoded = np.flatnonzero(seen)
  return PackItem(
    subtree=subtree,
    targets=targets,
    target_lengths=np.minimum(in_decoder[targets], decoder_length),
    masked=masked[targets],
    encoded=encoded,
    encoded_lengths=np.minimum(lengths[encoded], encoder_length),
    ancestors=ancestors,
  )


def drop_empty(ancestors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Takes nodes without tokens out of every list `[T, A]`, closing the gaps."""
  keep = (ancestors >= 0) & (lengths[ancestors] > 0)
  order = np.argsort(~keep, axis=1, kind="stable")
  return np.take_along_axis(np.where(keep, ancestors, -1), order, axis=1)


def part(item: PackItem, chosen: slice) -> PackItem:
  """Returns some of a subtree's targets and what those see, as a subtree of its own.

  Who sees whom is taken over, not worked out again: a node without tokens, which no
  target sees, takes one of the places above a target, and is not in the part.
  """
  targets, ancestors = item.targets[chosen], item.ancestors[chosen]
  encoded = np.unique(ancestors[ancestors >= 0])
  nodes = np.union1d(targets, encoded)
  return PackItem(
    subtree=_with_nodes(item.subtree, nodes),
    targets=np.searchsorted(nodes, targets),
    target_lengths=item.target_lengths[chosen],
    masked=item.masked[chosen],
    encoded=np.searchsorted(nodes, encoded),
    encoded_lengths=item.encoded_lengths[np.searchsorted(item.encoded, encoded)],
    ancestors=np.where(ancestors >= 0, np.searchsorted(nodes, ancestors), -1),
  )


def _with_nodes(subtree: Subtree, nodes: np.ndarray) -> Subtree:
  """Returns the features of some nodes, but for the links between them."""
  some = {name: values for name, values in subtree.items() if name != "parents"}
  for name in (*NODE_FEATURES, *objectives.NODE_FEATURES, *NODE_ANNOTATIONS):
    if name in some:
      some[name] = subtree[name][nodes]
  in_decoder = objectives.decoder_lengths(subtree)
  for names, lengths in (
    (("tokens", LANGUAGES, LABELS, PHRASES), subtree["lengths"]),
    (objectives.TOKEN_FEATURES, in_decoder),
  ):
    tokens = ranges((np.cumsum(lengths) - lengths)[nodes], lengths[nodes])
    some |= {name: subtree[name][tokens] for name in names if name in subtree}
  return some
