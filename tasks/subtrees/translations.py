"""Languages of comments, and translations behind them, for `tlm`.

Source: Conneau and Lample, "Cross-lingual Language Model Pretraining" (2019), section
3.3: a text and its translation are read together, tokens of both are masked, and where
a word cannot be guessed, it may be found in the other language. Each token's vector has
its language's added, and positions begin anew in the translation (see `forest_arrays`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commentree.tasks.trees.comment_tree import Comment


def language_of(name: str | None, names: Sequence[str]) -> int:
  """Number of a language from 1; 0 for none, or one that is not among the names."""
  return names.index(name) + 1 if name in names else 0


def translation_of(comment: Comment, names: Sequence[str]) -> tuple[str, int] | None:
  """Text and language of a comment's translation into another of the languages."""
  translation = comment.translation
  if translation is None or not comment.text or translation.language not in names:
    return None
  language = language_of(translation.language, names)
  if language == language_of(comment.language, names):
    return None  # nothing would tell where it begins
  return translation.text, language


def share(own: int, other: int, limit: int) -> tuple[int, int]:
  """Tokens to keep of a comment and its translation, as much of one as of the other."""
  if own + other <= limit:
    return own, other
  kept = min(max(round(limit * own / (own + other)), 1), limit - 1)
  return kept, limit - kept


def append(values: np.ndarray, kept: int, more: int, value: int) -> np.ndarray:
  """The first of a comment's values, and behind them one for its translation's."""
  return np.append(values[:kept], np.full(more, value, np.int32))
