"""Packing subtrees of trees into forests: rows of fixed length, static shapes.

Comments are short and ragged, so padding is the enemy. A forest takes subtrees
from a pool held back for the purpose, so that decoder rows, encoder rows, slots and
masked positions all fill up together: vector bin packing, greedily taking the subtree
that leaves the least room (the norm-based greedy of Panigrahy et al., "Heuristics for
Vector Bin Packing", 2011), with best-fit decreasing inside the rows. What room is left
at the end is filled by the first comments of subtrees that are cut for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from commentree.errors import UserError
from commentree.tasks.config.objective import (
  LANGUAGE_FEATURES,
  PREFIXES,
  TARGET_NUMBERS,
)
from commentree.tasks.forests.forest_arrays import (
  Forest,
  write_languages,
  write_masked,
  write_segments,
)
from commentree.tasks.forests.forest_layout import (
  FLOAT_FEATURES,
  ForestShape,
  PackSizes,
  SubtreeTotals,
)
from commentree.tasks.forests.pack_items import PackItem, measure, part
from commentree.tasks.forests.rows import OpenRows, Placed
from commentree.tasks.objectives import objectives
from commentree.tasks.objectives.objectives import TARGET_TOKENS
from commentree.tasks.subtrees.subtree_builder import LANGUAGES, Subtree, tree_number

# A forest is closed once so many subtrees in a row found no place in its rows.
_MAX_MISFITS = 30
# Forests to choose from that a pool holds at least, where `lookahead` lets it.
_FORESTS_HELD = 4
# Where more than this share of its decoder tokens is free at the end, waiting subtrees
# are cut for it, so many at most; a part is as large as that share at least.
_GAP = 0.03
_MAX_CUTS = 8
# Weight of keeping the two sides' free shares equal, against filling up fast.
_BALANCE = 4.0


def total(
  subtrees: Iterable[Subtree],
  row_lengths: tuple[int, int],
  max_ancestors: int,
  most_masked: int,
  shape: ForestShape | None = None,
) -> SubtreeTotals:
  """Adds up what masked subtrees need; from such totals a layout is chosen.

  Args:
    subtrees: features of subtrees that an objective was at.
    row_lengths: tokens of a row of the encoder and of the decoder.
    max_ancestors: most ancestors that a comment sees.
    most_masked: most masked tokens that a row may have, by the objective.
    shape: of the forests that subtrees are cut to fit; None for whole subtrees.

  Raises:
    UserError: as `fitting_items`.
  """
  totals = SubtreeTotals(most_masked=most_masked)
  for subtree in subtrees:
    # Rates of a mixture are of subtrees before they are cut.
    totals.subtrees += 1
    items: Iterable[PackItem]
    if shape is None:
      items = [measure(subtree, *row_lengths, max_ancestors)]
    else:
      items = fitting_items(subtree, shape)
    for item in items:
      totals.add(item.pack_sizes)
  return totals


class ForestBuilder:
  """One forest being filled."""

  def __init__(self, shape: ForestShape):
    self._shape = shape
    self._decoder = OpenRows(
      shape.decoder_rows,
      shape.decoder_length,
      shape.masked_per_group,
      shape.masked_groups,
    )
    self._encoder = OpenRows(shape.encoder_rows, shape.encoder_length)
    self._items: list[PackItem] = []
    self._decoder_places: list[tuple[int, int]] = []
    self._encoder_places: list[tuple[int, int]] = []
    self.left = np.array(
      [
        shape.decoder_rows * shape.decoder_length,
        shape.encoder_rows * shape.encoder_length,
        shape.target_slots,
        shape.encoder_slots,
      ]
    )

  def add(self, item: PackItem) -> bool:
    """Takes the whole subtree in, or leaves the forest as it was and returns False."""
    sizes = item.sizes
    if (self.left < sizes).any():
      return False
    found = self._find(item.target_lengths, item.masked, item.encoded_lengths)
    if found is None:
      return False
    decoder, encoder = found
    self._items.append(item)
    self._decoder_places += self._decoder.take(decoder)
    self._encoder_places += self._encoder.take(encoder)
    self.left -= sizes
    return True

  @property
  def room(self) -> np.ndarray:
    """What is left, as `PackItem.needs` tells what is needed."""
    return np.append(self.left, (self._decoder.longest, self._encoder.longest))

  def count_fitting(self, item: PackItem, least: float) -> int:
    """Returns how many of a subtree's first targets fit, with what they see.

    It need not be the most.

    Args:
      item: the subtree.
      least: decoder tokens of the fewest that are worth it; 0 is returned for fewer.
    """
    count = int((item.needs <= self.room[:, None]).all(0).sum())
    # What is in the size may still find no place in the rows.
    while count and item.needs[0, count - 1] >= least:
      lengths = item.encoded_lengths[item.first_seen < count]
      if self._find(item.target_lengths[:count], item.masked[:count], lengths):
        return count
      count = count * 3 // 4
    return 0

  def most_fitting(self, item: PackItem) -> int:
    """Returns how many of a subtree's first targets fit, with what they see.

    It is searched for by halves; `count_fitting` is quicker.
    """
    fits, too_many = 0, 1 + int((item.needs <= self.room[:, None]).all(0).sum())
    while too_many - fits > 1:
      count = (fits + too_many) // 2
      lengths = item.encoded_lengths[item.first_seen < count]
      if self._find(item.target_lengths[:count], item.masked[:count], lengths):
        fits = count
      else:
        too_many = count
    return fits

  def _find(
    self, target_lengths: np.ndarray, masked: np.ndarray, encoded_lengths: np.ndarray
  ) -> tuple[Placed, Placed] | None:
    """Finds places for targets and for what they see; changes nothing."""
    decoder = self._decoder.find(target_lengths.tolist(), masked.tolist())
    if decoder is None:
      return None
    encoder = self._encoder.find(encoded_lengths.tolist(), [0] * len(encoded_lengths))
    return None if encoder is None else (decoder, encoder)

  def build(self) -> Forest:
    """Lays the subtrees taken in out as the features of one example."""
    shape = self._shape
    forest = empty_forest(shape)
    if not self._items:
      return forest
    items = self._items
    nodes_before = np.cumsum([0] + [len(i.subtree["lengths"]) for i in items])
    lengths = np.concatenate([item.subtree["lengths"] for item in items])
    depths = np.concatenate([item.subtree["depths"] for item in items])
    starts = np.cumsum(lengths) - lengths
    with_languages = LANGUAGE_FEATURES[0] in shape.optional_features

    encoded = np.concatenate(
      [item.encoded + before for item, before in zip(items, nodes_before)]
    )
    slot_of_node = np.zeros(len(lengths) + 1, np.int32)  # the last stands for "none"
    slot_of_node[encoded] = np.arange(1, len(encoded) + 1)
    forest["encoder_slot_depths"][: len(encoded)] = depths[encoded]
    tokens = np.concatenate([item.subtree["tokens"] for item in items])
    encoded_lengths = np.concatenate([item.encoded_lengths for item in items])
    source, cells = write_segments(
      forest,
      "encoder",
      tokens,
      starts[encoded],
      encoded_lengths,
      np.array(self._encoder_places, np.int64).reshape(-1, 2),
      shape.encoder_length,
    )
    if with_languages:
      languages = np.concatenate([_languages(item.subtree) for item in items])
      write_languages(forest, "encoder", languages[source], cells)

    targets = np.concatenate(
      [item.targets + before for item, before in zip(items, nodes_before)]
    )
    input_tokens = np.concatenate([item.subtree["input_tokens"] for item in items])
    in_decoder = np.concatenate([objectives.decoder_lengths(i.subtree) for i in items])
    target_lengths = np.concatenate([item.target_lengths for item in items])
    places = np.array(self._decoder_places, np.int64).reshape(-1, 2)
    source, cells = write_segments(
      forest,
      "decoder",
      input_tokens,
      (np.cumsum(in_decoder) - in_decoder)[targets],
      target_lengths,
      places,
      shape.decoder_length,
    )
    is_masked = np.concatenate([item.subtree["is_masked"] for item in items])
    picked = is_masked[source] == 1
    answers = np.concatenate(
      [item.subtree.get(TARGET_TOKENS, item.subtree["tokens"]) for item in items]
    )
    write_masked(forest, answers[source[picked]], cells[picked])
    if with_languages:
      languages = np.concatenate([_decoder_languages(item.subtree) for item in items])
      write_languages(forest, "decoder", languages[source], cells)

    ancestors = np.concatenate(
      [
        np.where(item.ancestors >= 0, item.ancestors + before, len(lengths))
        for item, before in zip(items, nodes_before)
      ]
    )
    count = len(targets)
    forest["target_depths"][:count] = depths[targets]
    trees = [tree_number(item.subtree) for item in items]
    forest["target_trees"][:count] = np.repeat(trees, [len(i.targets) for i in items])
    if PREFIXES in shape.optional_features:
      forest[PREFIXES][:count] = np.concatenate([i.prefix_lengths for i in items])
    if TARGET_NUMBERS in shape.optional_features:
      forest[TARGET_NUMBERS][:count] = np.concatenate([i.numbers for i in items])
    forest["ancestor_slots"][:count] = slot_of_node[ancestors]
    hops = depths[targets][:, None] - np.append(depths, 0)[ancestors]
    forest["ancestor_distances"][:count] = np.where(
      forest["ancestor_slots"][:count] > 0, hops, 0
    )
    return forest


def _languages(subtree: Subtree) -> np.ndarray:
  """Language of each of the subtree's tokens."""
  return subtree.get(LANGUAGES, np.zeros(len(subtree["tokens"]), np.int32))


def _decoder_languages(subtree: Subtree) -> np.ndarray:
  """Language of each decoder token; none if those are not the subtree's own tokens."""
  in_decoder = objectives.decoder_lengths(subtree)
  if not np.array_equal(in_decoder, subtree["lengths"]):
    return np.zeros(len(subtree["input_tokens"]), np.int32)
  return _languages(subtree)


def empty_forest(shape: ForestShape) -> Forest:
  """An example of padding alone: no tokens, no slots, no weight."""
  forest = {
    name: np.zeros(dims, np.float32 if name in FLOAT_FEATURES else np.int32)
    for name, dims in shape.feature_shapes().items()
  }
  forest["encoder_slot_depths"] -= 1
  return forest


@dataclasses.dataclass(frozen=True)
class Waiting:
  """A subtree in a pool.

  Attributes:
    key: what the caller knows it by.
    item: the subtree, or what is left of it.
    first: how many of its targets an earlier forest took.
  """

  key: Any
  item: PackItem
  first: int = 0

  def after(self, count: int) -> Waiting:
    """Returns it without its next targets."""
    return Waiting(self.key, part(self.item, slice(count, None)), self.first + count)


class Packer:
  """Composes forests from a pool of subtrees; the oldest subtree always goes next.

  Where no whole subtree fits into what is left of a forest, one is cut: its first
  comments go, the others wait. Subtrees are known by a key of the caller's, so that the
  pool can be written down as keys and numbers and built again (see `forest_streams`).
  """

  def __init__(self, shape: ForestShape, lookahead: int, enough: int | None = None):
    """Starts with an empty pool.

    Args:
      shape: what a forest holds.
      lookahead: most subtrees in the pool.
      enough: subtrees that the pool need not exceed once they would fill several
        forests; None for `lookahead`.
    """
    self._shape = shape
    self._lookahead = lookahead
    self._enough = lookahead if enough is None else enough
    self.pool: list[Waiting] = []

  def wants_more(self) -> bool:
    """Whether the pool is to hold more subtrees, so that the next forest fills up."""
    if len(self.pool) < min(self._enough, self._lookahead):
      return True
    if len(self.pool) >= self._lookahead:
      return False
    held = sum(waiting.item.sizes[0] for waiting in self.pool)
    return held < _FORESTS_HELD * self._shape.decoder_rows * self._shape.decoder_length

  def next_forest(self) -> Forest:
    """Fills one forest from the pool and takes its subtrees out of it."""
    builder = ForestBuilder(self._shape)
    sizes = np.array([w.item.sizes for w in self.pool], np.int64).reshape(-1, 4)
    capacity = builder.left.astype(np.float64)
    waiting = np.ones(len(self.pool), bool)
    taken = np.zeros(len(self.pool), bool)
    misfits = 0
    candidate = 0
    while misfits < _MAX_MISFITS:
      waiting[candidate] = False
      if builder.add(self.pool[candidate].item):
        taken[candidate] = True
      else:
        misfits += 1
      fits = waiting & (sizes <= builder.left).all(axis=1)
      options = np.flatnonzero(fits)
      if not len(options):
        break
      # Only the tokens steer the choice: slots are provided with headroom.
      room = (builder.left[:2] - sizes[options, :2]) / capacity[:2]
      score = np.einsum("nd,nd->n", room, room)
      score += _BALANCE * (room[:, 0] - room[:, 1]) ** 2
      candidate = options[np.argmin(score)]
    self.pool = [entry for entry, gone in zip(self.pool, taken) if not gone]
    # What is left of a cut subtree may not fit as a whole: some of it goes all the
    #   same,
    # or it would wait for ever.
    self._fill_gap(builder, _GAP * capacity[0] if taken.any() else 1)
    return builder.build()

  def _fill_gap(self, builder: ForestBuilder, least: float) -> None:
    """Cuts waiting subtrees, oldest first, while there is room for decoder tokens.

    Args:
      builder: the forest.
      least: decoder tokens that are worth a cut.
    """
    if not self.pool or builder.left[0] < least:
      return
    cuts = 0
    of_first = np.array([waiting.item.needs[:, 0] for waiting in self.pool])
    for place in np.flatnonzero((of_first <= builder.room).all(1)):
      if builder.left[0] < least or cuts == _MAX_CUTS:
        break
      waiting = self.pool[place]
      item = waiting.item
      if count := builder.count_fitting(item, least):
        cuts += 1
        whole = count == len(item.targets)
        builder.add(item if whole else part(item, slice(count)))
        self.pool[place] = waiting.after(count)
    self.pool = [waiting for waiting in self.pool if len(waiting.item.targets)]


def fitting_items(subtree: Subtree, shape: ForestShape) -> Iterator[PackItem]:
  """Measures a subtree that an objective was at; cuts it if no empty forest holds it.

  A single comment with its ancestors always fits: `forest_layout.resolve` sees to it,
  where it knows the data.

  Raises:
    UserError: if one does not fit, as where T5X lays forests out.
  """
  missing = set(objectives.optional_features_of(subtree)) - set(shape.optional_features)
  if missing:
    raise UserError(
      f"forests lack {', '.join(sorted(missing))}, which these subtrees' objective"
      " needs: make their shape with the objective's `optional_features`"
    )
  item = measure(
    subtree, shape.encoder_length, shape.decoder_length, shape.max_ancestors
  )
  if len(item.targets):
    yield from _fitting_parts(item, shape)


def _fitting_parts(item: PackItem, shape: ForestShape) -> Iterator[PackItem]:
  if surely_fits(item.pack_sizes, shape) or ForestBuilder(shape).add(item):
    yield item
    return
  if len(item.targets) == 1:
    raise UserError(
      f"ForestLayout: a comment with {int(item.masked.max())} masked tokens and"
      f" {len(item.encoded)} ancestors does not fit an empty forest of {shape}: set"
      " masked_per_group, or rows and slots, to more"
    )
  # Nodes stand depth first, so each half is mostly subtrees of its own.
  middle = len(item.targets) // 2
  for half in (slice(None, middle), slice(middle, None)):
    yield from _fitting_parts(part(item, half), shape)


def surely_fits(sizes: PackSizes, shape: ForestShape) -> bool:
  """Whether best fit must succeed: with rows half full, another item always fits.

  Args:
    sizes: of a subtree.
    shape: of an empty forest.
  """
  in_group = shape.decoder_rows // shape.masked_groups * shape.decoder_length
  return (
    sizes.targets <= shape.target_slots
    and sizes.encoded <= shape.encoder_slots
    and 2 * sizes.decoder_tokens / shape.decoder_length + 1 <= shape.decoder_rows
    # Whatever group they come into; one with room for all of its tokens is never full.
    and (sizes.masked <= shape.masked_per_group or in_group <= shape.masked_per_group)
    and 2 * sizes.encoder_tokens / shape.encoder_length + 1 <= shape.encoder_rows
  )


def pack(
  subtrees: Iterable[Subtree], shape: ForestShape, lookahead: int
) -> Iterator[Forest]:
  """Packs masked subtrees into forests until none are left; the last may be part empty.

  Args:
    subtrees: features of `subtree_builder.SUBTREE_FEATURES` and those of an objective.
    shape: what a forest holds.
    lookahead: subtrees held back to choose from.
  """
  packer = Packer(shape, lookahead)
  for index, subtree in enumerate(subtrees):
    packer.pool += [Waiting(index, item) for item in fitting_items(subtree, shape)]
    while not packer.wants_more():
      yield packer.next_forest()
  while packer.pool:
    yield packer.next_forest()


@dataclasses.dataclass
class Fill:
  """Share of positions that hold real tokens, over the forests seen."""

  forests: int = 0
  comments: int = 0
  encoder_tokens: int = 0
  encoder_positions: int = 0
  decoder_tokens: int = 0
  decoder_positions: int = 0

  def add(self, forest: Forest) -> None:
    """Counts a forest, or a batch of them."""
    encoder, decoder = forest["encoder_segment_ids"], forest["decoder_segment_ids"]
    self.forests += decoder.size // (decoder.shape[-1] * decoder.shape[-2])
    self.comments += int(decoder.reshape(-1, np.prod(decoder.shape[-2:])).max(1).sum())
    self.encoder_tokens += int(np.count_nonzero(encoder))
    self.encoder_positions += encoder.size
    self.decoder_tokens += int(np.count_nonzero(decoder))
    self.decoder_positions += decoder.size

  @property
  def encoder(self) -> float:
    """Share of encoder positions holding a token."""
    return self.encoder_tokens / max(1, self.encoder_positions)

  @property
  def decoder(self) -> float:
    """Share of decoder positions holding a token."""
    return self.decoder_tokens / max(1, self.decoder_positions)
