import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.objectives.masking import Masker, masked_counts
from commentree.tests.support.tasks.drawn_subtrees import (
  FIRST_WORD,
  MASK_ID,
  maskable,
  node_of,
  random_subtrees,
)

MASKER = Masker(MaskingConfig(), MASK_ID, maskable())


def test_every_target_has_exactly_the_rounded_share_masked():
  for index, subtree in enumerate(random_subtrees(50)):
    masked = MASKER(subtree, 1000, seed=1, epoch=0, index=index)
    words = np.bincount(node_of(subtree)[subtree["tokens"] >= FIRST_WORD], minlength=99)
    got = np.bincount(node_of(subtree), masked["is_masked"], minlength=99)
    expected = [
      max(1, round(0.15 * w)) if t and w else 0
      for w, t in zip(words, subtree["is_target"])
    ]
    np.testing.assert_array_equal(got[: len(expected)], expected)


def test_a_single_word_is_masked_and_no_word_is_not():
  np.testing.assert_array_equal(
    masked_counts(np.array([0, 1, 3, 10]), 0.15), [0, 1, 1, 2]
  )


def test_markers_are_never_masked_and_never_put_in():
  for index, subtree in enumerate(random_subtrees(50)):
    masked = MASKER(subtree, 1000, seed=1, epoch=0, index=index)
    chosen = masked["is_masked"] == 1
    assert (subtree["tokens"][chosen] >= FIRST_WORD).all()
    put_in = masked["input_tokens"][chosen]
    assert ((put_in >= FIRST_WORD) | (put_in == MASK_ID)).all()
    untouched = masked["input_tokens"] == subtree["tokens"]
    assert untouched[~chosen].all()


@pytest.mark.parametrize(
  ("settings", "mask", "kept"),
  [({}, 0.8, 0.1), ({"mask_share": 0.5, "random_share": 0.4}, 0.5, 0.1)],
)
def test_the_shares_are_80_10_10_or_as_set(settings, mask, kept):
  subtree = random_subtrees(1, nodes=400)[0]
  masker = Masker(MaskingConfig(**settings), MASK_ID, maskable())
  masked = masker(subtree, 1000, seed=1, epoch=0, index=0)
  chosen = masked["is_masked"] == 1
  put_in, were = masked["input_tokens"][chosen], subtree["tokens"][chosen]
  assert np.mean(put_in == MASK_ID) == pytest.approx(mask, abs=0.001)
  # A random token is the token itself now and then.
  assert np.mean(put_in == were) == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("masked_tokens", [1, 2, 3])
def test_the_shares_hold_where_subtrees_have_one_or_two_masked_tokens(masked_tokens):
  # A short comment of so many tokens, all of which are masked.
  subtree = {
    "tokens": np.arange(FIRST_WORD, FIRST_WORD + masked_tokens),
    "lengths": np.array([masked_tokens]),
    "is_target": np.array([1]),
  }
  masker = Masker(MaskingConfig(rate=1.0), MASK_ID, maskable())
  drawn = [masker(subtree, 9, 1, 0, index)["input_tokens"] for index in range(4000)]
  # A random token is the token itself now and then, which is no matter here.
  assert np.mean(np.array(drawn) == MASK_ID) == pytest.approx(0.8, abs=0.02)
  assert np.mean(drawn == subtree["tokens"]) == pytest.approx(0.1, abs=0.02)


def test_context_copies_and_what_a_row_cuts_off_are_not_masked():
  subtree = random_subtrees(1, nodes=30)[0]
  masked = MASKER(subtree, 8, seed=1, epoch=0, index=0)
  starts = np.cumsum(subtree["lengths"]) - subtree["lengths"]
  columns = np.arange(len(subtree["tokens"])) - starts[node_of(subtree)]
  chosen = masked["is_masked"] == 1
  assert columns[chosen].max() < 8
  assert subtree["is_target"][node_of(subtree)[chosen]].all()


def test_masks_depend_on_seed_epoch_and_example_and_on_nothing_else():
  subtree = random_subtrees(1, nodes=30)[0]

  def draw(**key):
    return MASKER(subtree, 99, **{"seed": 1, "epoch": 0, "index": 0, **key})[
      "is_masked"
    ]

  np.testing.assert_array_equal(draw(), draw())
  for key in ({"seed": 2}, {"epoch": 1}, {"index": 1}):
    assert (draw() != draw(**key)).any()


def test_every_word_is_equally_likely_to_be_masked():
  subtree = random_subtrees(1, nodes=2, max_length=40)[0]
  hits = sum(
    MASKER(subtree, 99, seed=0, epoch=e, index=0)["is_masked"] for e in range(2000)
  )
  words = (subtree["tokens"] >= FIRST_WORD) & (node_of(subtree) == 1)
  assert hits[~words].sum() == 0
  expected = hits[words].mean()
  assert np.abs(hits[words] - expected).max() < 6 * np.sqrt(expected)


@pytest.mark.parametrize(
  "settings", [{"rate": 0}, {"rate": 1.5}, {"mask_share": 0.8, "random_share": 0.3}]
)
def test_shares_that_cannot_be_are_refused(settings):
  with pytest.raises(UserError, match="MaskingConfig"):
    MaskingConfig(**settings)
