"""Generated comment trees, whose entropies given each ancestor are known exactly.

A tree has the shape of one on Reddit: a heavy-tailed size, two comments in three
without a reply, popular posts, now and then a long conversation. Its comments are made
of words that mean nothing but this:

  filler   words drawn independently from a Zipf distribution;
  fact     after the cue `[fact]`, one of `num_values` words, drawn uniformly: what the
           comment asserts;
  recall   after the cue `[hop_k]`, a word for the fact of the ancestor k hops up:
           that fact with probability 1 - noise, else a fact drawn uniformly. Every hop
           has words of its own, so a token's id tells its group.

    <user_2> lemo [hop_1] kodusa rubi [fact] tamin lemo [hop_3] vigulo

Why the entropies are exact. Let S be what is drawn before any word: the tree, the
authors, how long each comment is, which hops it recalls and where everything stands.
Given S the words have the probability

  prod over fillers p(w)  *  prod over comments n of  1/V * prod over k of C(r | f)

with f the fact of n's ancestor k hops up and C the symmetric channel above. Cues and
authors are markers, which are never masked, so S is known to whoever reads a masked
comment, and with it the group of every masked token. What to mask is drawn from S
alone and every masked token reads `<mask>` (no random or kept tokens): neither a mask
nor its neighbours give anything away. A target sees its ancestors, unmasked, and its
own other words; never a descendant, a sibling or another tree. In the product above,
- a filler stands alone: its entropy is that of the Zipf distribution;
- the target's own fact appears in no other factor that is visible (only descendants
  recall it): ln V;
- the target's recall r of f meets the rest only through f, and f appears in the
  ancestor's own `[fact]` and in recalls of it by comments in between:
  - ancestors visible: f is known, what remains is the noise of one channel, the
    floor;
  - only the parent visible: at hop 1, f is known, as before. At hop k > 1 the parent
    may recall the same f, at its hop k - 1; that leaves the noise of two channels in a
    row, which is again a symmetric channel, with copying probability (1 - noise)**2.
    If it does not, nothing visible depends on f, which leaves ln V. Whether it does is
    part of S, and has probability `recall_rate`: the expectation over trees is exact;
  - no ancestor visible: nothing visible depends on f, and r is uniform: ln V.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from typing import TYPE_CHECKING

import numpy as np

from commentree.paths import cache_root
from commentree.tasks.config.generated import NUM_STEMS, GeneratedTreesConfig
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees import markers
from commentree.tasks.trees.comment_tree import Comment, CommentTree
from commentree.tasks.vocabulary import sentencepiece_backend
from commentree.tasks.vocabulary.backend import WORD_START

if TYPE_CHECKING:
  from commentree.tasks.vocabulary.vocabularies import Tokenizer

# In square brackets, which cleaning lets pass: it defuses what looks like `<mask>`.
FACT_CUE = "[fact]"

OWN_FACT = "own fact"
FILLER = "filler"
# Of a vocabulary that is to have them: as many as T5 has.
SENTINELS = 100

# Keeps the trees' random numbers apart from those of masks drawn with the same seed
# and index: shared ones would tie what is masked to what it says.
_STREAM = 0x7472656573

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_SYLLABLES = [c + v for c in _CONSONANTS for v in _VOWELS]
# Any number without a common factor with NUM_STEMS: neighbours sound different.
_STEM_STRIDE = 2791
_FACT_ENDING = "n"
_HOP_ENDINGS = ("sa", "lo", "mi", "re", "tu", "ko", "ne", "vi")

_FIRST_POST_UTC = 1_500_000_000
_MEAN_SECONDS_BETWEEN_COMMENTS = 600


def hop_cue(hop: int) -> str:
  """The marker in front of a recall of the ancestor `hop` hops up."""
  return f"[hop_{hop}]"


def recall_group(hop: int) -> str:
  """The name of the group of tokens that recall the ancestor `hop` hops up."""
  return f"recall hop {hop}"


def cues(config: GeneratedTreesConfig) -> list[str]:
  """All cue markers, which belong into the vocabulary beside those of `markers`."""
  return [FACT_CUE, *(hop_cue(hop) for hop in config.hops)]


@dataclasses.dataclass(frozen=True)
class Words:
  """All words of a configuration's trees, by group; no word is in two.

  Attributes:
    fillers: by rank, the most frequent first.
    facts: by value.
    recalls: by hop, then by value.
  """

  fillers: tuple[str, ...]
  facts: tuple[str, ...]
  recalls: dict[int, tuple[str, ...]]

  def groups(self) -> dict[str, tuple[str, ...]]:
    """The words of each group of tokens."""
    recalls = {recall_group(hop): words for hop, words in self.recalls.items()}
    return {**recalls, OWN_FACT: self.facts, FILLER: self.fillers}


@functools.cache
def words(config: GeneratedTreesConfig) -> Words:
  """The words of a configuration; a recall shares the stem of the fact it recalls."""
  values = [_stem(value) for value in range(config.num_values)]
  fillers = range(config.num_values, config.num_values + config.num_filler_words)
  return Words(
    fillers=tuple(_stem(number) for number in fillers),
    facts=tuple(stem + _FACT_ENDING for stem in values),
    recalls={
      hop: tuple(stem + _HOP_ENDINGS[hop - 1] for stem in values) for hop in config.hops
    },
  )


def _stem(number: int) -> str:
  first, second = divmod(number * _STEM_STRIDE % NUM_STEMS, len(_SYLLABLES))
  return _SYLLABLES[first] + _SYLLABLES[second]


def filler_probabilities(config: GeneratedTreesConfig) -> np.ndarray:
  """The Zipf distribution of filler words, float64 [num_filler_words], by rank."""
  weights = np.arange(1, config.num_filler_words + 1) ** -float(config.zipf_exponent)
  return weights / weights.sum()


def generate_tree(config: GeneratedTreesConfig, seed: int, index: int) -> CommentTree:
  """Makes one tree: a pure function of its arguments.

  Args:
    config: what trees look like; its `seed` and numbers of trees are not looked at.
    seed: of the whole collection.
    index: of the tree in it.
  """
  rng = np.random.Generator(
    np.random.Philox(key=np.array([seed, _STREAM], np.uint64), counter=[0, 0, 0, index])
  )
  parents = _draw_shape(config, rng)
  texts = _draw_texts(config, parents, rng)
  authors = _draw_authors(parents, rng)
  gaps = -_MEAN_SECONDS_BETWEEN_COMMENTS * np.log1p(-rng.random(len(parents)))
  times = _FIRST_POST_UTC + 86_400 * index + np.cumsum(gaps).astype(np.int64)
  name = f"g{seed}_{index}"
  return CommentTree(
    id=name,
    comments=[
      Comment(
        id=f"{name}_{node}" if node else name,
        parent=parent,
        author=author,
        text=text,
        created_utc=time,
      )
      for node, (parent, author, text, time) in enumerate(
        zip(parents.tolist(), authors, texts, times.tolist())
      )
    ],
  )


def _log_normal(
  median: float, sigma: float, high: int, rng: np.random.Generator, size: int
) -> np.ndarray:
  """Whole log-normal numbers of at most `high`, int64 [size]."""
  numbers = median * np.exp(sigma * rng.standard_normal(size))
  return np.rint(np.minimum(numbers, high)).astype(np.int64)


def _draw_shape(config: GeneratedTreesConfig, rng: np.random.Generator) -> np.ndarray:
  """Parents of the N >= 2 comments of a tree, oldest first, int64 [N].

  A newcomer answers the post, or the newest comment, or else a comment as popular as
  it has replies already: that of a random earlier reply, in half of the cases. How
  much of a conversation it is differs by tree. These are the root bias, novelty and
  popularity of Gómez, Kappen, Litvak and Kaltenbrunner, "A likelihood-based framework
  for the analysis of discussion threads" (2013).
  """
  size = int(
    _log_normal(
      config.median_tree_size, config.tree_size_sigma, config.max_tree_size, rng, 1
    )[0]
  )
  talk = rng.random() ** 2
  root = (1 - talk) * config.root_share
  chain = talk * config.chain_share
  choices = rng.random((size, 3)).tolist()
  parents = [-1, 0]  # without an answer there is nothing to predict
  for node in range(2, size):
    kind, which, popular = choices[node]
    if kind < root:
      parent = 0
    elif kind < root + chain:
      parent = node - 1
    else:
      parent = 1 + int(which * (node - 1))
      if popular < 0.5:
        parent = parents[parent]
    parents.append(parent)
  return np.array(parents)


def _draw_authors(parents: np.ndarray, rng: np.random.Generator) -> list[str]:
  """A few authors a tree, some much busier than others; none answers itself."""
  number = 2 + int(len(parents) ** 0.6)
  draws = rng.random((len(parents), 2))
  names = [
    _stem(int(NUM_STEMS * u)).title() + str(i) for i, u in enumerate(rng.random(number))
  ]
  # The square prefers the first names; the post's author is the very first.
  chosen = (draws[:, 0] ** 2 * number).astype(int)
  chosen[0] = 0
  for node in range(1, len(parents)):
    if chosen[node] == chosen[parents[node]]:
      chosen[node] = (chosen[node] + 1 + int(draws[node, 1] * (number - 1))) % number
  return [names[author] for author in chosen]


def _draw_texts(
  config: GeneratedTreesConfig, parents: np.ndarray, rng: np.random.Generator
) -> list[str]:
  """The texts of a tree's comments."""
  size, vocabulary = len(parents), words(config)
  facts = _uniform(config.num_values, rng, size)
  units = [[f"{FACT_CUE} {vocabulary.facts[fact]}"] for fact in facts]

  # The ancestor of each comment, one hop further up in every round; -1 above the post.
  ancestors = np.arange(size)
  for hop in range(1, max(config.hops) + 1):
    ancestors = np.where(ancestors >= 0, parents[ancestors], -1)
    if hop not in config.hops:
      continue
    recalls = (ancestors >= 0) & (rng.random(size) < config.recall_rate)
    noisy = rng.random(size) < config.noise
    recalled = np.where(noisy, _uniform(config.num_values, rng, size), facts[ancestors])
    for node in np.flatnonzero(recalls).tolist():
      word = vocabulary.recalls[hop][recalled[node]]
      units[node].append(f"{hop_cue(hop)} {word}")

  counts = _log_normal(
    config.median_filler_words,
    config.filler_words_sigma,
    config.max_filler_words,
    rng,
    size,
  )
  ranks = _draw_fillers(config, rng, int(counts.sum())).tolist()
  start = 0
  for node, count in enumerate(counts.tolist()):
    units[node] += [vocabulary.fillers[rank] for rank in ranks[start : start + count]]
    start += count
  return [" ".join([unit[i] for i in rng.permutation(len(unit))]) for unit in units]


def _uniform(values: int, rng: np.random.Generator, size: int) -> np.ndarray:
  return (values * rng.random(size)).astype(np.int64)


def _draw_fillers(
  config: GeneratedTreesConfig, rng: np.random.Generator, size: int
) -> np.ndarray:
  """Ranks of independent filler words, int64 [size]."""
  cumulative = np.cumsum(filler_probabilities(config))
  # Rounding may leave the last sum just below 1.
  return np.searchsorted(cumulative[:-1], rng.random(size), side="right")


def recall_entropy(config: GeneratedTreesConfig, channels: int) -> float:
  """Entropy of a recall, in nats, given its fact through other noisy channels.

  Args:
    config: gives the number of values and the noise.
    channels: recalls between what is known and the masked recall, itself included: 1
      if the fact itself is known, 2 if another recall of it is.
  """
  return _symmetric_entropy((1 - config.noise) ** channels, config.num_values)


def _symmetric_entropy(copied: float, values: int) -> float:
  """Entropy of a value copied with that probability and drawn uniformly otherwise."""
  other = (1 - copied) / values
  same = copied + other
  entropy = -same * math.log(same)
  if other > 0:
    entropy -= (values - 1) * other * math.log(other)
  return entropy


def analytic_entropies(config: GeneratedTreesConfig) -> dict[str, dict[str, float]]:
  """Expected entropy of a masked token, in nats, by its group and what is visible.

  Args:
    config: settings of the trees.

  Returns:
    {group: {condition: nats}} with the groups of `token_groups` and the conditions
    'true' (all ancestors visible), 'parent_only' and 'none'. The module's docstring
    says why they are exact.
  """
  unknown = math.log(config.num_values)
  floor = recall_entropy(config, 1)
  entropies = {}
  for hop in config.hops:
    parent_only = unknown
    if hop == 1:
      parent_only = floor
    elif hop - 1 in config.hops:
      rate = config.recall_rate
      parent_only = rate * recall_entropy(config, 2) + (1 - rate) * unknown
    entropies[recall_group(hop)] = {
      "true": floor,
      "parent_only": parent_only,
      "none": unknown,
    }
  probabilities = filler_probabilities(config)
  filler = float(-np.sum(probabilities * np.log(probabilities)))
  for group, entropy in ((OWN_FACT, unknown), (FILLER, filler)):
    entropies[group] = dict.fromkeys(("true", "parent_only", "none"), entropy)
  return entropies


def token_groups(
  config: GeneratedTreesConfig, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
  """Ids of the tokens of each group, int32; groups are disjoint."""
  return {
    group: np.array(
      [tokenizer.piece_to_id(WORD_START + word) for word in members],
      np.int32,
    )
    for group, members in words(config).groups().items()
  }


def vocabulary(
  config: GeneratedTreesConfig,
  markers_config: MarkersConfig,
  cache_dir: str | None = None,
  sentinels: int = 0,
) -> str:
  """Returns the SentencePiece model of these trees, made at first use.

  Every word is one piece. The file's name is a fingerprint of its contents, and it
  appears whole or not at all, so processes may ask for it at the same time.

  Args:
    config: settings of the trees.
    markers_config: settings of the author markers.
    cache_dir: where to keep it; None for the user's cache folder.
    sentinels: how many of T5's sentinels it is to have.

  Raises:
    UserError: if the folder cannot be written.
  """
  every_word = [w for members in words(config).groups().values() for w in members]
  every_marker = [*markers.all_markers(markers_config), *cues(config)]
  contents = [sentencepiece_backend.FORMAT_VERSION, every_word, every_marker]
  text = json.dumps(contents + [sentinels] * (sentinels > 0))
  key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
  folder = cache_root(cache_dir) / "vocabularies"
  path = folder / f"generated-{key}.model"
  if not path.exists():
    sentencepiece_backend.write_word_vocabulary(
      every_word, path, every_marker, sentinels
    )
  return os.fspath(path)
