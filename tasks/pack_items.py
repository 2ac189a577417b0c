"""Pieces measured for packing: what each takes of a forest."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from . import objectives, splitting
from .pieces import (
  COMMENT_LABELS,
  LABELS,
  LANGUAGES,
  NODE_FEATURES,
  PHRASES,
  Piece,
  ranges,
)


@dataclasses.dataclass(frozen=True)
class PackItem:
  """A piece that an objective was at, measured: what it takes of a forest.

  "Masked" are the tokens to predict, whatever the decoder reads in their places.

  Attributes:
    piece: features, with those of `objectives`.
    targets: indices of nodes with a masked token, in node order.
    target_lengths: decoder tokens of each target, clipped to the row. [T]
    masked: masked tokens of each target. [T]
    encoded: indices of nodes that a target sees, in node order.
    encoded_lengths: tokens of each encoded node, clipped to the row. [E]
    ancestors: nodes that each target sees, nearest first, -1 where none. [T, A]
  """

  piece: Piece
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


def measure(
  piece: Piece, encoder_length: int, decoder_length: int, max_ancestors: int
) -> PackItem:
  """Works out what a masked piece needs: its targets, its encoder set, who sees whom.

  Nodes without a token to predict are no targets, nodes without tokens are not
  encoded, and nodes that no target sees are not either.
  """
  lengths = piece["lengths"]
  in_decoder = objectives.decoder_lengths(piece)
  ends = np.cumsum(in_decoder)
  masked_until = np.concatenate([[0], np.cumsum(piece["is_masked"])])
  masked = masked_until[ends] - masked_until[ends - in_decoder]
  targets = np.flatnonzero((masked > 0) & (piece["is_target"] == 1))
  ancestors = splitting.visible_ancestors(piece["parents"], max_ancestors)[targets]
  if not lengths.all():
    ancestors = _drop_empty(ancestors, lengths)
  seen = np.zeros(len(lengths), bool)
  seen[ancestors[ancestors >= 0]] = True
  encoded = np.flatnonzero(seen)
  return PackItem(
    piece=piece,
    targets=targets,
    target_lengths=np.minimum(in_decoder[targets], decoder_length),
    masked=masked[targets],
    encoded=encoded,
    encoded_lengths=np.minimum(lengths[encoded], encoder_length),
    ancestors=ancestors,
  )


def _drop_empty(ancestors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Takes nodes without tokens out of every list, closing the gaps."""
  keep = (ancestors >= 0) & (lengths[ancestors] > 0)
  order = np.argsort(~keep, axis=1, kind="stable")
  return np.take_along_axis(np.where(keep, ancestors, -1), order, axis=1)


def cut(piece: Piece, targets: np.ndarray, ancestors: np.ndarray) -> Piece:
  """Returns the piece with some targets, and of its other nodes what those see."""
  is_target = np.zeros(len(piece["lengths"]), np.int32)
  is_target[targets] = 1
  kept = is_target == 1
  kept[ancestors[ancestors >= 0]] = True
  kept[0] = True  # `splitting` wants the topmost node in every piece
  nodes = np.flatnonzero(kept)
  node_features = (*NODE_FEATURES, *objectives.NODE_FEATURES, COMMENT_LABELS)
  cut: Piece = {name: piece[name][nodes] for name in node_features if name in piece}
  cut["parents"] = splitting.extract_parents(nodes, piece["parents"])
  cut["is_target"] = is_target[nodes]
  in_decoder = objectives.decoder_lengths(piece)
  for names, lengths in (
    (("tokens", LANGUAGES, LABELS, PHRASES), piece["lengths"]),
    (objectives.TOKEN_FEATURES, in_decoder),
  ):
    tokens = ranges((np.cumsum(lengths) - lengths)[nodes], lengths[nodes])
    cut |= {name: piece[name][tokens] for name in names if name in piece}
  return {**piece, **cut}


def part(item: PackItem, chosen: slice) -> PackItem:
  """Returns some of a piece's targets and what those see, as a piece of its own."""
  ancestors = item.ancestors[chosen]
  return measure(
    cut(item.piece, item.targets[chosen], ancestors),
    max(item.encoded_lengths, default=1),
    max(item.target_lengths),
    ancestors.shape[1],
  )


def fitting_targets(item: PackItem, left: np.ndarray) -> int:
  """Returns how many of a piece's first targets, and what they see, are in a size.

  Args:
    item: the piece.
    left: the size, as `PackItem.sizes`.
  """
  count = len(item.targets)
  # The first target that sees each encoded node.
  target, _ = np.nonzero(item.ancestors >= 0)
  node = np.searchsorted(item.encoded, item.ancestors[item.ancestors >= 0])
  first = np.full(len(item.encoded), count)
  np.minimum.at(first, node, target)
  needed = np.stack(
    [
      item.target_lengths,
      np.bincount(first, item.encoded_lengths, count),
      np.ones(count),
      np.bincount(first, minlength=count),
    ]
  )
  return int((needed.cumsum(1) <= left[:, None]).all(0).sum())
