"""What the optional features of a batch do: reading in order, and languages."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models import batch as batch_lib
from commentree.tests.support.models import forests


def with_prefixes(batch, prefix):
  depths = batch["target_depths"]
  return {**batch, "target_prefix_lengths": np.full_like(depths, prefix)}


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_token_sees_itself_what_is_before_it_and_the_prefix(
  logits_of, packed, prefix
):
  batch = with_prefixes(packed.batch, prefix)
  before = logits_of(batch)
  used = batch["decoder_loss_weights"] > 0
  seen = set()
  for comment in packed.forests[0]:
    if not comment.is_target:
      continue
    row, *columns = np.argwhere(batch["decoder_segment_ids"][0] == comment.target)[0]
    masked = batch["decoder_masked_positions"][0, row]
    own = forests.masked_of(batch, 0, comment.target)[row]
    for key in range(len(comment.tokens)):
      tokens = batch["decoder_input_tokens"].copy()
      tokens[0, row, columns[0] + key] ^= 1
      change = np.abs(logits_of({**batch, "decoder_input_tokens": tokens}) - before)
      for m in np.flatnonzero(own):
        query = masked[m] - columns[0]
        sees = bool(key <= query or key < prefix)
        largest = change[0, row, m].max()
        assert (largest > 1e-5) if sees else (largest == 0), (key, query)
        change[0, row, m] = 0
        seen.add(sees)
      assert change[used].max() == 0, "another target saw it"
  assert seen == {True, False}


def test_a_prefix_as_long_as_the_comment_is_as_none(logits_of, packed):
  used = packed.batch["decoder_loss_weights"] > 0
  np.testing.assert_array_equal(
    logits_of(with_prefixes(packed.batch, 12))[used], logits_of(packed.batch)[used]
  )


def test_each_target_has_a_prefix_of_its_own(logits_of, packed):
  whole, causal = (logits_of(with_prefixes(packed.batch, n)) for n in (12, 0))
  mixed = with_prefixes(packed.batch, 12)
  mixed["target_prefix_lengths"][:, 1] = 0
  logits = logits_of(mixed)
  for example, forest in enumerate(packed.forests):
    for comment in forest:
      if comment.is_target:
        at = forests.masked_of(packed.batch, example, comment.target)
        expected = causal if comment.target == 2 else whole
        np.testing.assert_array_equal(logits[example][at], expected[example][at])


def test_a_language_is_a_vector_added_to_its_tokens(make, packed):
  model, params = make(num_languages=2)
  plain_model, _ = make()
  logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  plain = {k: v for k, v in params.items() if k != "language_embedding"}
  plain_logits = jax.jit(plain_model.logits, compiler_options=forests.QUICK_COMPILE)
  without = np.asarray(plain_logits(plain, packed.batch))
  sides = ("encoder", "decoder")

  def languages(of):
    return {
      **packed.batch,
      **{f"{s}_languages": of * (packed.batch[f"{s}_segment_ids"] > 0) for s in sides},
    }

  np.testing.assert_allclose(logits(params, languages(0)), without, atol=1e-5)
  # As if the table of tokens had the vector in all of its rows.
  table = params["token_embedder"]["embedding"] + params["language_embedding"][1:]
  moved = {**plain, "token_embedder": {"embedding": table}}
  used = packed.batch["decoder_loss_weights"] > 0
  np.testing.assert_allclose(
    np.asarray(logits(params, languages(2)))[used],
    np.asarray(plain_logits(moved, packed.batch))[used],
    atol=1e-4,
  )


def test_states_are_what_logits_are_made_of(make, packed):
  model, params = make()

  def states(batch):
    return model.decode_states(params, model.encode(params, batch), batch)

  states_BRLD = np.asarray(states(packed.batch))
  positions = packed.batch["decoder_masked_positions"]
  picked = np.take_along_axis(states_BRLD, positions[..., None], axis=2)
  kernel = params["decoder"]["logits_dense"]["kernel"]
  logits = model.logits(params, packed.batch)
  np.testing.assert_allclose(picked @ kernel, logits, atol=1e-4)


def test_an_optional_feature_of_the_wrong_rank_is_named(packed):
  shapes = {**packed.shapes, "target_prefix_lengths": (3,)}
  with pytest.raises(UserError, match="target_prefix_lengths"):
    batch_lib.check_shapes(shapes)
  batch_lib.check_shapes({**packed.shapes, "target_prefix_lengths": (3, 12)})
