"""Discourse markers: finding them, and masking that prefers them."""

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import DiscourseMarkersConfig, MaskingConfig
from commentree.tasks.objectives.masking import Masker, masked_counts
from commentree.tasks.subtrees import discourse
from commentree.tests.support.tasks.drawn_subtrees import (
  FIRST_WORD,
  MASK_ID,
  maskable,
  node_of,
  random_subtrees,
)


def find(text, *phrases):
  places = discourse.PhraseFinder(phrases)(text)
  return [text[start:end] for start, end in places]


def test_phrases_are_found_whatever_their_case_and_the_white_space_in_them():
  text = "However, on THE other\n  hand, it is so. however"
  found = find(text, "however", "on the other hand")
  assert found == ["However", "on THE other\n  hand", "however"]


def test_phrases_are_found_at_word_boundaries_alone():
  assert find("so soup also so-so so's also, _so so2", "so") == ["so", "so", "so", "so"]
  assert find("that isn’t, that's why that’s", "that's", "isn't") == [
    "isn’t",
    "that's",
    "that’s",
  ]


def test_the_longest_phrase_that_fits_is_taken_and_none_overlap():
  phrases = ("in", "in short", "in short order", "short order", "order of")
  assert find("in short order of in shorts", *phrases) == ["in short order", "in"]


def test_marks_in_phrases_are_no_patterns():
  assert find("e.g. this, eXg this, i.e. that", "e.g.", "i.e.") == ["e.g.", "i.e."]


def test_a_list_is_read_without_remarks_blanks_and_repetitions(tmp_path):
  path = tmp_path / "phrases.txt"
  path.write_text(
    "\ufeff# mine\n\nHowever\n On  the other hand \nhowever\n...\n", "utf-8"
  )
  assert discourse.read_phrases(path) == ("however", "on the other hand")


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe\x00"])
def test_a_list_that_holds_none_is_one_line_that_names_it(tmp_path, content):
  path = tmp_path / "phrases.txt"
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"DiscourseMarkersConfig.*phrases\.txt") as error:
    discourse.read_phrases(path)
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"none\.txt.*No such file"):
    discourse.read_phrases(tmp_path / "none.txt")


def test_the_list_that_comes_along_holds_what_one_expects():
  phrases = discourse.read_phrases("english")
  assert 150 < len(phrases) == len(set(phrases))
  assert {"however", "therefore", "for example", "on the other hand"} <= set(phrases)
  assert all(phrase == phrase.lower().strip() for phrase in phrases)


@pytest.mark.parametrize("settings", [{"share": 1.5}, {"file": 7}, {"file": ""}])
def test_settings_that_cannot_be_are_refused(settings):
  with pytest.raises(UserError, match="DiscourseMarkersConfig"):
    DiscourseMarkersConfig(**settings)


# Masking.


def with_phrases(subtrees, seed=0, density=0.3):
  """Subtrees in which runs of one to four tokens are phrases."""
  rng = np.random.default_rng(seed)
  annotated = []
  for subtree in subtrees:
    phrases = np.zeros(len(subtree["tokens"]), np.int32)
    ends = np.cumsum(subtree["lengths"])
    for start, end in zip(ends - subtree["lengths"], ends):
      place, number = start + 1, 0
      while place < end:
        size = int(rng.integers(1, 5))
        if rng.random() < density and place + size <= end:
          number += 1
          phrases[place : place + size] = number
          place += size
        place += 1
    annotated.append({**subtree, "phrases": phrases})
  return annotated


def masker(share, **settings):
  return Masker(MaskingConfig(**settings), MASK_ID, maskable(), share)


def counts(subtree, chosen):
  return np.bincount(node_of(subtree)[chosen], minlength=len(subtree["lengths"]))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_phrases_are_masked_whole_within_the_exact_budget(share):
  seen = 0
  for index, subtree in enumerate(with_phrases(random_subtrees(60))):
    masked = masker(share)(subtree, 1000, seed=1, epoch=0, index=index)
    chosen = masked["is_masked"] == 1
    words = counts(subtree, (subtree["tokens"] >= FIRST_WORD)) * subtree["is_target"]
    budget = masked_counts(words, 0.15)
    free = counts(
      subtree, (subtree["tokens"] >= FIRST_WORD) & (subtree["phrases"] == 0)
    )
    got = counts(subtree, chosen)
    assert (got <= budget).all()
    assert ((got > 0) == (budget > 0)).all()
    assert (got == budget)[free >= budget].all()
    for node in range(len(words)):
      for phrase in range(1, subtree["phrases"].max() + 1):
        inside = (node_of(subtree) == node) & (subtree["phrases"] == phrase)
        if free[node] and inside.any():
          assert chosen[inside].all() or not chosen[inside].any()
          seen += chosen[inside].any()
  assert (seen > 20) == (share > 0)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_of_phrases_is_right_on_average_however_long_they_are(share):
  (subtree,) = random_subtrees(1, nodes=2, max_length=400)
  subtree["tokens"] = subtree["tokens"].copy()
  length = int(subtree["lengths"][1])
  start = int(subtree["lengths"][0])
  for size in (1, 3, 4):
    phrases = np.zeros(len(subtree["tokens"]), np.int32)
    starts = range(start + 1, start + length - size, 2 * size)
    for number, place in enumerate(starts, 1):
      phrases[place : place + size] = number
    one = {**subtree, "phrases": phrases}
    drawn = [masker(share)(one, 1000, 0, 0, i)["is_masked"] == 1 for i in range(400)]
    from_phrases = np.mean([(phrases[d] > 0).mean() for d in drawn])
    # With a share of 1, a budget that is no multiple of the size leaves a rest.
    assert from_phrases == pytest.approx(share, abs=0.03 if share < 1 else 0.15)


def test_a_comment_of_long_phrases_alone_still_has_something_to_predict():
  tokens = np.array([5, *range(20, 24)] * 2, np.int32)
  subtree = {
    "tokens": tokens,
    "lengths": np.array([5, 5], np.int32),
    "is_target": np.array([0, 1], np.int32),
    "phrases": np.array([0, 1, 1, 1, 1] * 2, np.int32),
  }
  masked = masker(0.5)(subtree, 1000, seed=1, epoch=0, index=0)
  assert masked["is_masked"].sum() == 1
  assert masked["is_masked"][6:].sum() == 1
  whole = masker(0.5, rate=1.0)(subtree, 1000, seed=1, epoch=0, index=0)
  assert whole["is_masked"].tolist() == [0] * 6 + [1] * 4


def test_a_phrase_that_the_row_cuts_off_or_that_holds_an_unmaskable_token_is_none():
  (subtree,) = random_subtrees(1, nodes=2, max_length=30)
  start = int(subtree["lengths"][0])
  tokens = subtree["tokens"].copy()
  tokens[start + 3] = 5
  phrases = np.zeros(len(tokens), np.int32)
  phrases[start + 2 : start + 5] = 1
  phrases[start + 6 : start + 9] = 2
  one = {**subtree, "tokens": tokens, "phrases": phrases}
  drawn = [masker(1.0, rate=0.5)(one, 8, 0, 0, i)["is_masked"] == 1 for i in range(50)]
  for begin in (2, 6):
    inside = [d[start + begin : start + begin + 3].sum() for d in drawn]
    assert {0, 1} <= set(inside)


def test_masks_are_a_function_of_seed_epoch_and_example():
  subtree = with_phrases(random_subtrees(1, nodes=30))[0]

  def draw(**key):
    key = {"seed": 1, "epoch": 0, "index": 0, **key}
    return masker(0.5)(subtree, 99, **key)["is_masked"].tolist()

  assert draw() == draw()
  for key in ({"seed": 2}, {"epoch": 1}, {"index": 1}):
    assert draw() != draw(**key)


def test_without_phrases_masks_are_as_if_there_was_no_such_setting():
  for index, subtree in enumerate(random_subtrees(20)):
    plain = masker(0.0)(subtree, 99, seed=1, epoch=0, index=index)
    none = {**subtree, "phrases": np.zeros(len(subtree["tokens"]), np.int32)}
    same = masker(0.5)(none, 99, seed=1, epoch=0, index=index)
    np.testing.assert_array_equal(plain["input_tokens"], same["input_tokens"])
    np.testing.assert_array_equal(plain["is_masked"], same["is_masked"])
