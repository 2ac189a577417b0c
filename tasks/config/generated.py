"""Settings of the generated trees: plain data, importable without TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from msgspec import Meta

from commentree.errors import UserError
from commentree.settings import (
  NonNegative,
  NonNegativeInt,
  PositiveInt,
  Share,
  check_fields,
)

# Two-syllable stems that `generated` can spell.
NUM_STEMS = 4900
MAX_HOPS = 8


@dataclasses.dataclass(frozen=True)
class GeneratedTreesConfig:
  """What the generated trees look like, and how much of them ancestors reveal.

  The closed-form entropies hold as long as a target can see every ancestor within
  `max(hops)` whole: keep `SubtreeConfig.max_ancestors` above `max(hops)` and
  `SubtreeConfig.max_comment_tokens` at `max_comment_tokens` or more.

  Attributes:
    seed: seed of all trees.
    num_train_trees: trees in the 'train' split.
    num_validation_trees: trees in the 'validation' split, which follow those.
    hops: ancestors that a comment may recall the fact of; 1 is the parent.
    num_values: facts there are; each comment states one, uniformly drawn.
    noise: probability that a recall is drawn anew instead of copied; above 0, so that
      the floor is not 0 and an over-confident model pays.
    recall_rate: probability that a comment recalls an ancestor within reach, for each
      of `hops` by itself.
    num_filler_words: other words there are.
    zipf_exponent: the filler of rank r is drawn in proportion to r ** -zipf_exponent.
    median_filler_words: median number of filler words in a comment (log-normal).
    filler_words_sigma: standard deviation of the logarithm of that number.
    max_filler_words: most filler words in a comment.
    median_tree_size: median number of comments in a tree, post included (log-normal).
    tree_size_sigma: standard deviation of the logarithm of that number.
    max_tree_size: most comments in a tree, post included.
    root_share: share of comments that answer the post, in a tree where no one talks
      back and forth.
    chain_share: share of comments that answer the newest comment, in a tree where
      everybody does.
  """

  seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
  num_train_trees: PositiveInt = 10_000
  num_validation_trees: PositiveInt = 500
  hops: tuple[Annotated[int, Meta(ge=1, le=MAX_HOPS)], ...] = (1, 2, 3)
  num_values: Annotated[int, Meta(ge=2, le=NUM_STEMS // 2)] = 16
  noise: Share = 0.05
  recall_rate: Share = 0.7
  num_filler_words: Annotated[int, Meta(ge=1, le=NUM_STEMS // 2)] = 50
  zipf_exponent: NonNegative = 1.0
  median_filler_words: NonNegative = 3.0
  filler_words_sigma: NonNegative = 1.0
  max_filler_words: NonNegativeInt = 64
  median_tree_size: Annotated[float, Meta(ge=1)] = 12.0
  tree_size_sigma: NonNegative = 1.0
  max_tree_size: Annotated[int, Meta(ge=2)] = 256
  root_share: Share = 0.3
  chain_share: Share = 0.75

  def __post_init__(self):
    check_fields(self)
    if not self.hops or len(set(self.hops)) < len(self.hops):
      raise UserError(
        f"GeneratedTreesConfig.hops = {self.hops}: name at least one hop, each once,"
        " as in (1, 2, 3)"
      )

  @property
  def max_comment_tokens(self) -> int:
    """Most tokens of a comment: author, fact with its cue, recalls with theirs."""
    return 1 + 2 + 2 * len(self.hops) + self.max_filler_words
