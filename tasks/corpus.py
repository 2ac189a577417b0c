"""The texts of comment trees, without their trees: what a vocabulary is trained on."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import built_dataset, cleaning, readers, trees
from .config import CleaningConfig, TreeConfig
from .trees import Fates

if TYPE_CHECKING:
  from .vocabularies import Tokenizer


def iter_texts(
  files: str | Sequence[str],
  tree_config: TreeConfig,
  cleaning_config: CleaningConfig,
  fates: Fates,
  format_name: str | None = None,
) -> Iterator[str]:
  """Yields the cleaned text of every comment that has one, without its author.

  Behind it comes that of its translation, if it has one.

  Args:
    files: a file, a glob, a folder, or several of those; or the folder of a dataset
      made by `commentree build`, of which the train split is read.
    tree_config: what to do with deleted comments and the like.
    cleaning_config: what to clean.
    fates: counts what became of every comment.
    format_name: of the files; None to tell it from each.
  """
  folder = built_dataset.find(files)
  if folder is None:
    found = readers.iter_trees(files, tree_config, fates, format_name)
  else:
    found = built_dataset.BuiltDataset(folder).trees("train")
  for tree in found:
    if folder is not None:  # where all is kept that was
      fates.trees[trees.KEPT] += 1
      fates.comments[trees.KEPT] += len(tree.comments) - 1
    for comment in tree.comments:
      if text := cleaning.clean_text(comment.text, cleaning_config):
        yield text
      if comment.translation is not None:
        translated = cleaning.clean_text(comment.translation.text, cleaning_config)
        if translated:
          yield translated


def sample(texts: Iterable[str], size: int, seed: int) -> tuple[list[str], int]:
  """Draws texts without replacement from a stream of unknown length.

  Vitter, "Random sampling with a reservoir" (1985), algorithm R.

  Args:
    texts: consumed once.
    size: how many to draw; all, in order, if there are no more.
    seed: the same seed draws the same texts.

  Returns:
    (the texts drawn, the number of texts seen).
  """
  rng = random.Random(seed)
  drawn: list[str] = []
  seen = 0
  for text in texts:
    seen += 1
    if len(drawn) < size:
      drawn.append(text)
    elif (place := int(rng.random() * seen)) < size:
      drawn[place] = text
  return drawn, seen


@dataclasses.dataclass(frozen=True)
class Coverage:
  """How a vocabulary cuts texts.

  Attributes:
    tokens_per_word: words are what white space separates.
    unknown_share: share of tokens that are unknown.
    comments_per_second: encoded, on one thread.
  """

  tokens_per_word: float
  unknown_share: float
  comments_per_second: float


def coverage(tokenizer: Tokenizer, texts: Sequence[str]) -> Coverage:
  """Measures a vocabulary on texts, of which at least one must hold a word."""
  started = time.perf_counter()
  tokens = np.concatenate(tokenizer.encode_batch(texts))
  seconds = time.perf_counter() - started
  return Coverage(
    tokens_per_word=len(tokens) / sum(len(text.split()) for text in texts),
    unknown_share=float(np.mean(tokens == tokenizer.unk_id)),
    comments_per_second=len(texts) / seconds,
  )
