"""Words that a comment copied from a comment above it, taken out of its text.

Who answers a comment often quotes it, with `>` in front or without. A model that can
see the comment above predicts such words by copying them, which tells nothing of what
it understood. `CleaningConfig.copied_quotations` takes them out: every run of so many
words or more that also stands in an ancestor's text, be it a parent, the post or any
between. Siblings' texts do not count, nor do translations.

An empty quotation, `<startq> <endq>`, stands in place of a run; nothing does inside a
quotation, or if `CleaningConfig.quotes` is off. Words are what white space separates,
compared without upper case and punctuation; markers are no words. Ancestors' texts are
taken as they were before anything was taken out of them, so that what is quoted from
comment to comment is found each time.

Time is linear in the tree's text, times the length of a run: all ancestors count, and
each comment's runs are added and taken away once, on a walk down the tree.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from commentree.tasks.config.preprocessing import CleaningConfig
from commentree.tasks.trees import cleaning
from commentree.tasks.trees.comment_tree import CommentTree, Span
from commentree.tasks.trees.markers import DELETED, QUOTE_END, QUOTE_START, URL

# What `clean_tree` counts.
WORDS, COPIED_WORDS, COPIED = "words", "copied words", "copied quotations"

_EMPTY_QUOTATION = f"{QUOTE_START} {QUOTE_END}"
_WORD = re.compile(r"\S+")
_MARKER = re.compile("|".join((URL, DELETED, QUOTE_START, QUOTE_END)))
# All but white space, letters, digits and supplementary private use, which stands for
# masks and boundaries in `spans` and `commentree infer`.
_PUNCTUATION = re.compile("(?:[^\\w\\s\U000f0000-\U000ffffd]|_)+")
_ASCII_PUNCTUATION = {
  number: None for number in range(128) if _PUNCTUATION.match(chr(number))
}


class Cut(NamedTuple):
  """A part of a text that gives way to another: `text[start:end]`, by code points."""

  start: int
  end: int
  replacement: str


class CleanText(NamedTuple):
  """A comment's text as a tokenizer is given it.

  Attributes:
    text: cleaned, copied words taken out.
    whole: cleaned, with them: by `cleaning.clean_text`.
    cuts: where they were in that, in order.
  """

  text: str
  whole: str
  cuts: tuple[Cut, ...] = ()


def clean_tree(
  tree: CommentTree,
  config: CleaningConfig,
  counts: collections.Counter[str] | None = None,
) -> list[CleanText]:
  """Cleans the texts of a tree's comments, in their order.

  Args:
    tree: the tree, whole: of what is missing in it nothing is found.
    config: the steps to take.
    counts: if given, gets `WORDS`, `COPIED_WORDS` and `COPIED` added to it, unless
      `config.copied_quotations` is off.
  """
  texts = [cleaning.clean_text(comment.text, config) for comment in tree.comments]
  if not config.copied_quotations:
    return [CleanText(text, text) for text in texts]
  found: collections.Counter[str] = collections.Counter() if counts is None else counts
  words = [_without_punctuation(text).split() for text in texts]
  cleaned = []
  for text, copied in zip(
    texts, _copied(words, tree.children(), config.copied_quotations)
  ):
    cuts = _cuts(text, copied, quotes=config.quotes) if any(copied) else ()
    found[WORDS] += len(copied)
    found[COPIED_WORDS] += sum(copied)
    found[COPIED] += len(cuts)
    cleaned.append(CleanText(_without(text, cuts), text, cuts))
  return cleaned


def after_cuts(spans: Sequence[Span], cuts: Sequence[Cut]) -> list[Span]:
  """Where spans of a text are once parts of the text gave way to others.

  Args:
    spans: of the text, none empty.
    cuts: those parts, in order.

  Returns:
    The spans that neither begin nor end in such a part, in the order given.
  """
  if not cuts:
    return list(spans)
  ends = [cut.end for cut in cuts]
  growth = (len(cut.replacement) - (cut.end - cut.start) for cut in cuts)
  shifts = list(itertools.accumulate(growth, initial=0))
  kept = []
  for span in spans:
    before = bisect.bisect_right(ends, span.start)
    within = bisect.bisect_left(ends, span.end)
    if any(
      cut.start <= span.start or cut.start < span.end <= cut.end
      for cut in (*cuts[before : before + 1], *cuts[within : within + 1])
    ):
      continue
    start, end = span.start + shifts[before], span.end + shifts[within]
    kept.append(span._replace(start=start, end=end))
  return kept


def _without_punctuation(text: str) -> str:
  """A text's words as they are compared, with white space where the text has it."""
  if "<" in text:
    text = _MARKER.sub("", text)
  # Most of it is ASCII, which goes faster so.
  text = text.casefold().translate(_ASCII_PUNCTUATION)
  return text if text.isascii() else _PUNCTUATION.sub("", text)


def _copied(
  words: Sequence[Sequence[str]], children: Sequence[Sequence[int]], length: int
) -> list[bytearray]:
  """Which words of each comment stand in a run that an ancestor has, too.

  Args:
    words: of each comment.
    children: of each comment; comment 0 is above all.
    length: words of the shortest run.
  """
  flags = [bytearray(len(own)) for own in words]
  above: set[tuple[str, ...]] = set()  # runs in the ancestors of where the walk is
  added: dict[int, set[tuple[str, ...]]] = {}
  waiting = [0]
  while waiting:
    index = waiting[-1]
    if index in added:
      above -= added.pop(index)
      waiting.pop()
      continue
    own = words[index]
    in_order = list(zip(*(own[first:] for first in range(length))))
    runs = set(in_order)  # sets hash each run once
    if copied := runs & above:
      done = 0
      for place, run in enumerate(in_order):
        if run in copied:
          first, done = max(done, place), place + length
          flags[index][first:done] = b"\1" * (done - first)
    if not children[index]:
      waiting.pop()
      continue
    added[index] = runs - copied
    above |= added[index]
    waiting += children[index]
  return flags


def _cuts(text: str, copied: Sequence[int], *, quotes: bool) -> tuple[Cut, ...]:
  """The parts of a text that copied words make up, with punctuation between them.

  Args:
    text: cleaned.
    copied: which of its words are.
    quotes: whether quotations are marked.
  """
  cuts: list[Cut] = []
  flags = iter(copied)
  in_quotation = False
  run: list[re.Match[str]] = []

  def close():
    if not run:
      return
    start, end = run[0].start(), run[-1].end()
    run.clear()
    if quotes and not in_quotation:
      cuts.append(Cut(start, end, _EMPTY_QUOTATION))
      return
    # White space goes with it: that behind, or at the text's end that in front.
    while end < len(text) and text[end].isspace():
      end += 1
    while end == len(text) and start and text[start - 1].isspace():
      start -= 1
    cuts.append(Cut(start, end, ""))

  for word in _WORD.finditer(text):
    if word[0] in (QUOTE_START, QUOTE_END):
      close()
      in_quotation = word[0] == QUOTE_START
    elif _without_punctuation(word[0]):
      if next(flags):
        run.append(word)
      else:
        close()
  close()
  return tuple(cuts)


def _without(text: str, cuts: Sequence[Cut]) -> str:
  parts = []
  done = 0
  for cut in cuts:
    parts += [text[done : cut.start], cut.replacement]
    done = cut.end
  return "".join([*parts, text[done:]])
