"""Numbers of comments, as subtrees carry them: the bits of float32 in int32.

All that a subtree holds is int32, on disk and in SeqIO's caches; numbers are so, bit by
bit, and NaN where a comment has none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from commentree.tasks.config.preprocessing import CommentNumbersConfig
  from commentree.tasks.trees.comment_tree import Comment

_LARGEST = float(np.finfo(np.float32).max)


def to_bits(numbers: np.ndarray) -> np.ndarray:
  """Numbers as a subtree has them, int32."""
  return np.ascontiguousarray(numbers, np.float32).view(np.int32)


def from_bits(bits: np.ndarray) -> np.ndarray:
  """The inverse of `to_bits`, float32."""
  return np.ascontiguousarray(bits, np.int32).view(np.float32)


def number_of(comment: Comment, config: CommentNumbersConfig) -> float | None:
  """The transformed number of a comment; None if the source has nothing there.

  NaN if what it has there is no number, or none that float32 holds.
  """
  given = comment.score if config.source == "score" else comment.label
  return None if given is None else config.transformed(read(given))


def read(given: str | int) -> float:
  """A label or score as a number; NaN if it is none, or none that float32 holds."""
  try:
    # Python would take 1_000 for a number.
    number = math.nan if "_" in str(given) else float(given)
  except ValueError:
    return math.nan
  return number if abs(number) <= _LARGEST else math.nan
