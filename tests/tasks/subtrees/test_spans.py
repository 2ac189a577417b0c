"""Labelled parts of comments: through cleaning, and on to tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.tasks.config.preprocessing import CleaningConfig
from commentree.tasks.subtrees import spans
from commentree.tasks.trees import cleaning
from commentree.tasks.trees.comment_tree import Span

CONFIG = CleaningConfig()


def carried(text, *parts, config=CONFIG):
  """The parts of a text, each found once in it, as parts of the cleaned text."""
  given_ = [
    Span(text.index(p), text.index(p) + len(p), str(i)) for i, p in enumerate(parts)
  ]
  clean = cleaning.clean_text(text, config)
  found = spans.through_cleaning(text, clean, given_, config)
  return [(clean[span.start : span.end], span.label) for span in found]


@pytest.mark.parametrize(
  ("text", "part", "expected"),
  [
    ("I think  it's\n\nso. Yes.", "it's\n\nso.", "it's so."),
    ("a &amp; b &gt; c is false", "b &gt; c", "b > c"),
    ("see http://x.org/a.b, it is", "see http://x.org/a.b", "see <url>"),
    ("see http://x.org/a.b, it is", "it is", "it is"),
    ("no. [the law](http://x.org) says so", "the law", "the law"),
    (
      "no. [the law](http://x.org) says so",
      "[the law](http://x.org) says",
      "the law <url> says",
    ),
    ("> you said this\n\nI say that", "you said this", "you said this"),
    (
      "> you said this\n\nI say that",
      "> you said this\n\nI say",
      "you said this <endq> I say",
    ),
    ("> you said this\n\nI say that", "I say that", "I say that"),
    ("so it was[1] and^2 so", "so it was[1] and^2", "so it was and"),
    ("zero\u200bwidth  and more", "width  and", "width and"),
    (" \n leading and trailing \n", " \n leading", "leading"),
    ("a <b and c", "<b and", "< b and"),
    ("midword", "dwo", "dwo"),
  ],
)
def test_a_span_holds_the_same_words_after_cleaning(text, part, expected):
  assert carried(text, part) == [(expected, "0")]


def test_spans_may_touch_overlap_and_nest():
  text = "one  two\nthree four"
  assert carried(text, text, "one  two", "two\nthree", "three four") == [
    ("one two three four", "0"),
    ("one two", "1"),
    ("two three", "2"),
    ("three four", "3"),
  ]


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("see http://example.org/here now", "example"),
    ("[deleted]", "deleted"),
    ("so it was[1] here", "[1]"),
    ("two words", " "),
    ("with \U000f0000 in it", "with"),
  ],
)
def test_a_span_that_cleaning_cuts_or_takes_away_is_lost(text, part):
  assert carried(text, part) == []


def test_a_lost_span_costs_no_other():
  text = "see http://example.org/here now"
  assert carried(text, "example", "now", "see") == [("now", "1"), ("see", "2")]


@given(
  text=st.text(st.sampled_from("ab.<>&[]() \n\u200b\u3000^1_é:/wgt;'")),
  places=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4),
)
def test_spans_come_back_inside_of_the_text_with_their_own_letters(text, places):
  clean = cleaning.clean_text(text, CONFIG)
  wanted = [Span(a, b, str(i)) for i, (a, b) in enumerate(places)]
  for span in spans.through_cleaning(text, clean, wanted, CONFIG):
    assert 0 <= span.start < span.end <= len(clean)
    assert not clean[span.start].isspace()
    assert not clean[span.end - 1].isspace()
    source = wanted[int(span.label)]
    letters = [c for c in text[source.start : source.end] if c in "abé"]
    kept = [c for c in clean[span.start : span.end] if c in "abé"]
    assert "".join(kept) in "".join(letters) or "&" in text or "<" in clean


NAMES = ("claim", "premise")
# Tokens of "We are right, for all say so": words, and the comma apart.
OFFSETS = np.array(
  [[0, 2], [3, 6], [7, 12], [12, 13], [14, 17], [18, 21], [22, 25], [26, 28]], np.int32
)


def labels(*parts):
  return spans.label_tokens(OFFSETS, [Span(*part) for part in parts], NAMES).tolist()


def test_a_span_s_first_token_begins_it_and_the_others_continue_it():
  assert labels((0, 12, "claim"), (18, 28, "premise")) == [1, 2, 2, 0, 0, 3, 4, 4]


def test_spans_that_touch_begin_apart():
  assert labels((0, 6, "claim"), (7, 12, "claim")) == [1, 2, 1, 0, 0, 0, 0, 0]


def test_a_token_that_a_span_cuts_is_in_it():
  assert labels((4, 8, "claim")) == [0, 1, 2, 0, 0, 0, 0, 0]


def test_labels_that_are_not_named_count_for_nothing():
  assert labels((0, 12, "claim"), (3, 6, "rhetoric")) == [1, 2, 2, 0, 0, 0, 0, 0]


def test_the_innermost_span_has_the_token_and_the_outer_begins_where_it_can():
  inner = (0, 6, "premise")
  for order in ([(0, 28, "claim"), inner], [inner, (0, 28, "claim")]):
    assert labels(*order) == [3, 4, 1, 2, 2, 2, 2, 2]
  assert labels((0, 28, "claim"), (7, 12, "premise")) == [1, 2, 3, 2, 2, 2, 2, 2]


def test_a_token_of_no_character_goes_with_those_around_it():
  offsets = np.array([[0, 2], [3, 3], [3, 5]], np.int32)
  (labelled,) = [spans.label_tokens(offsets, [Span(0, 5, "claim")], NAMES).tolist()]
  assert labelled == [1, 2, 2]
  assert spans.label_tokens(offsets, [Span(3, 5, "claim")], NAMES).tolist() == [0, 0, 1]


def test_no_tokens_or_spans_have_no_labels():
  assert labels() == [0] * 8
  assert (
    len(spans.label_tokens(np.zeros((0, 2), np.int32), [Span(0, 1, "claim")], NAMES))
    == 0
  )
