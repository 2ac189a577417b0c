"""Encoded texts, end to end: taken apart, and rid of what stands for mere spaces."""

from __future__ import annotations

import functools
import itertools
import sys

import numpy as np

from commentree.tasks.vocabulary.backend import Encoded, TokenizerBackend


def strip_marker_spaces(encoder: TokenizerBackend, encoded: Encoded) -> Encoded:
  """Leaves out the token of a lone space in front of a marker.

  It says nothing and would be masked like a word.
  """
  ids, lengths, offsets = encoded
  if encoder.space_id is None:
    return encoded
  kept = np.ones(len(ids), bool)
  # Across the end of a text nothing goes wrong: no text ends in a lone space.
  kept[:-1] = ~(encoder.is_marker[ids[1:]] & (ids[:-1] == encoder.space_id))
  ends = np.cumsum(lengths)
  kept_ends = np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], ends])]
  return Encoded(
    ids[kept], np.diff(kept_ends), None if offsets is None else offsets[kept]
  )


def split(encoded: Encoded) -> list[np.ndarray]:
  """Token ids of each text."""
  ends = np.concatenate([[0], np.cumsum(encoded.lengths)]).tolist()
  return [encoded.ids[i:j] for i, j in itertools.pairwise(ends)]


def without_spaces(text: str, offsets: np.ndarray) -> np.ndarray:
  """Moves the start of each token behind the white space at its front."""
  characters = np.frombuffer(f"{text}|".encode("utf-32-le", "surrogatepass"), "<u4")
  is_space = _is_white_space()
  starts, ends = offsets[:, 0].copy(), offsets[:, 1]
  while (at_space := (starts < ends) & is_space[characters[starts]]).any():
    starts += at_space
  return np.stack([starts, ends], axis=1)


@functools.cache
def _is_white_space() -> np.ndarray:
  """Whether a code point is white space, bool [code points]."""
  return np.array([chr(i).isspace() for i in range(sys.maxunicode + 1)])
