"""Objectives: from a subtree to what the decoder reads and what it is to predict.

An objective is a matter of the data alone: the model predicts whatever tokens a forest
says at whatever positions, so forests may hold subtrees of several objectives.

An objective adds to a subtree, int32:

  input_tokens    [D]  what the decoder reads
  is_masked       [D]  1 where something is to be predicted

and, where they are other than said here:

  target_tokens   [D]  what is to be predicted there; the subtree's `tokens`
  target_lengths  [N]  decoder tokens of each node, D in all; its `lengths`
  prefix_lengths  [N]  leading ones of those that all see; all of them. A later one is
                       seen by itself and by those after it.
  numbers         [N]  what is to be predicted of each node, see `number_objective`; 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from commentree.tasks.config.objective import (
  CAUSAL,
  LANGUAGE_FEATURES,
  PREFIXES,
  TARGET_NUMBERS,
  ObjectiveConfig,
)
from commentree.tasks.objectives import label_objectives, masking
from commentree.tasks.objectives.causal import CAUSAL_FEATURES, CausalObjective
from commentree.tasks.objectives.number_objective import (
  NUMBER_FEATURES,
  NUMBERS,
  NumberObjective,
)
from commentree.tasks.objectives.span_corruption import SpanCorruption
from commentree.tasks.subtrees.subtree_builder import LANGUAGES, Subtree
from commentree.tasks.trees import markers

if TYPE_CHECKING:
  from commentree.tasks.config.preprocessing import PreprocessingConfig
  from commentree.tasks.vocabulary.vocabularies import Tokenizer

TARGET_TOKENS = "target_tokens"
TARGET_LENGTHS, PREFIX_LENGTHS = "target_lengths", "prefix_lengths"
# What an objective may add to a subtree, by what there is one of.
TOKEN_FEATURES = (*masking.MASKING_FEATURES, TARGET_TOKENS)
NODE_FEATURES = (TARGET_LENGTHS, PREFIX_LENGTHS, NUMBERS)
ALL_FEATURES = (*TOKEN_FEATURES, *NODE_FEATURES, LANGUAGES)


class Objective(Protocol):
  """Turns subtrees into what the decoder reads and predicts."""

  @property
  def features(self) -> tuple[str, ...]:
    """Features that it adds to a subtree."""

  @property
  def optional_features(self) -> tuple[str, ...]:
    """Optional features that forests of its subtrees have."""

  def most_masked(self, decoder_length: int) -> int:
    """Most positions to predict in one target, in rows of so many tokens."""

  def __call__(
    self, subtree: Subtree, max_length: int, seed: int, epoch: int, index: int
  ) -> Subtree:
    """Returns the subtree with what the decoder reads and predicts.

    A pure function of its arguments.

    Args:
      subtree: features of `subtree_builder.SUBTREE_FEATURES`, and annotations.
      max_length: tokens of a decoder row; no node gets more.
      seed: seed of the run.
      epoch: pass over the data.
      index: the subtree's place in the data, the same in every epoch.
    """


def build(preprocessing: PreprocessingConfig, tokenizer: Tokenizer) -> Objective:
  """Returns the objective that settings ask for.

  Raises:
    UserError: if the vocabulary lacks a token that it needs.
  """
  config = preprocessing.objective
  discourse = preprocessing.discourse
  if config.name in ("mlm", "tlm"):
    return masking.Masker(
      preprocessing.masking,
      tokenizer.mask_id,
      tokenizer.maskable,
      0.0 if discourse.file is None else discourse.share,
      tokenizer.begins_word if preprocessing.masking.whole_words else None,
      optional_features=config.optional_features,
    )
  if config.name == "clm":
    authors = (
      [] if config.predict_authors else markers.of_authors(preprocessing.markers)
    )
    is_given = np.zeros(tokenizer.vocab_size, bool)
    is_given[[i for a in authors if (i := tokenizer.piece_to_id(a)) is not None]] = True
    return CausalObjective(
      tokenizer.start_id,
      tokenizer.end_id,
      is_given,
      preprocessing.subtrees.max_comment_tokens,
      preprocessing.subtrees.sequence_ends,
    )
  label_objectives.check(preprocessing, (config.name,))
  if config.name == "regress":
    return NumberObjective(preprocessing.comment_numbers, config.optional_features)
  if not predicts_tokens(config):
    return label_objectives.LabelObjective(
      config.name == "tag", config.optional_features
    )
  return SpanCorruption(
    config,
    tokenizer.start_id,
    tokenizer.sentinels,
    tokenizer.maskable,
    tokenizer.path,
  )


def features(config: ObjectiveConfig) -> tuple[str, ...]:
  """Features that an objective adds to a subtree; no vocabulary is needed to know."""
  if config.name == "regress":
    return NUMBER_FEATURES
  if not predicts_tokens(config):
    return label_objectives.LABEL_FEATURES
  return CAUSAL_FEATURES if config.name in CAUSAL else masking.MASKING_FEATURES


def predicts_tokens(config: ObjectiveConfig) -> bool:
  """Whether an objective's `target_tokens` are tokens of the vocabulary."""
  return config.name not in ("classify", "tag", "regress")


def decoder_lengths(subtree: Subtree) -> np.ndarray:
  """Decoder tokens of each node of a subtree that an objective was at, [N]."""
  return subtree[TARGET_LENGTHS if TARGET_LENGTHS in subtree else "lengths"]


def complete(subtree: Subtree) -> Subtree:
  """A subtree with an objective applied, and `ALL_FEATURES` that it left out."""
  default = {
    TARGET_TOKENS: subtree["tokens"],
    TARGET_LENGTHS: decoder_lengths(subtree),
    PREFIX_LENGTHS: decoder_lengths(subtree),
    NUMBERS: np.zeros(len(subtree["lengths"]), np.int32),
    LANGUAGES: np.zeros(len(subtree["tokens"]), np.int32),
  }
  return {**default, **subtree}


def optional_features_of(features: Mapping[str, object]) -> tuple[str, ...]:
  """Optional features of forests whose subtrees have these features."""
  prefixes = (PREFIXES,) if PREFIX_LENGTHS in features else ()
  numbers = (TARGET_NUMBERS,) if NUMBERS in features else ()
  return prefixes + (LANGUAGE_FEATURES if LANGUAGES in features else ()) + numbers
