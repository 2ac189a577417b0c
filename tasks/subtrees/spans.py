"""Parts of texts, by code points: through cleaning, and on to tokens.

A span's boundaries are marked in the text as written, by characters that mean
nothing, and sought again in the text as cleaned. Only the characters in front of each
are counted there, white space aside, so the cleaned text is the same with spans or
without. A boundary inside of what cleaning replaces, such as an address, cannot be
found again; its span is given up.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

import numpy as np

from commentree.tasks.config.preprocessing import CleaningConfig
from commentree.tasks.trees import cleaning, copied_quotations
from commentree.tasks.trees.comment_tree import Span
from commentree.tasks.trees.copied_quotations import Cut

# Supplementary private use: in no alphabet, and no pattern of `cleaning` looks for it.
_FIRST_SENTINEL, _SENTINELS = 0xF0000, 0xFFFE
_WORDS = _SENTINELS // 2
_WORD = re.compile(r"\S+")
_MOST_CLEANINGS = 256  # of a text, for the sake of its spans
_SENTINEL = re.compile("([\U000f0000-\U000ffffd])")
# What `cleaning` takes off a quoted line.
_QUOTE_SIGNS = re.compile(r"(?:[ \t]*+(?:>|&gt;)(?!!))++[ \t]*+")


def through_cleaning(
  text: str,
  clean: str,
  spans: Sequence[Span],
  config: CleaningConfig,
  cuts: Sequence[Cut] = (),
) -> list[Span]:
  """Returns the spans of a text as spans of that text cleaned.

  Args:
    text: as written.
    clean: `cleaning.clean_text(text, config)`.
    spans: of `text`; may overlap.
    config: the steps of cleaning.
    cuts: what was taken out of `clean` then.

  Returns:
    Spans of `clean` without what the cuts took out, in the order given; those that
    cleaning cut or took away are missing.
  """
  if not spans or max(text, default="") >= chr(_FIRST_SENTINEL):
    return []
  found = _carry(text, clean, spans, config)
  if found is None:
    found = _carry_by_halves(text, clean, _halves(spans), config)
  return copied_quotations.after_cuts(found or (), cuts)


def words_through_cleaning(
  text: str, clean: str, config: CleaningConfig, cuts: Sequence[Cut] = ()
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
  """Returns where the words of a text are in it, and where in the text cleaned.

  Args:
    text: as written.
    clean: `cleaning.clean_text(text, config)`.
    config: the steps of cleaning.
    cuts: what was taken out of `clean` then.

  Returns:
    Pairs of starts and ends, in order; without the words that cleaning took away, or
    replaced together with others.
  """
  if max(text, default="") >= chr(_FIRST_SENTINEL):
    return []
  found = [Span(*word.span(), str(i)) for i, word in enumerate(_WORD.finditer(text))]
  words = [
    Span(start, end, word.label)
    for word, (start, end) in zip(found, _without_quote_signs(text, found))
  ]
  together = [words[i : i + _WORDS] for i in range(0, len(words), _WORDS)]
  carried = copied_quotations.after_cuts(
    _carry_by_halves(text, clean, together, config), cuts
  )
  of_number = {int(word.label): word for word in words}
  return sorted(
    (of_number[int(span.label)][:2], (span.start, span.end)) for span in carried
  )


def _halves(spans: Sequence[Span]) -> list[Sequence[Span]]:
  middle = len(spans) // 2
  return [half for half in (spans[:middle], spans[middle:]) if half]


def _carry_by_halves(
  text: str, clean: str, groups: Sequence[Sequence[Span]], config: CleaningConfig
) -> list[Span]:
  """Carries groups of spans, and halves of those that do not pass together.

  The order stays. One boundary at a bad place must not cost the others theirs. The text
  is cleaned `_MOST_CLEANINGS` times at most; spans still waiting then are left out.
  """
  waiting = list(groups[::-1])
  carried: list[Span] = []
  for _ in range(_MOST_CLEANINGS):
    if not waiting:
      break
    together = waiting.pop()
    found = _carry(text, clean, together, config)
    if found is not None:
      carried += found
    elif len(together) > 1:
      waiting += _halves(together)[::-1]
  return carried


def _carry(
  text: str, clean: str, spans: Sequence[Span], config: CleaningConfig
) -> list[Span] | None:
  """`through_cleaning` for all spans or none."""
  trimmed = _without_quote_signs(text, spans)
  places = [place for start, end in trimmed for place in (start, end)]
  if len(places) > _SENTINELS:
    return None
  marked = cleaning.clean_text(_insert(text, places), config)
  counted = _count(marked, clean, len(places))
  if counted is None:
    return None
  visible = [i for i, character in enumerate(clean) if not character.isspace()]
  carried = []
  for span, first, behind in zip(spans, counted[::2], counted[1::2]):
    if first < behind:
      carried.append(Span(visible[first], visible[behind - 1] + 1, span.label))
  return carried


def _without_quote_signs(text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
  """Starts and ends without white space or quotation signs around."""
  lines = [0, *(i + 1 for i, character in enumerate(text) if character == "\n")]
  signs_end: dict[int, int] = {}  # of the quotation signs that a line begins with
  trimmed = []
  for span in spans:
    start, end = max(0, span.start), min(len(text), span.end)
    while start < end and text[start].isspace():
      start += 1
    while start < end and text[end - 1].isspace():
      end -= 1
    line = lines[bisect.bisect_right(lines, start) - 1]
    if line not in signs_end:
      signs = _QUOTE_SIGNS.match(text, line)
      signs_end[line] = line if signs is None else signs.end()
    if start < signs_end[line] <= end:
      start = signs_end[line]
    trimmed.append((start, max(start, end)))
  return trimmed


def _insert(text: str, places: Sequence[int]) -> str:
  """Puts the k-th sentinel in front of the character at the k-th place.

  Each is a word of its own: an address would swallow it otherwise.
  """
  parts = []
  done = 0
  for number in sorted(range(len(places)), key=places.__getitem__):
    parts += [text[done : places[number]], f" {chr(_FIRST_SENTINEL + number)} "]
    done = places[number]
  return "".join([*parts, text[done:]])


def _count(marked: str, clean: str, sentinels: int) -> list[int] | None:
  """Visible characters in front of each sentinel.

  None if one is lost, or the characters are not those of `clean`.
  """
  parts = _SENTINEL.split("".join(marked.split()))
  if "".join(parts[::2]) != "".join(clean.split()):
    return None
  counts = [-1] * sentinels
  before = 0
  for part, sentinel in zip(parts[::2], parts[1::2]):
    before += len(part)
    number = ord(sentinel) - _FIRST_SENTINEL
    if number >= sentinels or counts[number] >= 0:
      return None
    counts[number] = before
  return None if -1 in counts else counts


def owners(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
  """Which span each token is in: its index, or -1, int32 [n].

  A token is in a span if they share a character. Where spans overlap, the shorter one
  has the token, so that of nested ones the innermost does.

  Args:
    offsets: first code point of each token and the one behind its last. [n, 2]
    spans: likewise.
  """
  owner = np.full(len(offsets), -1, np.int32)
  starts, ends = offsets[:, 0], offsets[:, 1]
  order = sorted(range(len(spans)), key=lambda i: spans[i][0] - spans[i][1])
  for number in order:
    start, end = spans[number]
    owner[(starts < end) & (ends > start)] = number
  return owner


def label_tokens(
  offsets: np.ndarray, spans: Sequence[Span], names: Sequence[str]
) -> np.ndarray:
  """Labels of tokens, int32 [n]: see `LabelsConfig`.

  The first token that a span has, though an inner span may have those before it, is
  its beginning.

  Args:
    offsets: first code point of each token and the one behind its last. [n, 2]
    spans: of the same text.
    names: labels kept; spans with others count as if they were not there.
  """
  kept = [span for span in spans if span.label in names]
  owner = owners(offsets, [(span.start, span.end) for span in kept])
  numbers = np.array([names.index(span.label) for span in kept] + [0], np.int32)
  labels = np.where(owner >= 0, 2 * numbers[owner] + 2, 0).astype(np.int32)
  labelled, first = np.unique(owner, return_index=True)
  labels[first[labelled >= 0]] -= 1
  return labels
