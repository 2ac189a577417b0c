"""Property 1: packing changes how the loss is computed, not what it is."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from commentree.models.transformer import kernel_choice
from commentree.tests.support.models import forests, naive, slopes, small_models

POINTER = {"ancestor_pointer": True}
DIRECT = {"vectors_to_logits": True}
# Fewer than the longest threads have.
NEAREST = {"nearest_context_tokens": 11}
THREAD = {"num_thread_layers": 2}
NORMALIZED = {"normalize_pooled_vectors": True}
KERNELS = {"attention": "pallas"}
# Family, pooling, vectors per comment, ancestor positions, layers of each stack, and
# parts that are off by default.
VARIANTS = [
  ("t5", "mean", 1, "relative_bias", 2, POINTER),
  ("t5", "mean", 2, "none", 1, {"logits_via_embedding": True} | DIRECT),
  ("t5", "max", 2, "distance", 1, NEAREST),
  ("t5", "attention", 2, "depth", 1, THREAD | DIRECT),
  ("t5", "first", 4, "sinusoidal", 1, NORMALIZED | KERNELS),
  ("roberta", "attention", 2, "distance", 1, POINTER | DIRECT | KERNELS),
  ("roberta", "mean", 2, "none", 1, THREAD),
  ("bert", "mean", 1, "depth", 1, NEAREST | POINTER | NORMALIZED),
]


@pytest.mark.parametrize(
  ("family", "pooling", "many", "positions", "layers", "parts"), VARIANTS
)
def test_packed_forest_has_the_loss_and_gradients_of_comments_one_by_one(
  make, packed, monkeypatch, family, pooling, many, positions, layers, parts
):
  monkeypatch.setattr(kernel_choice, "INTERPRET", "attention" in parts)
  model, params = make(
    **small_models.FAMILIES[family],
    pooling=pooling,
    vectors_per_comment=many,
    ancestor_positions=positions,
    num_encoder_layers=layers,
    num_decoder_layers=layers,
    **parts,
  )

  def packed_loss(params):
    return model.loss_sums(params, packed.batch, None)[:2]

  (loss, weight), gradients = jax.jit(
    jax.value_and_grad(packed_loss, has_aux=True),
    compiler_options=forests.QUICK_COMPILE,
  )(params)

  def naive_loss(whole):
    return sum(
      naive.loss_sum(whole, forest, forests.masked_tokens, model.config)
      for forest in packed.forests
    )

  masked = sum(len(c.masked) for f in packed.forests for c in f if c.is_target)
  assert weight == masked
  np.testing.assert_allclose(loss, slopes.of(naive_loss, params), rtol=1e-5)
  slopes.check(gradients, naive_loss, params, directions=2)
