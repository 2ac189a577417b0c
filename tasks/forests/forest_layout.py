"""The static shape of a forest, and how much of it a subtree of a tree takes.

Light: no TensorFlow, so that settings can be checked before anything heavy loads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from commentree.errors import UserError
from commentree.settings import PositiveInt, check_fields, check_range
from commentree.tasks.config.objective import TARGET_NUMBERS

# Features of the batch that are float32; all others are int32.
FLOAT_FEATURES = ("decoder_loss_weights", TARGET_NUMBERS)

# Room for masked tokens beyond their mean share, over the square root of the rows that
# they are of: the more rows, the nearer is their share to the mean.
_MASK_HEADROOM = 0.2
_SLOT_HEADROOM = 1.15
# Encoder rows beyond the mean share: decoder rows are the ones to fill. Of forests with
# fewer decoder rows than these, single comments with long threads fill the encoder: so
# much more, over the rows.
_ENCODER_HEADROOM = 1.04
_MANY_ROWS = 64
_FITTING_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class ForestLayout:
  """Rows, slots and lengths of one example; `None` is chosen from the data.

  Attributes:
    decoder_rows: rows of target comments (`Rd`).
    encoder_rows: rows of comments that have a target below them (`Re`).
    target_slots: most target comments in an example (`T`).
    encoder_slots: most encoded comments in an example (`E`).
    max_ancestors: most ancestors a comment can see (`A`; `cl` in the original work).
    masked_groups: groups of decoder rows whose masked tokens are kept together (`G`),
      a divisor of `decoder_rows`: the fewer, the less padding. If `None` one, or as
      many as rows where all tokens of a comment may be predicted.
    masked_per_group: most masked tokens in a group (`M`).
    lookahead: tree subtrees held back from which the next example is composed.
  """

  decoder_rows: PositiveInt = 64
  encoder_rows: PositiveInt | None = None
  target_slots: PositiveInt | None = None
  encoder_slots: PositiveInt | None = None
  max_ancestors: PositiveInt = 16
  masked_groups: PositiveInt | None = None
  masked_per_group: PositiveInt | None = None
  lookahead: PositiveInt = 256

  def __post_init__(self):
    check_fields(self)
    if self.masked_groups and self.decoder_rows % self.masked_groups:
      raise UserError(
        f"ForestLayout.masked_groups = {self.masked_groups}: must divide decoder_rows ="
        f" {self.decoder_rows}"
      )


@dataclasses.dataclass(frozen=True)
class ForestShape:
  """A `ForestLayout` with nothing left open.

  Attributes:
    encoder_length: tokens in an encoder row (`Le`).
    decoder_length: tokens in a decoder row (`Ld`).
    optional_features: those of `models.batch.OPTIONAL_FEATURE_AXES` that examples have.
  """

  encoder_length: int
  decoder_length: int
  encoder_rows: int
  decoder_rows: int
  encoder_slots: int
  target_slots: int
  max_ancestors: int
  masked_groups: int
  masked_per_group: int
  optional_features: tuple[str, ...] = ()

  def feature_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape per example of every feature of the batch, without the batch dimension."""
    encoder = (self.encoder_rows, self.encoder_length)
    decoder = (self.decoder_rows, self.decoder_length)
    masked = (self.masked_groups, self.masked_per_group)
    ancestors = (self.target_slots, self.max_ancestors)
    optional = {
      "target_prefix_lengths": (self.target_slots,),
      "encoder_languages": encoder,
      "decoder_languages": decoder,
      TARGET_NUMBERS: (self.target_slots,),
    }
    return {
      "encoder_input_tokens": encoder,
      "encoder_segment_ids": encoder,
      "encoder_positions": encoder,
      "encoder_slot_depths": (self.encoder_slots,),
      "decoder_input_tokens": decoder,
      "decoder_segment_ids": decoder,
      "decoder_positions": decoder,
      "decoder_masked_positions": masked,
      "decoder_target_tokens": masked,
      "decoder_loss_weights": masked,
      "ancestor_slots": ancestors,
      "ancestor_distances": ancestors,
      "target_depths": (self.target_slots,),
      "target_trees": (self.target_slots,),
      **{name: optional[name] for name in self.optional_features},
    }


class PackSizes(NamedTuple):
  """What a subtree, or a part of one, takes of a forest.

  Attributes:
    decoder_tokens: tokens of all targets.
    encoder_tokens: tokens of all encoded nodes.
    targets: how many targets there are.
    encoded: how many encoded nodes there are.
    masked: masked tokens of all targets.
  """

  decoder_tokens: int
  encoder_tokens: int
  targets: int
  encoded: int
  masked: int


@dataclasses.dataclass
class SubtreeTotals:
  """What a sample of subtrees holds, from which open settings of a layout follow."""

  subtrees: int = 0
  targets: int = 0
  target_tokens: int = 0
  masked_tokens: int = 0
  most_masked: int = 0
  encoded: int = 0
  encoded_tokens: int = 0

  def add(self, sizes: PackSizes) -> None:
    """Adds what a subtree, or a part of one, takes; it is counted by the caller."""
    self.targets += sizes.targets
    self.target_tokens += sizes.decoder_tokens
    self.masked_tokens += sizes.masked
    self.encoded += sizes.encoded
    self.encoded_tokens += sizes.encoder_tokens

  def mean(self, other: SubtreeTotals) -> SubtreeTotals:
    """Returns what lies in the middle of both, the higher `most_masked`."""
    middle = {
      field.name: (getattr(self, field.name) + getattr(other, field.name) + 1) // 2
      for field in dataclasses.fields(self)
    }
    middle["most_masked"] = max(self.most_masked, other.most_masked)
    return SubtreeTotals(**middle)


def row_lengths(task_feature_lengths: Mapping[str, int]) -> tuple[int, int]:
  """Returns (encoder, decoder) tokens per row from `TASK_FEATURE_LENGTHS`.

  Raises:
    UserError: unless the keys are exactly 'encoder' and 'decoder', each at least 8.
  """
  if not isinstance(task_feature_lengths, Mapping) or set(task_feature_lengths) != {
    "encoder",
    "decoder",
  }:
    raise UserError(
      f"TASK_FEATURE_LENGTHS = {task_feature_lengths!r}: give the tokens per row of"
      " both sides, {'encoder': 128, 'decoder': 128}"
    )
  for side, length in task_feature_lengths.items():
    check_range("TASK_FEATURE_LENGTHS", side, length, 8, whole=True)
  return task_feature_lengths["encoder"], task_feature_lengths["decoder"]


def resolve(
  layout: ForestLayout,
  task_feature_lengths: Mapping[str, int],
  totals: SubtreeTotals | None = None,
  optional_features: tuple[str, ...] = (),
) -> ForestShape:
  """Closes what `layout` leaves open, from the totals of a sample of the data.

  Without totals, encoder rows default to 0.6 of decoder rows and comments are taken to
  be short (12 tokens), which always fits and wastes memory rather than data.

  Args:
    layout: rows and slots, `None` where the data is to decide.
    task_feature_lengths: tokens per row, {'encoder': Le, 'decoder': Ld}.
    totals: sums over subtrees of the data, clipped to the row lengths.
    optional_features: optional features that examples are to have.

  Raises:
    UserError: if the row lengths are not usable, or some comment might not fit.
  """
  encoder_length, decoder_length = row_lengths(task_feature_lengths)
  if totals is None or not totals.target_tokens:
    totals = SubtreeTotals(
      subtrees=1,
      targets=1,
      target_tokens=12,
      masked_tokens=3,
      most_masked=math.ceil(decoder_length / 4),
      encoded=1,
      encoded_tokens=7,
    )
  decoder_tokens = layout.decoder_rows * decoder_length
  encoded_share = totals.encoded_tokens / totals.target_tokens
  # A row for each ancestor of a comment: at any lengths they fit.
  headroom = _ENCODER_HEADROOM + max(0, 1 / layout.decoder_rows - 1 / _MANY_ROWS)
  encoder_rows = layout.encoder_rows or max(
    layout.max_ancestors,
    math.ceil(headroom * decoder_tokens * encoded_share / encoder_length),
  )
  mean_target = totals.target_tokens / max(1, totals.targets)
  mean_encoded = max(1, totals.encoded_tokens) / max(1, totals.encoded)
  target_slots = layout.target_slots or round_up(
    _SLOT_HEADROOM * decoder_tokens / mean_target, 8
  )
  masked_share = totals.masked_tokens / totals.target_tokens
  groups = layout.masked_groups or (
    1 if totals.most_masked < decoder_length else layout.decoder_rows
  )
  in_group = decoder_tokens // groups
  masked_in_group = masked_share * in_group
  masked_in_group *= 1 + _MASK_HEADROOM / math.sqrt(layout.decoder_rows / groups)
  shape = ForestShape(
    encoder_length=encoder_length,
    decoder_length=decoder_length,
    encoder_rows=encoder_rows,
    decoder_rows=layout.decoder_rows,
    encoder_slots=layout.encoder_slots
    or round_up(_SLOT_HEADROOM * encoder_rows * encoder_length / mean_encoded, 8),
    target_slots=target_slots,
    max_ancestors=layout.max_ancestors,
    masked_groups=groups,
    masked_per_group=layout.masked_per_group
    or max(
      totals.most_masked,
      # One of each target at least.
      min(
        in_group, max(round_up(masked_in_group, 4), math.ceil(target_slots / groups))
      ),
    ),
    optional_features=optional_features,
  )
  for field, least in (
    ("encoder_rows", layout.max_ancestors),
    ("encoder_slots", layout.max_ancestors),
    ("masked_per_group", totals.most_masked),
  ):
    if getattr(shape, field) < least:
      raise UserError(
        f"ForestLayout.{field} = {getattr(shape, field)}: must be at least {least}, or"
        " a single comment and its max_ancestors ="
        f" {layout.max_ancestors} ancestors may not fit"
      )
  return shape


def fit(
  choose: Callable[[SubtreeTotals], ForestShape],
  totals: SubtreeTotals,
  cut_totals: Callable[[ForestShape], SubtreeTotals],
) -> tuple[ForestShape, SubtreeTotals]:
  """Chooses a shape for subtrees that are cut where they do not fit it.

  Each part of a cut subtree brings its ancestors along, so there is more to encode than
  in whole subtrees, and how much more depends on the shape: it is chosen again, each
  time for what lies between what was expected and what was found.

  Args:
    choose: makes a shape for totals, see `resolve`.
    totals: of whole subtrees.
    cut_totals: totals of the same subtrees, cut to fit a shape.

  Returns:
    The shape, and the totals that it was chosen for.

  Raises:
    UserError: as `choose` and `cut_totals`.
  """
  shape = choose(totals)
  for _ in range(_FITTING_ROUNDS):
    found = cut_totals(shape)
    if found == totals:
      break
    totals = totals.mean(found)
    shape = choose(totals)
  return shape, totals


def round_up(value: float, multiple: int) -> int:
  """The least multiple that is not below `value`."""
  return multiple * math.ceil(value / multiple)
