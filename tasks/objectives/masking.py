"""BERT's token masking, drawn afresh per epoch from a stateless seed.

Source: Devlin et al., "BERT" (2019), section 3.1: of the chosen tokens 80% become
`<mask>`, 10% a random token and 10% stay. Here the number chosen in each comment is
exact rather than an expectation, so a comment always has a token to predict, and the
result is a pure function of (seed, epoch, example).

Where subtrees name the discourse markers in them (`subtrees.PHRASES`), a share of the
tokens chosen comes from those, each chosen whole or not at all. Likewise for
all words, if asked, as BERT's authors did later.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.subtrees.subtree_builder import (
  LANGUAGES,
  PHRASES,
  Subtree,
  target_lengths,
)

MASKING_FEATURES = ("input_tokens", "is_masked")


@dataclasses.dataclass(frozen=True)
class Masker:
  """Masks the targets of subtrees.

  Attributes:
    config: the shares.
    mask_id: id of `<mask>`.
    maskable: bool [vocabulary size]; False for padding, specials and markers, which
      are neither masked nor put in as random tokens.
    phrase_share: share of a comment's chosen tokens that come from discourse markers,
      where there are enough of them.
    begins_word: whether a token begins a word, bool [vocabulary size]; None unless
      words are chosen whole.
    optional_features: optional features that forests of its subtrees have.
  """

  config: MaskingConfig
  mask_id: int
  maskable: np.ndarray
  phrase_share: float = 0.0
  begins_word: np.ndarray | None = None
  optional_features: tuple[str, ...] = ()

  @property
  def features(self) -> tuple[str, ...]:
    """Features that it adds to a subtree."""
    return MASKING_FEATURES

  def most_masked(self, decoder_length: int) -> int:
    """Most tokens to predict in one target, in rows of so many tokens."""
    return int(masked_counts(np.array([decoder_length]), self.config.rate)[0])

  @functools.cached_property
  def _replacements(self) -> np.ndarray:
    return np.flatnonzero(self.maskable)

  def __call__(
    self, subtree: Subtree, max_length: int, seed: int, epoch: int, index: int
  ) -> Subtree:
    """Returns the subtree with `input_tokens` and `is_masked`, both [sum(lengths)].

    Args:
      subtree: features of `subtree_builder.SUBTREE_FEATURES`, and `subtrees.PHRASES` if
        discourse markers are to be preferred.
      max_length: tokens of a target that a decoder row shows; none beyond is masked.
      seed: seed of the run.
      epoch: pass over the data; another epoch draws other masks.
      index: the example's place in the data, the same in every epoch.
    """
    rng = generator(seed, epoch, index)
    tokens, lengths = subtree["tokens"], subtree["lengths"]
    node_of = np.repeat(np.arange(len(lengths)), lengths)
    column = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    candidates = np.flatnonzero(
      (column < target_lengths(subtree, max_length)[node_of]) & self.maskable[tokens]
    )
    available = np.bincount(node_of[candidates], minlength=len(lengths))
    budget = masked_counts(available, self.config.rate)
    words = self._number_words(subtree, column)
    if PHRASES in subtree and subtree[PHRASES].any():
      phrases = subtree[PHRASES] if words is None else _whole(subtree[PHRASES], words)
      positions = self._choose_with_phrases(
        candidates, node_of, phrases, words, budget, rng
      )
    else:
      positions = _choose_of(candidates, node_of, words, budget, rng)

    # A shuffled order cut at the shares of 80/10/10. A subtree has few masked tokens,
    # often one: what is left of a share is rounded up with its own probability, by one
    # draw for both cuts, so that the shares hold over all subtrees.
    shuffled = rng.permutation(positions)
    draw = rng.random()
    masked_count, random_count = (
      int(share * len(shuffled) + draw)
      for share in (
        self.config.mask_share,
        self.config.mask_share + self.config.random_share,
      )
    )
    input_tokens = tokens.copy()
    input_tokens[shuffled[:masked_count]] = self.mask_id
    replaced = shuffled[masked_count:random_count]
    input_tokens[replaced] = rng.choice(self._replacements, len(replaced))
    is_masked = np.zeros(len(tokens), np.int32)
    is_masked[positions] = 1
    return {**subtree, "input_tokens": input_tokens, "is_masked": is_masked}

  def _number_words(self, subtree: Subtree, column: np.ndarray) -> np.ndarray | None:
    """Numbers of the words that tokens are in, rising; None if words are no matter.

    What is not maskable, such as a marker, is a word of its own.
    """
    if self.begins_word is None:
      return None
    apart = ~self.maskable[subtree["tokens"]]
    begins = self.begins_word[subtree["tokens"]] | apart | (column == 0)
    begins[1:] |= apart[:-1]
    if LANGUAGES in subtree:
      begins[1:] |= np.diff(subtree[LANGUAGES]) != 0
    return np.cumsum(begins)

  def _choose_with_phrases(
    self,
    candidates: np.ndarray,
    node_of: np.ndarray,
    phrases: np.ndarray,
    words: np.ndarray | None,
    budget: np.ndarray,
    rng: np.random.Generator,
  ) -> np.ndarray:
    """Positions of at most `budget` of each node's candidates, phrases preferred.

    Fewer than the budget only where the node has too few tokens outside of phrases.
    """
    # A group is a phrase in a node; one with a token that is no candidate is none.
    width = int(phrases.max()) + 1
    group_of = np.where(phrases > 0, node_of * width + phrases, 0)
    sizes = np.bincount(group_of, minlength=len(budget) * width)
    whole = np.bincount(group_of[candidates], minlength=len(sizes)) == sizes
    whole[::width] = False
    in_phrase = whole[group_of[candidates]]
    others = np.bincount(node_of[candidates[~in_phrase]], minlength=len(budget))

    groups = np.flatnonzero(whole & (sizes > 0))
    chosen = self._choose_groups(groups // width, sizes[groups], budget, others, rng)
    taken = np.zeros(len(sizes), bool)
    taken[groups[chosen]] = True
    preferred = candidates[taken[group_of[candidates]]]
    left = budget - np.bincount(node_of[preferred], minlength=len(budget))
    # Where phrases are too long and nothing else fits: better in parts than none.
    outside = candidates[~in_phrase]
    units = np.ones(len(outside)) if words is None else _sizes(words[outside])
    smallest = np.full(len(budget), np.inf)
    np.minimum.at(smallest, node_of[outside], units)
    stuck = (smallest > budget) & (left == budget)
    rest = candidates[~in_phrase | stuck[node_of[candidates]]]
    return np.concatenate([preferred, _choose_of(rest, node_of, words, left, rng)])

  def _choose_groups(
    self,
    nodes: np.ndarray,
    sizes: np.ndarray,
    budget: np.ndarray,
    others: np.ndarray,
    rng: np.random.Generator,
  ) -> np.ndarray:
    """Whether each phrase is chosen whole.

    Phrases are taken in a random order until they have their share of the budget. The
    last one often is too long for that: it is taken with such a probability that the
    share is right on average.

    Args:
      nodes: of each phrase.
      sizes: tokens of each phrase.
      budget: tokens to choose in each node.
      others: candidates of each node outside of phrases.
      rng: draws.
    """
    chosen = np.zeros(len(nodes), bool)
    taken = [0] * len(budget)
    wanted = np.where(others > 0, self.phrase_share * budget, budget).tolist()
    luck = rng.random(len(nodes)).tolist()
    for group in rng.permutation(len(nodes)).tolist():
      node, size = int(nodes[group]), int(sizes[group])
      missing = wanted[node] - taken[node]
      if missing <= 0 or taken[node] + size > budget[node]:
        continue
      if size > missing and luck[group] * size >= missing:
        wanted[node] = 0.0
        continue
      chosen[group] = True
      taken[node] += size
    return chosen


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
  """Draws that depend on these numbers alone."""
  return np.random.Generator(
    np.random.Philox(key=np.uint64(seed), counter=[0, 0, epoch, index])
  )


def _whole(phrases: np.ndarray, words: np.ndarray) -> np.ndarray:
  """Phrases with all the tokens of the words that they have a token of."""
  of_word = np.zeros(words[-1] + 1, phrases.dtype)
  np.maximum.at(of_word, words, phrases)
  return of_word[words]


def _sizes(words: np.ndarray) -> np.ndarray:
  """Of each token, how many there are of its word."""
  _, word, counts = np.unique(words, return_inverse=True, return_counts=True)
  return counts[word]


def _choose_of(
  candidates: np.ndarray,
  node_of: np.ndarray,
  words: np.ndarray | None,
  budget: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """Those of the candidates that are to be predicted: tokens, or words whole."""
  nodes = node_of[candidates]
  if words is None:
    return candidates[choose(nodes, budget, rng)]
  chosen = _choose_words(nodes, words[candidates], budget, rng)
  left = budget - np.bincount(nodes[chosen], minlength=len(budget))
  # A node whose words are all too long for its budget: better in parts than none.
  stuck = np.flatnonzero((left == budget)[nodes])
  return candidates[np.concatenate([chosen, stuck[choose(nodes[stuck], budget, rng)]])]


def _choose_words(
  nodes: np.ndarray, words: np.ndarray, budget: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Indices of all tokens of words taken in a random order, as far as they fit.

  Args:
    nodes: of each token.
    words: numbers of each token's word, rising.
    budget: most tokens to choose in each node.
    rng: draws.
  """
  _, first, sizes = np.unique(words, return_index=True, return_counts=True)
  left = budget.tolist()
  word_nodes, word_sizes = nodes[first].tolist(), sizes.tolist()
  taken = np.zeros(len(sizes), bool)
  for word in rng.permutation(len(sizes)).tolist():
    node, size = word_nodes[word], word_sizes[word]
    if size <= left[node]:
      left[node] -= size
      taken[word] = True
  return np.flatnonzero(np.repeat(taken, sizes))


def choose(
  node_of: np.ndarray, budget: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Indices of exactly `budget` of each node's candidates, or of all there are."""
  available = np.bincount(node_of, minlength=len(budget))
  order = np.lexsort((rng.random(len(node_of)), node_of))
  rank = np.arange(len(node_of)) - np.repeat(
    np.cumsum(available) - available, available
  )
  return order[rank < budget[node_of]]


def masked_counts(available: np.ndarray, rate: float) -> np.ndarray:
  """Tokens to predict among `available` ones: round(rate * n), at least 1 of any."""
  return np.where(
    available > 0, np.maximum(1, np.rint(rate * available).astype(np.int64)), 0
  )
