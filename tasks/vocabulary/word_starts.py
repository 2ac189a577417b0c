"""Where words begin, told from the pieces of a vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from commentree.tasks.vocabulary.backend import WORD_START

# Inside of words: don't, a's, snake_case.
_IN_WORDS = frozenset("'\u2019_")


def starts_word(
  pieces: Sequence[str], continues: str | None = None
) -> np.ndarray | None:
  """Which pieces begin a word, bool [pieces]; None if they do not tell.

  Punctuation begins one: `however` and the comma behind it are two words, as in the
  code of ALBERT (Lan et al., 2020).

  Args:
    pieces: by id, their names (`Encoder.id_to_piece`).
    continues: what stands in front of a piece that continues a word, as WordPiece's
      `##`; None where a space in front tells that one begins.
  """
  if continues is not None:
    return np.array([not piece.startswith(continues) for piece in pieces])
  if not any(piece.startswith(WORD_START) for piece in pieces):
    return None
  return np.array(
    [
      piece.startswith(WORD_START) or piece[:1].isspace() or _is_punctuation(piece)
      for piece in pieces
    ]
  )


def _is_punctuation(piece: str) -> bool:
  return bool(piece) and all(
    unicodedata.category(character)[0] in "PS" and character not in _IN_WORDS
    for character in piece
  )
