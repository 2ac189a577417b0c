"""What is lost without an ancestor is what the model loses where it is hidden."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from commentree.models import attribution
from commentree.tests.support.models import forests, small_models

POINTER_AND_THREAD = {"ancestor_pointer": True, "num_thread_layers": 1}
CONCATENATED = {"context": "concatenated", "max_context_tokens": 11}
NEAREST = {"nearest_context_tokens": 11, "vectors_to_logits": True}


@pytest.mark.long
@pytest.mark.parametrize(
  ("family", "parts", "condition"),
  [
    ("t5", POINTER_AND_THREAD, "true"),
    ("t5", CONCATENATED, "true"),
    ("roberta", NEAREST, "true"),
    ("t5", {}, "parent_only"),
  ],
)
def test_losses_without_an_ancestor_are_those_of_batches_that_lack_it(
  make, packed, family, parts, condition
):
  settings = {"num_encoder_layers": 1, "num_decoder_layers": 1}
  model, params = make(**small_models.FAMILIES[family], **settings, **parts)
  batch = packed.batch
  jitted = jax.jit(
    lambda batch: (
      attribution.leave_one_out(
        model, params, attribution.encode_once(model, params, batch), batch, condition
      ),
      model.evaluate_batch(params, batch, condition)["nll"],
    ),
    compiler_options=forests.QUICK_COMPILE,
  )
  found, whole = jitted(batch)
  weights = batch["decoder_loss_weights"]
  slots, hops = batch["ancestor_slots"], batch["ancestor_distances"]
  changed = 0
  for column in range(slots.shape[-1]):
    left = slots.copy()
    for example, target in np.argwhere(slots[..., column] > 0):
      same = hops[example, target] == hops[example, target, column]
      left[example, target][same] = 0
    # Only those that are shown can be left out.
    shown = (slots > 0) & ((hops == 1) | (condition == "true"))
    if not shown[..., column].any():
      continue
    _, expected = jitted({**batch, "ancestor_slots": left})
    there = weights > 0
    np.testing.assert_allclose(
      np.asarray(found)[:, column][there], np.asarray(expected)[there], atol=1e-5
    )
    changed += np.abs(np.asarray(found)[:, column] - np.asarray(whole))[there].max()
  assert changed > 1e-2


@pytest.mark.long
@pytest.mark.parametrize(
  "parts", [{"ancestor_pointer": True, "vectors_to_logits": True}, CONCATENATED]
)
def test_what_is_predicted_may_stand_side_by_side_for_all_rows(make, packed, parts):
  settings = {"num_encoder_layers": 1, "num_decoder_layers": 1}
  model, params = make(**small_models.FAMILIES["t5"], **settings, **parts)
  batch = packed.batch
  examples, rows, length = batch["decoder_segment_ids"].shape
  columns = batch["decoder_masked_positions"] + length * np.arange(rows)[:, None]
  names = ("decoder_target_tokens", "decoder_loss_weights")
  joined = {
    **batch,
    "decoder_masked_positions": columns.reshape(examples, 1, -1),
    **{name: batch[name].reshape(examples, 1, -1) for name in names},
  }
  evaluate = jax.jit(
    lambda batch: (
      model.evaluate_batch(params, batch, "none")
      | {
        "nll": attribution.losses_by_condition(
          model,
          params,
          attribution.encode_once(model, params, batch),
          batch,
          ("true", "none"),
        )
      }
    ),
    compiler_options=forests.QUICK_COMPILE,
  )
  expected, found = evaluate(batch), evaluate(joined)
  there = batch["decoder_loss_weights"] > 0
  for condition in range(2):
    of_rows = np.asarray(expected["nll"])[condition]
    of_forest = np.asarray(found["nll"])[condition].reshape(there.shape)
    np.testing.assert_allclose(of_forest[there], of_rows[there], atol=1e-5)
  targets = np.asarray(found["targets"]).reshape(there.shape)
  np.testing.assert_array_equal(targets[there], np.asarray(expected["targets"])[there])


def test_all_chunks_of_an_ancestor_are_left_out_together():
  batch = {
    "ancestor_slots": np.array([[[5, 4, 2, 0], [3, 0, 0, 0]]]),
    "ancestor_distances": np.array([[[1, 1, 2, 0], [1, 0, 0, 0]]]),
  }
  for column, expected in (
    (0, [[0, 0, 2, 0], [0, 0, 0, 0]]),
    (1, [[0, 0, 2, 0], [3, 0, 0, 0]]),
    (2, [[5, 4, 0, 0], [3, 0, 0, 0]]),
    (3, [[5, 4, 2, 0], [3, 0, 0, 0]]),
  ):
    left = attribution.without_ancestor(batch, column)["ancestor_slots"]
    np.testing.assert_array_equal(left[0], expected)
