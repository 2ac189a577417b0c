"""Runs of words that a comment shares with one above it, taken out of its text."""

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import CleaningConfig, TreeConfig
from commentree.tasks.sources import vocabulary_training_text
from commentree.tasks.subtrees import spans
from commentree.tasks.trees import cleaning, comment_tree, copied_quotations
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees

FOUR = CleaningConfig(copied_quotations=4)
# With `quotes` off nothing stands in place of what is taken out.
BARE = dataclasses.replace(FOUR, quotes=False)


def tree_of(*texts, parents=None):
  parents = parents or range(-1, len(texts) - 1)
  return CommentTree(
    "t",
    [
      Comment(str(i), p, "ann", text, i)
      for i, (p, text) in enumerate(zip(parents, texts))
    ],
  )


def cleaned(*texts, parents=None, config=FOUR):
  found = copied_quotations.clean_tree(tree_of(*texts, parents=parents), config)
  return [clean.text for clean in found]


@pytest.mark.parametrize(
  ("reply", "expected", "bare"),
  [
    ("a b c is less", "a b c is less", "a b c is less"),
    ("Well: a b c d. No", "Well: <startq> <endq> No", "Well: No"),
    ("no A, b - C 'd' no", "no <startq> <endq> no", "no no"),
    ("so b c d e f", "so <startq> <endq>", "so"),
    ("a b c d x c d e f", "<startq> <endq> x <startq> <endq>", "x"),
    ("> a b c d\n\nno", "<startq> <endq> no", "> no"),
    ("> so a b c d, so\n\nno", "<startq> so so <endq> no", "> so so no"),
    ("> so a b\n\nc d so", "<startq> so <endq> <startq> <endq> so", "> so so"),
    ("a b http://a.b c d no", "<startq> <endq> no", "no"),
    ("a b (http://a.b) c d no", "<startq> <endq> no", "no"),
    ("a b x c d", "a b x c d", "a b x c d"),
  ],
)
def test_a_run_that_a_comment_above_has_gives_way_to_an_empty_quotation(
  reply, expected, bare
):
  post = "Say: A b c, d e; f!"
  assert cleaned(post, reply) == [post, expected]
  assert cleaned(post, reply, config=BARE)[1] == bare


def test_all_ancestors_count_and_no_other_comment():
  texts = ["a b c d", "e f g h", "so a b c d", "e f g h so", "a b c d e f g h"]
  parents = [-1, 0, 1, 0, 2]
  assert cleaned(*texts, parents=parents, config=BARE) == [
    "a b c d",
    "e f g h",
    "so",
    "e f g h so",
    "",
  ]


def test_what_is_quoted_from_comment_to_comment_is_found_each_time():
  texts = cleaned("a b c d", "> a b c d\n\nno way", "> c d\n\n> no way\n\nyes")
  assert texts[1:] == ["<startq> <endq> no way", "<startq> <endq> yes"]


def test_addresses_and_markers_are_no_words():
  post = "see http://a.b http://c.d http://e.f http://g.h > x"
  assert cleaned(post, post.upper())[1] == cleaning.clean_text(post.upper(), FOUR)


def test_nothing_is_taken_out_unless_asked_for():
  assert cleaned("a b c d", "a b c d", config=CleaningConfig())[1] == "a b c d"


@st.composite
def threads(draw):
  size = draw(st.integers(1, 8))
  parents = [-1, *(draw(st.integers(0, i)) for i in range(size - 1))]
  words = st.lists(st.sampled_from(["a", "B", "b,", "c", "-"]), max_size=12)
  return parents, [draw(words) for _ in range(size)]


@given(threads(), st.integers(1, 4))
def test_the_words_that_stay_are_those_that_pairs_of_comments_leave(thread, length):
  parents, texts = thread

  def plain(words):
    return [w.strip(",-").lower() for w in words if w.strip(",-")]

  expected = []
  for index, own in enumerate(map(plain, texts)):
    keep = [True] * len(own)
    above = parents[index]
    while above >= 0:
      other = plain(texts[above])
      for i in range(len(own) - length + 1):
        for j in range(len(other) - length + 1):
          if own[i : i + length] == other[j : j + length]:
            keep[i : i + length] = [False] * length
      above = parents[above]
    expected.append([word for word, kept in zip(own, keep) if kept])
  config = CleaningConfig(quotes=False, copied_quotations=length)
  found = cleaned(*map(" ".join, texts), parents=parents, config=config)
  assert [plain(text.split()) for text in found] == expected


@pytest.mark.long
@given(threads(), st.integers(1, 4), st.booleans())
def test_spans_hold_the_same_words_or_are_lost(thread, length, quotes):
  parents, texts = thread
  config = CleaningConfig(quotes=quotes, copied_quotations=length)
  tree = tree_of(*map("  ".join, texts), parents=parents)
  for written, clean in zip(
    tree.comments, copied_quotations.clean_tree(tree, config), strict=True
  ):
    text = written.text
    words = spans.words_through_cleaning(text, clean.whole, config, clean.cuts)
    assert clean.text.replace("<startq> <endq>", "").split() == [
      clean.text[start:end] for _, (start, end) in words
    ]
    for (start, end), (first, last) in words:
      assert text[start:end] == clean.text[first:last]
      span = Span(start, end, "claim")
      assert spans.through_cleaning(text, clean.whole, [span], config, clean.cuts) == [
        Span(first, last, "claim")
      ]


def test_a_span_around_a_run_stays_and_one_that_ends_in_it_is_lost():
  text = "so a b c d it is"
  clean = copied_quotations.clean_tree(tree_of("a b c d", text), FOUR)[1]
  around, into, behind = (
    Span(text.index(part), text.index(part) + len(part), part)
    for part in ("so a b c d it", "so a b", "it is")
  )
  found = spans.through_cleaning(
    text, clean.whole, [around, into, behind], FOUR, clean.cuts
  )
  assert [clean.text[span.start : span.end] for span in found] == [
    "so <startq> <endq> it",
    "it is",
  ]


def test_a_vocabulary_is_trained_on_what_stays(tmp_path):
  path = write_trees(
    tmp_path,
    record("t", comment("a", "t", "a b c d"), comment("b", "a", "so a b c d")),
  )
  texts = vocabulary_training_text.iter_texts(
    str(path), TreeConfig(), BARE, comment_tree.ReadCounts()
  )
  assert list(texts) == ["title", "a b c d", "so"]


@pytest.mark.parametrize("value", [-1, 101, 2.5, True])
def test_lengths_that_cannot_be_are_refused(value):
  with pytest.raises(UserError, match=r"CleaningConfig\.copied_quotations"):
    CleaningConfig(copied_quotations=value)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["alike", "all different"])
def test_time_grows_with_a_threads_depth_and_not_with_its_square(kind):
  def seconds(depth):
    texts = (
      " ".join(f"w{j if kind == 'alike' else 20 * i + j}" for j in range(20))
      for i in range(depth)
    )
    tree = tree_of(*texts)
    start = time.thread_time()
    copied_quotations.clean_tree(tree, FOUR)
    return time.thread_time() - start

  short = max(0.005, min(seconds(1_000) for _ in range(3)))
  assert min(seconds(10_000) for _ in range(2)) < 30 * short
