"""The texts of comment trees, without their trees: what a vocabulary is trained on."""

from __future__ import annotations

import dataclasses
import glob
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from commentree.tasks import readers
from commentree.tasks.config.preprocessing import CleaningConfig, TreeConfig
from commentree.tasks.dataset_files import built_dataset
from commentree.tasks.trees import cleaning, comment_tree, copied_quotations
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

if TYPE_CHECKING:
  from commentree.tasks.vocabulary.vocabularies import Tokenizer


def iter_texts(
  files: str | Sequence[str],
  tree_config: TreeConfig,
  cleaning_config: CleaningConfig,
  read_counts: ReadCounts,
  format_name: str | None = None,
) -> Iterator[str]:
  """Yields the cleaned text of every comment that has one, without its author.

  Behind it comes that of its translation, if it has one.

  Args:
    files: a file, a glob, a folder, or several of those. Of folders that
      `commentree build` made, the train split is read, before all other files.
    tree_config: what to do with deleted comments and the like.
    cleaning_config: what to clean.
    read_counts: counts what became of every comment.
    format_name: of the files; None to tell it from each.
  """
  built, others = _split_built([files] if isinstance(files, str) else files)
  for folder in built:
    for tree in built_dataset.BuiltDataset(folder).trees("train"):
      read_counts.trees[comment_tree.KEPT] += 1
      read_counts.comments[comment_tree.KEPT] += len(tree.comments) - 1
      yield from _texts(tree, cleaning_config)
  if others:
    for tree in readers.iter_trees(others, tree_config, read_counts, format_name):
      yield from _texts(tree, cleaning_config)


def _split_built(paths: Sequence[str]) -> tuple[list[epath.Path], list[str]]:
  """The built datasets among paths, and the others; a glob may match datasets."""
  built: list[epath.Path] = []
  others: list[str] = []
  for path in paths:
    home = os.path.expanduser(path)
    matches = sorted(glob.glob(home)) if glob.has_magic(home) else [path]
    folders = {match: built_dataset.version_folder(match) for match in matches}
    if not any(folders.values()):
      others.append(path)
      continue
    built += [folder for folder in folders.values() if folder is not None]
    others += [match for match, folder in folders.items() if folder is None]
  return built, others


def _texts(tree: CommentTree, config: CleaningConfig) -> Iterator[str]:
  """Yields the cleaned texts of a tree, each with its translation behind it."""
  clean = copied_quotations.clean_tree(tree, config)
  for comment, (text, *_) in zip(tree.comments, clean):
    if text:
      yield text
    translation = comment.translation
    if translation and (translated := cleaning.clean_text(translation.text, config)):
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
