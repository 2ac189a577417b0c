from __future__ import annotations

import jax
import numpy as np
import pytest

from commentree.models import occurrences
from commentree.tests.support.models import forests

pytestmark = pytest.mark.usefixtures("strict_shapes")


@pytest.fixture(scope="module")
def drawn_and_batch():
  return forests.random_batch(0, [(20, 20), (25,)], [(1, 2), (3,)])


def masked_words(drawn, batch):
  """Yields of each target its forest, itself, and which masked positions are its."""
  for example, forest in enumerate(drawn):
    for comment in forest:
      if comment.is_target:
        mine = forests.masked_of(batch, example, comment.target)
        yield forest, comment, lambda x, e=example, m=mine: np.asarray(x)[e][m].tolist()


def test_masked_tokens_are_counted_in_the_ancestors_that_the_target_sees(
  drawn_and_batch,
):
  drawn, batch = drawn_and_batch
  times, tokens = jax.jit(occurrences.in_ancestors)(batch)
  seen = []
  for forest, comment, mine in masked_words(drawn, batch):
    above = [t for a in comment.ancestors for t in forest[a].tokens]
    wanted = mine(batch["decoder_target_tokens"])
    assert mine(times) == [above.count(token) for token in wanted]
    assert mine(tokens) == [len(above)] * len(wanted)
    seen += [token in above for token in wanted]
  assert 0.1 < np.mean(seen) < 0.9


def test_masked_tokens_are_counted_in_what_is_not_masked_of_their_comment():
  # Few words, so that some come twice in a comment.
  rng = np.random.default_rng(3)
  forest = forests.random_forest(rng, (6, 5), (9, 11), 8)
  batch = forests.batch_of(forests.pack(forest, forests.Layout(9, 11)))
  times, tokens = jax.jit(occurrences.in_own_comment)(batch)
  found = []
  for _, comment, mine in masked_words([forest], batch):
    left = [t for p, t in enumerate(comment.tokens) if p not in comment.masked]
    wanted = mine(batch["decoder_target_tokens"])
    assert mine(times) == [left.count(token) for token in wanted]
    assert mine(tokens) == [len(left)] * len(wanted)
    found += mine(times)
  assert max(found) > 1


def test_a_token_that_is_masked_but_kept_does_not_count_as_visible():
  forest = forests.random_forest(np.random.default_rng(3), (6,), (9,), 8)
  batch = forests.batch_of(forests.pack(forest, forests.Layout(9, 11)))
  kept = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
  np.put_along_axis(
    kept["decoder_input_tokens"],
    np.where(batch["decoder_loss_weights"] > 0, batch["decoder_masked_positions"], 11),
    batch["decoder_target_tokens"],
    axis=-1,
  )
  for one, other in zip(
    occurrences.in_own_comment(batch), occurrences.in_own_comment(kept)
  ):
    used = batch["decoder_loss_weights"] > 0
    np.testing.assert_array_equal(np.asarray(one)[used], np.asarray(other)[used])


def test_where_a_target_is_read_in_order_what_comes_later_is_not_visible():
  # A comment of two tokens that all see, and four that are each read, then predicted.
  shape = (1, 1, 8)
  batch = {
    "decoder_segment_ids": np.array([1] * 6 + [0] * 2, np.int32).reshape(shape),
    "decoder_positions": np.array([*range(6), 0, 0], np.int32).reshape(shape),
    "decoder_input_tokens": np.array([5, 6, 1, 7, 7, 5, 0, 0], np.int32).reshape(shape),
    "decoder_masked_positions": np.array([[[2, 3, 4, 5]]], np.int32),
    "decoder_target_tokens": np.array([[[7, 7, 5, 7]]], np.int32),
    "decoder_loss_weights": np.ones((1, 1, 4), np.float32),
    "target_prefix_lengths": np.array([[2]], np.int32),
  }
  times, tokens = occurrences.in_own_comment(batch)
  assert times.tolist() == [[[0, 1, 1, 2]]]
  assert tokens.tolist() == [[[3, 4, 5, 6]]]
