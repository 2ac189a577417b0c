"""Discourse markers: words and phrases by which texts hang together.

To guess `therefore` or `on the other hand`, a model must understand how comments
relate; `masking` can prefer them. Here they are found in texts.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Sequence

from commentree.errors import UserError

ENGLISH = "english"

_WORD = re.compile(r"\w+")
_APOSTROPHE = re.compile("['\u2019]")


def read_phrases(file: str | os.PathLike[str]) -> tuple[str, ...]:
  """Reads a list of phrases, one a line; lines that begin with `#` are comments.

  Args:
    file: a text file in UTF-8, or 'english' for the list that comes with commentree.

  Returns:
    Distinct phrases in lower case, single spaces between words, as in the file.

  Raises:
    UserError: if it cannot be read, or holds none.
  """
  where = os.fspath(file)
  path = pathlib.Path(where)
  if where == ENGLISH:
    path = pathlib.Path(__file__).parent / "discourse_markers.txt"
  try:
    lines = path.read_text("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "is not text in UTF-8"
    raise UserError(
      f"DiscourseMarkersConfig.file = {where!r}: cannot be read ({reason}); give a file"
      f" of phrases, one a line, or {ENGLISH!r}"
    ) from error
  phrases = [" ".join(line.lower().split()) for line in lines]
  phrases = [p for p in phrases if _WORD.search(p) and not p.startswith("#")]
  if not phrases:
    raise UserError(
      f"DiscourseMarkersConfig.file = {where!r}: holds no phrases; write one a line"
    )
  return tuple(dict.fromkeys(phrases))


def fingerprint(phrases: Sequence[str]) -> str:
  """Names a list of phrases: equal lists, equal names."""
  return hashlib.blake2b("\n".join(phrases).encode(), digest_size=8).hexdigest()


class PhraseFinder:
  """Finds phrases at word boundaries, in upper or lower case, longest first."""

  def __init__(self, phrases: Sequence[str]):
    """Takes the phrases of `read_phrases`."""
    by_first_word: dict[str, list[str]] = {}
    for phrase in phrases:
      if word := _WORD.search(phrase):
        by_first_word.setdefault(word[0], []).append(phrase[word.start() :])
    self._patterns = {word: _any_of(some) for word, some in by_first_word.items()}

  def __call__(self, text: str) -> list[tuple[int, int]]:
    """Returns start and end of each occurrence, in order; none overlap."""
    found = []
    behind = 0
    lower = text.lower()
    if len(lower) != len(text):  # a letter that has no one lower-case letter
      lower = "".join(c if len(c.lower()) > 1 else c.lower() for c in text)
    for word in _WORD.finditer(lower):
      pattern = self._patterns.get(word[0])
      if pattern is None or word.start() < behind:
        continue
      if phrase := pattern.match(lower, word.start()):
        behind = phrase.end()
        found.append(phrase.span())
    return found


def _any_of(phrases: Sequence[str]) -> re.Pattern[str]:
  """Matches the longest of the phrases that a text continues with."""
  spelled = [
    r"\s+".join(
      "['\u2019]".join(re.escape(part) for part in _APOSTROPHE.split(word))
      for word in phrase.split()
    )
    + (r"(?!\w)" if phrase[-1].isalnum() else "")
    for phrase in sorted(phrases, key=len, reverse=True)
  ]
  return re.compile("|".join(spelled))
