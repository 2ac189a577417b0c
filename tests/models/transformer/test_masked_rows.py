"""The last layer is computed of masked tokens alone, to the same end."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from commentree.models.transformer import kernel_choice, masked_rows
from commentree.models.transformer.mlp import Mlp
from commentree.tests.support.models import forests, small_models

pytestmark = pytest.mark.usefixtures("strict_shapes")


@pytest.fixture(scope="module")
def by_row():
  """Returns two examples of nine rows of 12 tokens, the second one nearly empty."""
  rng = np.random.default_rng(2)
  layout = forests.Layout(encoder_rows=9, decoder_rows=9, targets=20, slots=16)
  drawn = [
    forests.random_forest(rng, sizes, (4, 6), small_models.CONFIG.vocab_size)
    for sizes in ((9, 8), (3,))
  ]
  return forests.batch_of(*(forests.pack(forest, layout) for forest in drawn))


@pytest.fixture(scope="module")
def batch(by_row):
  """Returns the same with the masked tokens of an example side by side."""
  return forests.regrouped(by_row, 1)


def rows_of_mlps(made, apply):
  """Returns how many rows each MLP of the decoder reads, by layer."""
  model, params = made
  found = {}

  def note(next_function, args, kwargs, context):
    path = context.module.path
    if isinstance(context.module, Mlp) and path[0] == "decoder":
      found["/".join(path[1:-1])] = len(args[0])
    return next_function(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(lambda params: apply(model, params), params)
  return found


def loss(batch):
  return lambda model, params: model.loss_sums(params, batch, None)[0]


def test_only_the_last_layer_computes_of_masked_tokens_alone(make, batch):
  masked = batch["decoder_masked_positions"].shape[-1]
  assert 12 < masked < 24
  rows = rows_of_mlps(make(), loss(batch))
  assert rows == {"layers_0": 2 * 9, "layers_1": 2 * 2}


def test_all_tokens_are_computed_where_nothing_is_gained_or_all_are_noted(
  make, by_row, batch
):
  everywhere = {"layers_0": 2 * 9, "layers_1": 2 * 9}
  # The 6 masked tokens of each row would take a row again.
  assert rows_of_mlps(make(), loss(by_row)) == everywhere
  noted = rows_of_mlps(
    make(), lambda model, params: model.evaluate_batch(params, batch, "true")["nll"]
  )
  assert noted == everywhere
  assert rows_of_mlps(make(scan_layers=True), loss(batch)) == {"layers": 2 * 9}
  nearest = rows_of_mlps(make(nearest_context_tokens=4), loss(batch))
  assert nearest == everywhere


@pytest.mark.parametrize(
  ("family", "attention", "groups", "changes"),
  [
    ("t5", "pallas", 1, {"remat_policy": "attention"}),
    (
      "bert",
      "xla",
      3,
      {"ancestor_positions": "distance", "norm_before_ancestors": True},
    ),
  ],
)
def test_losses_gradients_and_dropout_are_those_of_all_tokens(
  make, by_row, monkeypatch, family, attention, groups, changes
):
  batch = forests.regrouped(by_row, groups)
  masked_shape = batch["decoder_masked_positions"].shape
  assert masked_rows.count_rows(masked_shape, 2 * 9, 12) is not None
  monkeypatch.setattr(kernel_choice, "INTERPRET", attention == "pallas")
  settings = {**small_models.FAMILIES[family], **changes, "attention": attention}
  model, params = make(**settings, num_encoder_layers=1, dropout_rate=0.3)

  def compute():
    def loss(params):
      return model.loss_sums(params, batch, jax.random.key(5))[0]

    return jax.jit(jax.value_and_grad(loss), compiler_options=forests.QUICK_COMPILE)(
      params
    )

  found, gradients = compute()
  monkeypatch.setattr(masked_rows, "count_rows", lambda *arguments: None)
  expected, expected_gradients = compute()
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  jax.tree.map(
    lambda one, two: np.testing.assert_allclose(
      one, two, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(two).max()
    ),
    gradients,
    expected_gradients,
  )
