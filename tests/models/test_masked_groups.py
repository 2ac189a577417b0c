"""Masked tokens are the same in groups of one row, of some, and of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models import layers, occurrences
from commentree.tests.support.models import forests, small_models

pytestmark = pytest.mark.usefixtures("strict_shapes")

# Groups are made of what the last layer returns.
ONE_LAYER = {"num_encoder_layers": 1, "num_decoder_layers": 1}


def in_use(batch, values):
  """Returns what stands at masked positions in use, example by example."""
  return np.asarray(values)[batch["decoder_loss_weights"] > 0]


@pytest.mark.parametrize(
  ("family", "changes"),
  [
    ("t5", {"ancestor_pointer": True, "vectors_to_logits": True}),
    ("roberta", {"ancestor_pointer": True}),
  ],
)
def test_groups_change_neither_losses_nor_gradients_nor_what_dropout_draws(
  make, packed, family, changes
):
  model, params = make(
    **small_models.FAMILIES[family], **ONE_LAYER, dropout_rate=0.3, **changes
  )

  def loss(params, batch):
    return model.loss_sums(params, batch, jax.random.key(5))[0]

  compute = jax.jit(jax.value_and_grad(loss), compiler_options=forests.QUICK_COMPILE)
  expected, expected_gradients = compute(params, packed.batch)
  for groups in (2, 1):
    found, gradients = compute(params, forests.regrouped(packed.batch, groups))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
      lambda one, two: np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-5),
      gradients,
      expected_gradients,
    )


@pytest.mark.parametrize(
  "changes",
  [
    {"head": "classification", "classify_from": "mean"},
    {"head": "classification", "classify_from": "first"},
    {"head": "tagging", "tagger": "gru"},
    {"head": "tagging", "tagger": "crf"},
  ],
)
def test_groups_do_not_change_labels(make, packed, changes):
  model, params = make(num_labels=3, **ONE_LAYER, **changes)
  labels = packed.batch["decoder_target_tokens"] % 3
  batch = {**packed.batch, "decoder_target_tokens": labels}
  predict = jax.jit(
    lambda batch: (
      model.evaluate_batch(params, batch, "true")["nll"],
      model.predict_batch(params, batch),
    ),
    compiler_options=forests.QUICK_COMPILE,
  )
  expected = [in_use(batch, values) for values in predict(batch)]
  for groups in (2, 1):
    grouped = forests.regrouped(batch, groups)
    for one, two in zip(expected, predict(grouped)):
      np.testing.assert_allclose(one, in_use(grouped, two), rtol=1e-5, atol=1e-5)


def test_groups_do_not_change_where_else_a_token_occurs():
  forest = forests.random_forest(np.random.default_rng(3), (6, 5), (5, 7), 8)
  layout = forests.Layout(encoder_rows=6, decoder_rows=6, targets=12, slots=12)
  batch = forests.batch_of(forests.pack(forest, layout))
  # Half of each target is seen as a whole, what follows is read in order.
  batch["target_prefix_lengths"] = np.full(batch["target_depths"].shape, 3, np.int32)
  for count in (occurrences.in_own_comment, occurrences.in_ancestors):
    expected = [in_use(batch, values) for values in jax.jit(count)(batch)]
    assert max(expected[0]) > 0
    for groups in (3, 1):
      grouped = forests.regrouped(batch, groups)
      for one, two in zip(expected, jax.jit(count)(grouped)):
        np.testing.assert_array_equal(one, in_use(grouped, two))


def test_what_is_at_positions_is_the_same_by_a_product_as_by_a_gather():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 10, 4)), jnp.float32)
  # The same position twice, as padding has it.
  positions = jnp.asarray(rng.integers(0, 10, (2, 3, 12)), jnp.int32)
  of_y = jnp.asarray(rng.normal(size=(2, 3, 12, 4)), jnp.float32)
  found, transpose = jax.vjp(lambda x: layers.at_positions(x, positions), x)
  expected, of_product = jax.vjp(lambda x: layers._at_by_product(x, positions), x)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(transpose(of_y)[0], of_product(of_y)[0], rtol=1e-5)
