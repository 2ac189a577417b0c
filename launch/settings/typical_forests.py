"""The forest's shape without reading data: comments of a given mean length."""

from __future__ import annotations

import math
from fractions import Fraction

from commentree.settings import check_range
from commentree.tasks.config import mixture_config
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests import forest_layout
from commentree.tasks.forests.forest_layout import ForestShape, SubtreeTotals

COMMENT_TOKENS = 48
"""Mean tokens of a comment, clipped to a row, where nothing else is said."""

# Of real trees' comments, some 60% have a reply, and 97% of decoder positions hold
# tokens once packed.
_ENCODED_SHARE = 0.6
_FILL = 0.97
_SAMPLE = 1000


def typical_shape(data: DataConfig, comment_tokens: float) -> tuple[ForestShape, float]:
  """Returns the shape that such data would give, and the comments in a forest.

  What `data.layout` sets stays as set.

  Args:
    data: rows, lengths, masking, objective.
    comment_tokens: mean tokens of a comment; no more than a row's count.

  Raises:
    UserError: if the lengths are not usable.
  """
  _, row = forest_layout.row_lengths(data.task_feature_lengths)
  check_range("compile", "--comment_tokens", comment_tokens, 1, row)
  tokens = math.ceil(_SAMPLE * comment_tokens)
  share, most_masked, optional_features = _predicted(data, row)
  shape = forest_layout.resolve(
    data.layout,
    data.task_feature_lengths,
    SubtreeTotals(
      subtrees=1,
      targets=_SAMPLE,
      target_tokens=tokens,
      masked_tokens=math.ceil(share * tokens),
      most_masked=max(most_masked, math.ceil(share * row)),
      encoded=math.ceil(_ENCODED_SHARE * _SAMPLE),
      encoded_tokens=math.ceil(_ENCODED_SHARE * tokens),
    ),
    optional_features,
  )
  held = _FILL * shape.decoder_rows * shape.decoder_length / comment_tokens
  return shape, min(held, shape.target_slots)


def _predicted(data: DataConfig, row: int) -> tuple[float, int, tuple[str, ...]]:
  """Share of tokens predicted, most in a target, optional features of forests."""
  members = data.members()
  rates = {member.name: member.rate for member in members}
  parts = mixture_config.shares("MIXTURE", rates) if members else [Fraction(1)]
  names = [member.objective for member in members] or [
    data.preprocessing.objective.name
  ]
  share, most = 0.0, 0
  optional_features: dict[str, None] = {}
  for name, part in zip(names, parts):
    objective = data.preprocessing.objective.named(name)
    predicted, in_one = objective.shares(data.preprocessing.masking.rate, row)
    share += float(part) * predicted
    most = max(most, in_one)
    optional_features |= dict.fromkeys(objective.optional_features)
  return share, most, tuple(optional_features)
