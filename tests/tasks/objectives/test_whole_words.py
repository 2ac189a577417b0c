import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.objectives.masking import Masker, masked_counts
from commentree.tasks.vocabulary import vocabularies, word_starts
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.tests.support.tasks.drawn_subtrees import (
  FIRST_WORD,
  MASK_ID,
  VOCAB_SIZE,
  maskable,
  random_subtrees,
)
from commentree.tests.support.tasks.vocabulary_fixture import MAKERS, some_texts

# Tokens of the lower half go on with a word.
BEGINS = np.arange(VOCAB_SIZE) >= 55


def masker(rate=0.3, share=0.0):
  config = MaskingConfig(rate=rate, whole_words=True)
  return Masker(config, MASK_ID, maskable(), share, BEGINS)


def words_of(subtree, length):
  """Positions of the words that a row shows of each target, one word at a time."""
  start = 0
  for node, end in enumerate(np.cumsum(subtree["lengths"]).tolist()):
    found = []
    for at in range(start, min(end, start + length)):
      token = subtree["tokens"][at]
      if token < FIRST_WORD:
        found.append([])
      elif not found or not found[-1] or BEGINS[token]:
        found.append([at])
      else:
        found[-1].append(at)
    start = end
    if subtree["is_target"][node]:
      yield [word for word in found if word]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 60), st.sampled_from([0.1, 0.3, 0.6]))
def test_words_are_masked_whole_and_as_many_as_fit_the_budget(seed, longest, rate):
  (subtree,) = random_subtrees(1, seed, max_length=longest)
  masked = masker(rate)(subtree, 32, seed=seed, epoch=0, index=0)["is_masked"]
  expected = 0
  for node_words in words_of(subtree, 32):
    sizes = [len(word) for word in node_words]
    chosen = [int(masked[word].sum()) for word in node_words]
    budget = int(masked_counts(np.array([sum(sizes)]), rate)[0])
    expected += sum(chosen)
    if sizes and min(sizes) > budget:  # no word fits: single tokens
      assert sum(chosen) == budget
      continue
    assert all(n in (0, size) for n, size in zip(chosen, sizes))
    left = budget - sum(chosen)
    assert left >= 0
    assert all(size > left for n, size in zip(chosen, sizes) if n == 0)
  assert masked.sum() == expected


def test_words_of_discourse_markers_are_masked_whole_too():
  for seed in range(30):
    (subtree,) = random_subtrees(1, seed, max_length=30)
    # A phrase that ends inside a word.
    subtree["phrases"] = np.zeros(len(subtree["tokens"]), np.int32)
    for start in np.cumsum(subtree["lengths"])[:-1]:
      subtree["phrases"][start + 1 : start + 3] = 1
    masked = masker(share=0.5)(subtree, 32, seed=1, epoch=0, index=0)["is_masked"]
    for node_words in words_of(subtree, 32):
      chosen = [int(masked[word].sum()) for word in node_words]
      budget = int(masked_counts(np.array([sum(map(len, node_words))]), 0.3)[0])
      assert sum(chosen) <= budget
      if any(len(word) <= budget for word in node_words):
        assert all(n in (0, len(w)) for n, w in zip(chosen, node_words))


def test_a_word_ends_where_a_translation_begins():
  (subtree,) = random_subtrees(1, nodes=2, max_length=3)
  subtree["lengths"] = np.array([0, 8], np.int32)
  # Nothing begins a word: bytes of one text, and then of another.
  subtree["tokens"] = np.arange(20, 28, dtype=np.int32)
  subtree["languages"] = np.array([1] * 4 + [2] * 4, np.int32)
  chosen = {
    tuple(masker(0.5)(subtree, 32, 0, epoch, 0)["is_masked"].tolist())
    for epoch in range(20)
  }
  assert chosen == {(1, 1, 1, 1, 0, 0, 0, 0), (0, 0, 0, 0, 1, 1, 1, 1)}


def test_every_comment_still_has_something_to_predict():
  (subtree,) = random_subtrees(1, nodes=40)
  subtree["tokens"] = np.where(subtree["tokens"] < FIRST_WORD, 5, 20).astype(np.int32)
  masked = masker()(subtree, 1000, seed=1, epoch=0, index=0)["is_masked"]
  ends = np.cumsum(subtree["lengths"])
  per_node = np.add.reduceat(masked, ends - subtree["lengths"])
  assert (per_node[subtree["is_target"] == 1] > 0).all()


@pytest.mark.parametrize("kind", MAKERS)
def test_words_begin_where_a_person_would_say(kind, tmp_path):
  source = MAKERS[kind](tmp_path)
  path = tmp_path / f"marked{source.suffix}"
  vocabularies.add_markers(source, path, ["<mask>"])
  tokenizer = Tokenizer(lambda: path)
  texts = some_texts(20)
  for text, (ids, offsets) in zip(
    texts, tokenizer.encode_batch_with_offsets(texts), strict=True
  ):
    starts = offsets[:, 0]
    lone = starts == offsets[:, 1]  # a space that is a token of its own
    at_word = [i == 0 or text[i - 1] == " " for i in starts]
    begins = tokenizer.begins_word[ids]
    begins[0] = True  # as where a comment begins
    behind_lone = np.append(False, lone[:-1])
    np.testing.assert_array_equal(
      (begins | behind_lone)[~lone], np.array(at_word)[~lone]
    )


@pytest.mark.parametrize(
  ("subtrees", "expected"),
  [
    (["▁so", "me", ",", "▁", "'", "…", "<0x0A>"], [1, 0, 1, 1, 0, 1, 0]),
    (["▁<0xE2>", "x", "▁y", "<0xA1>"], [1, 0, 1, 0]),
  ],
)
def test_punctuation_begins_a_word_and_an_apostrophe_goes_on_with_one(
  subtrees, expected
):
  assert word_starts.starts_word(subtrees).tolist() == expected


def test_wordpiece_says_what_goes_on():
  assert word_starts.starts_word(["so", "##me", ","], "##").tolist() == [1, 0, 1]


def test_a_vocabulary_that_does_not_tell_words_apart_is_refused(monkeypatch):
  assert word_starts.starts_word(["so", "me</w>"]) is None
  tokenizer = Tokenizer(lambda: "there.json")
  tokenizer.__dict__["_encoder"] = type("Encoder", (), {"begins_word": None})
  with pytest.raises(UserError, match=r"whole_words.*there\.json"):
    _ = tokenizer.begins_word
