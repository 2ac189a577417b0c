"""`clm`: each token of a comment from those before it, given the comment's ancestors.

The decoder reads a start and then the comment, and predicts the comment and its end:

  reads     <s>  <user_1>  so    it   is
  predicts   -   so        it    is   </s>

The author's marker is given rather than predicted, unless a setting says otherwise:
who writes the reply is known to whoever asks for one. So a generator of replies begins
with start and marker. No end token is predicted for a truncated comment.
Where comments have ends of their own (`sequence_ends`), start and end are those.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from commentree.tasks.config.objective import PREFIXES
from commentree.tasks.config.preprocessing import SEQUENCE_ENDS
from commentree.tasks.subtrees.subtree_builder import Subtree, ranges

CAUSAL_FEATURES = (
  "input_tokens",
  "is_masked",
  "target_tokens",
  "target_lengths",
  "prefix_lengths",
)


class CausalTargets:
  """What objectives share whose targets are read in order, behind a prefix."""

  @property
  def features(self) -> tuple[str, ...]:
    """Features that it adds to a subtree."""
    return CAUSAL_FEATURES

  @property
  def optional_features(self) -> tuple[str, ...]:
    """Optional features that forests of its subtrees have."""
    return (PREFIXES,)


@dataclasses.dataclass(frozen=True)
class CausalObjective(CausalTargets):
  """Predicts each token of a comment from those before it.

  Attributes:
    start_id: what is read in front of a comment.
    end_id: what is predicted behind a whole one.
    is_given: whether a token is not to be predicted where it begins a comment, bool
      [vocabulary size].
    max_comment_tokens: length that longer comments were cut to.
    has_ends: whether comments have start and end around them already.
  """

  start_id: int
  end_id: int
  is_given: np.ndarray
  max_comment_tokens: int
  has_ends: bool = False

  def most_masked(self, decoder_length: int) -> int:
    """All tokens of a row, if it is one comment's."""
    return decoder_length

  def __call__(
    self, subtree: Subtree, max_length: int, seed: int, epoch: int, index: int
  ) -> Subtree:
    """Returns the subtree with what the decoder reads and predicts; draws nothing."""
    del seed, epoch, index
    tokens = subtree["tokens"]
    lengths = subtree["lengths"] * subtree["is_target"]
    starts = np.cumsum(subtree["lengths"]) - subtree["lengths"]
    # One of exactly that length may have been whole: better no end than a false one.
    has_end = (lengths > 0) & (lengths < self.max_comment_tokens)
    if self.has_ends:
      # Start and end are put in below, as for comments that have none.
      lengths, starts = np.maximum(lengths - SEQUENCE_ENDS, 0), starts + 1
    in_decoder = np.minimum(lengths + has_end, max_length).astype(np.int32)

    # A token more than the comments have, where a comment's end stands in for it.
    padded = np.append(tokens, np.int32(self.end_id))
    source = ranges(starts, in_decoder)
    column = ranges(np.zeros_like(in_decoder), in_decoder)
    is_end = column == np.repeat(lengths, in_decoder)
    target_tokens = np.where(is_end, np.int32(self.end_id), padded[source])
    input_tokens = np.where(column == 0, np.int32(self.start_id), padded[source - 1])
    is_given = (column == 0) & self.is_given[target_tokens]
    return {
      **subtree,
      "input_tokens": input_tokens,
      "is_masked": (~is_given).astype(np.int32),
      "target_tokens": target_tokens,
      "target_lengths": in_decoder,
      "prefix_lengths": np.zeros_like(in_decoder),
    }
