"""`regress`: the number of a comment, from its text and its ancestors.

The decoder reads the whole comment as it is. What is predicted is a number for the
comment, which stands at its first token:

  reads     <user_1>  so   it   is
  regress      2.5    .    .    .

Comments that have a number are targets; others are context.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from commentree.tasks.config.preprocessing import CommentNumbersConfig
from commentree.tasks.objectives.label_objectives import LABEL_FEATURES
from commentree.tasks.subtrees import comment_numbers
from commentree.tasks.subtrees.subtree_builder import (
  COMMENT_NUMBERS,
  Subtree,
  target_lengths,
)

# A number for each node, as `comment_numbers` has them.
NUMBERS = "numbers"
NUMBER_FEATURES = (*LABEL_FEATURES, NUMBERS)


@dataclasses.dataclass(frozen=True)
class NumberObjective:
  """Predicts numbers.

  Attributes:
    config: which.
    optional_features: optional features that forests of its subtrees have.
  """

  config: CommentNumbersConfig
  optional_features: tuple[str, ...] = ()

  @property
  def features(self) -> tuple[str, ...]:
    """Features that it adds to a subtree."""
    return NUMBER_FEATURES

  def most_masked(self, decoder_length: int) -> int:
    """Most numbers of one target."""
    del decoder_length
    return 1

  def __call__(
    self, subtree: Subtree, max_length: int, seed: int, epoch: int, index: int
  ) -> Subtree:
    """Returns the subtree with what the decoder reads and the numbers it predicts.

    Args:
      subtree: features of `subtree_builder.SUBTREE_FEATURES`, and
        `subtree_builder.COMMENT_NUMBERS`.
      max_length: tokens of a decoder row.
      seed: changes nothing: nothing is drawn.
      epoch: changes nothing.
      index: changes nothing.
    """
    del seed, epoch, index
    numbers = comment_numbers.from_bits(subtree[COMMENT_NUMBERS])
    numbers = (numbers - self.config.mean) / self.config.standard_deviation
    known = np.isfinite(numbers)
    lengths = subtree["lengths"]
    first = np.cumsum(lengths) - lengths
    is_masked = np.zeros(len(subtree["tokens"]), np.int32)
    is_masked[first[known & (target_lengths(subtree, max_length) > 0)]] = 1
    return {
      **subtree,
      "input_tokens": subtree["tokens"],
      "is_masked": is_masked,
      "target_tokens": np.zeros_like(is_masked),
      NUMBERS: comment_numbers.to_bits(np.where(known, numbers, 0)),
    }
