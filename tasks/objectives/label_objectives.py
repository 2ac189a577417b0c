"""`tag` and `classify`: labels of a comment's tokens, or of the comment, from its text.

The decoder reads the whole comment as it is, and its ancestors, as ever. What is
predicted are numbers of labels instead of tokens:

  reads     <user_1>  so   it   is     of ('claim',)   of ('for', 'against')
  tag           O      O   B-   I-claim
  classify   against   .    .    .

`tag` takes every target as labelled throughout, since most tokens of most comments are
rightly `O`; where `LabelsConfig.bare_trees` is 'left_out', not those of trees in which
nothing is labelled. `classify` takes comments that have a label; others are context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.subtrees.subtree_builder import (
  COMMENT_LABELS,
  LABELS,
  NO_LABEL,
  Subtree,
  target_lengths,
)

# What they add to a subtree.
LABEL_FEATURES = ("input_tokens", "is_masked", "target_tokens")
OUTSIDE = "O"


def label_names(
  preprocessing: PreprocessingConfig, objective: str | None = None
) -> tuple[str, ...]:
  """Names of the labels that a model predicts, by number.

  That is `('O', 'B-claim', 'I-claim', …)` for `tag`, the names of
  `CommentLabelsConfig` for `classify`, and nothing for objectives that predict tokens.

  Args:
    preprocessing: settings of the labels.
    objective: what is predicted; None for the objective of `preprocessing`.
  """
  objective = objective or preprocessing.objective.name
  if objective == "tag":
    inside = [f"{part}-{name}" for name in preprocessing.labels.names for part in "BI"]
    return (OUTSIDE, *inside)
  if objective == "classify":
    return preprocessing.comment_labels.names
  return ()


def check(preprocessing: PreprocessingConfig, objectives: Sequence[str]) -> None:
  """Raises UserError if it is not said what one of these objectives predicts."""
  if "tag" in objectives and not preprocessing.labels.names:
    raise UserError(
      "LabelsConfig.names is missing: the objective 'tag' needs the labels of spans,"
      " such as ('claim', 'premise')"
    )
  if "classify" in objectives and not preprocessing.comment_labels.names:
    raise UserError(
      "CommentLabelsConfig.source is missing: the objective 'classify' needs a label of"
      " each comment: 'label', 'subreddit' or 'deleted_next'"
    )
  if "regress" in objectives and preprocessing.comment_numbers.source == "none":
    raise UserError(
      "CommentNumbersConfig.source is missing: the objective 'regress' needs a number"
      " of each comment: 'label' or 'score'"
    )


@dataclasses.dataclass(frozen=True)
class LabelObjective:
  """Predicts labels.

  Attributes:
    of_tokens: whether those of a comment's tokens; else that of the comment, at its
      first token.
    optional_features: optional features that forests of its subtrees have.
  """

  of_tokens: bool
  optional_features: tuple[str, ...] = ()

  @property
  def features(self) -> tuple[str, ...]:
    """Features that it adds to a subtree."""
    return LABEL_FEATURES

  def most_masked(self, decoder_length: int) -> int:
    """Most labels of one target."""
    return decoder_length if self.of_tokens else 1

  def __call__(
    self, subtree: Subtree, max_length: int, seed: int, epoch: int, index: int
  ) -> Subtree:
    """Returns the subtree with what the decoder reads and the labels it predicts.

    Args:
      subtree: features of `subtree_builder.SUBTREE_FEATURES`, and `subtrees.LABELS` or
        `subtrees.COMMENT_LABELS`.
      max_length: tokens of a decoder row.
      seed: changes nothing: nothing is drawn.
      epoch: changes nothing.
      index: changes nothing.
    """
    del seed, epoch, index
    lengths = subtree["lengths"]
    shown = target_lengths(subtree, max_length)
    node_of = np.repeat(np.arange(len(lengths)), lengths)
    column = np.arange(len(node_of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if self.of_tokens:
      labels = subtree[LABELS]
    else:
      labels = np.where(column == 0, subtree[COMMENT_LABELS][node_of], NO_LABEL)
    predicted = (column < shown[node_of]) & (labels != NO_LABEL)
    return {
      **subtree,
      "input_tokens": subtree["tokens"],
      "is_masked": predicted.astype(np.int32),
      "target_tokens": np.where(predicted, labels, 0).astype(np.int32),
    }
