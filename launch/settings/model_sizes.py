"""Sizes of a model that follow from its data, and the head that its objective needs."""

from __future__ import annotations

import dataclasses

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.forests import forest_layout
from commentree.tasks.objectives import label_objectives

# A multiple that tiles well on TPUs and divides over model-parallel devices.
_VOCAB_MULTIPLE = 128

# Settings that may be left to the data.
FROM_DATA = ("vocab_size", "num_languages", "num_labels")

# The head that an objective needs, if not one over the vocabulary.
_HEADS = {"tag": "tagging", "classify": "classification", "regress": "regression"}


def check_head(config: ModelConfig, objective: str) -> None:
  """Raises UserError if an objective needs another head than the model has."""
  head = _HEADS.get(objective, "masked_lm")
  if config.head != head:
    raise UserError(
      f"ModelConfig.head = {config.head!r}: the objective {objective!r} needs {head!r}"
      + (f"; add --gin_file=objectives/{objective}.gin" if objective in _HEADS else "")
    )


def with_sizes(
  config: ModelConfig,
  preprocessing: PreprocessingConfig,
  vocab_size: int,
  objective: str | None = None,
) -> ModelConfig:
  """The settings of a model, with the sizes that its data needs.

  Those are its vocabulary's, the number of its languages and, of a head, of its labels.

  Args:
    config: the settings.
    preprocessing: the settings of the labels and languages.
    vocab_size: tokens in the vocabulary.
    objective: what is predicted; None for the objective of `preprocessing`.

  Raises:
    UserError: if the objective needs another head, or the data has another number of
      labels, or more languages.
  """
  objective = objective or preprocessing.objective.name
  check_head(config, objective)
  names = label_objectives.label_names(preprocessing, objective)
  outputs = 1 if objective == "regress" else len(names)
  if config.num_labels and names and config.num_labels != len(names):
    raise UserError(
      f"ModelConfig.num_labels = {config.num_labels}: the data has {len(names)} labels,"
      f" {', '.join(names)}; leave it out"
    )
  languages = preprocessing.objective.languages
  if 0 < config.num_languages < len(languages):
    raise UserError(
      f"ModelConfig.num_languages = {config.num_languages}: the data has"
      f" {len(languages)}, {', '.join(languages)}; leave it out"
    )
  size = forest_layout.round_up(vocab_size, _VOCAB_MULTIPLE)
  return dataclasses.replace(
    config,
    vocab_size=config.vocab_size or size,
    num_languages=config.num_languages or len(languages),
    num_labels=config.num_labels or outputs,
  )
