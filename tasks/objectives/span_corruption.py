"""`span_corruption`: spans taken out of a comment, and predicted behind it.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer" (2020), section 3.1.4, and the code that came with it: kept
stretches and spans take turns, all ways to cut of equal probability. There a span
always ends the text, which is little in texts of dozens of spans; comments often have
one, so here what is kept may end them as well. One stack does both parts, as a prefix
language model: all see what is left of the comment, and the spans follow in order.

  reads     <user_1> so <extra_id_0> is | <s>          <extra_id_0>  it
  predicts     -     -       -       -  | <extra_id_0>  it           <extra_id_1>

Numbers of tokens and spans are exact, and spans are a pure function of (seed, epoch,
example). Of a comment too long for a row with its spans, only a beginning is shown.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from commentree.errors import UserError
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.objectives.causal import CausalTargets
from commentree.tasks.objectives.masking import choose, generator
from commentree.tasks.subtrees.subtree_builder import Subtree, ranges


@functools.cache
def _counts(config: ObjectiveConfig, longest: int) -> np.ndarray:
  """Noise tokens and spans by a comment's length: [longest + 1, 2]."""
  return np.array([config.count_noise(length) for length in range(longest + 1)])


@dataclasses.dataclass(frozen=True)
class SpanCorruption(CausalTargets):
  """Takes spans out of comments.

  Attributes:
    config: how much, and in how long spans.
    start_id: what is read before the first sentinel is predicted.
    sentinels: ids of `<extra_id_0>`, `<extra_id_1>` and so on.
    maskable: whether a token may begin a span at a comment's front, bool [vocabulary
      size]; False for the authors' markers, which are never taken out.
    vocabulary: its file, for errors.
  """

  config: ObjectiveConfig
  start_id: int
  sentinels: np.ndarray
  maskable: np.ndarray
  vocabulary: str

  def most_masked(self, decoder_length: int) -> int:
    """Spans and sentinels of the longest comment that fits a row.

    Raises:
      UserError: if the vocabulary has too few sentinels for it.
    """
    noise, spans = self.config.count_noise(self._longest(decoder_length))
    return noise + spans + 1

  def _longest(self, row: int) -> int:
    """Most tokens of a comment that a row has room for, with its spans."""
    longest = self.config.longest_corrupted(row)
    needed = self.config.count_noise(longest)[1] + 1
    if needed > len(self.sentinels):
      raise UserError(
        f"{self.vocabulary}: has {len(self.sentinels)} sentinels (<extra_id_0>…), and"
        f" 'span_corruption' in rows of {row} tokens needs {needed}; add them with"
        f" `commentree vocab --from={self.vocabulary} --output=PATH"
        f" --sentinels={max(100, needed)}`"
      )
    return longest

  def __call__(
    self, subtree: Subtree, max_length: int, seed: int, epoch: int, index: int
  ) -> Subtree:
    """Returns the subtree with what the decoder reads and predicts.

    Raises:
      UserError: if the vocabulary has too few sentinels.
    """
    rng = generator(seed, epoch, index)
    longest = self._longest(max_length)
    starts = np.cumsum(subtree["lengths"]) - subtree["lengths"]
    lengths = np.minimum(subtree["lengths"] * subtree["is_target"], longest)
    is_fixed = lengths > 0
    is_fixed[is_fixed] = ~self.maskable[subtree["tokens"][starts[is_fixed]]]
    lengths[is_fixed & (lengths == 1)] = 0
    noise, spans = _counts(self.config, longest)[lengths].T

    nodes = np.arange(len(lengths))
    node_of = np.repeat(nodes, lengths)
    tokens = subtree["tokens"][ranges(starts, lengths)]
    span_of, is_noise = _draw_spans(lengths, noise, spans, is_fixed, rng)
    begins = is_noise & ~np.append(False, is_noise[:-1])
    begins[1:] |= is_noise[1:] & (node_of[1:] != node_of[:-1])

    kept = np.where(begins, self.sentinels[span_of], tokens)[~is_noise | begins]
    kept_lengths = lengths - noise + spans
    # Sentinels, and behind each the tokens of its span; the last has none.
    sentinel_node = np.repeat(nodes, np.where(lengths > 0, spans + 1, 0))
    sentinel_span = ranges(np.zeros_like(nodes), np.where(lengths > 0, spans + 1, 0))
    answer_node = np.concatenate([sentinel_node, node_of[is_noise]])
    order = np.lexsort(
      (
        np.repeat([0, 1], [len(sentinel_node), noise.sum()]),
        np.concatenate([sentinel_span, span_of[is_noise]]),
        answer_node,
      )
    )
    answer_node = answer_node[order]
    answers = np.concatenate([self.sentinels[sentinel_span], tokens[is_noise]])[order]
    first = np.append(True, answer_node[1:] != answer_node[:-1])[: len(answers)]
    read = np.where(first, self.start_id, np.roll(answers, 1))

    order = np.argsort(
      np.concatenate([np.repeat(nodes, kept_lengths), answer_node]), kind="stable"
    )
    in_decoder = kept_lengths + np.bincount(answer_node, minlength=len(nodes))
    is_masked = np.repeat([0, 1], [len(kept), len(answers)])
    joined = {
      "input_tokens": np.concatenate([kept, read])[order],
      "is_masked": is_masked[order],
      "target_tokens": np.concatenate([kept, answers])[order],
      "target_lengths": in_decoder,
      "prefix_lengths": kept_lengths,
    }
    return {**subtree, **{k: values.astype(np.int32) for k, values in joined.items()}}


def _draw_spans(
  lengths: np.ndarray,
  noise: np.ndarray,
  spans: np.ndarray,
  is_fixed: np.ndarray,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws where spans are, in comments end to end.

  Args:
    lengths: tokens of each comment.
    noise: of those, in spans.
    spans: of each comment.
    is_fixed: whether the first token of each comment is in no span.
    rng: draws.

  Returns:
    Of each token the number of its span in the comment, or of that behind it; and
    whether it is in it.
  """
  nodes = np.arange(len(lengths))

  def segment(items: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Numbers of the segments that items fall into, none empty."""
    node_of = np.repeat(nodes, items)
    is_first = ranges(np.zeros_like(items), items) == 0
    cuts = np.flatnonzero(~is_first)
    begins = np.zeros(len(node_of), np.int64)
    begins[cuts[choose(node_of[cuts], np.maximum(segments - 1, 0), rng)]] = 1
    number = np.cumsum(begins)
    return number - np.repeat(number[is_first], items[items > 0])

  # The last kept stretch may be empty, and the first too: each has an item more, which
  # is taken away again.
  kept = lengths - noise
  items = np.where(lengths > 0, kept + 2 - is_fixed, 0)
  column = ranges(np.zeros_like(items), items)
  is_kept = (column < np.repeat(items - 1, items)) & (
    (column > 0) | np.repeat(is_fixed, items)
  )
  stretches = segment(items, spans + 1)[is_kept]
  number = np.concatenate([stretches, segment(noise, spans)])
  kind = np.repeat([False, True], [len(stretches), noise.sum()])
  node_of = np.concatenate([np.repeat(nodes, kept), np.repeat(nodes, noise)])
  order = np.lexsort((kind, number, node_of))
  return number[order], kind[order]
