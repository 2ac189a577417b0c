from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models import diagnostics
from commentree.tests.support.models import forests

pytestmark = pytest.mark.usefixtures("strict_shapes")


def noted(model, params, batch):
  evaluate = jax.jit(
    lambda params, batch: model.evaluate_batch(params, batch, "true"),
    compiler_options=forests.QUICK_COMPILE,
  )
  return {k: np.asarray(v) for k, v in evaluate(params, batch)["attention"].items()}


def stacked(params):
  """Parameters of unrolled layers as those of scanned ones."""
  result = dict(params)
  for side in ("encoder", "decoder"):
    part = dict(params[side])
    names = [name for name in part if name.startswith("layers_")]
    layers = [part.pop(name) for name in sorted(names)]
    # T5X's place of the scanned axis of parameters.
    part["layers"] = jax.tree.map(lambda *x: jnp.stack(x, axis=0), *layers)
    result[side] = part
  return result


def test_tokens_are_counted_by_what_they_see(make, packed, family):
  model, params = make(**family)
  found = noted(model, params, packed.batch)
  targets = [c for forest in packed.forests for c in forest if c.is_target]
  size = sum(len(c.tokens) for c in targets)
  above = [c for c in targets if c.ancestors]
  seen = sum(len(c.tokens) for c in above)
  with_parent = sum(len(c.tokens) for c in above if 1 in c.distances)
  layers = model.config.num_decoder_layers
  assert found["tokens"].tolist() == [size] * layers
  assert found["with_ancestors"].tolist() == [seen] * layers
  assert found["with_parent"].tolist() == [with_parent] * layers
  # Who sees an ancestor does not see the null vector; the others see nothing else.
  np.testing.assert_allclose(found["null_weight"], size - seen, rtol=1e-5)
  most = sum(len(c.tokens) * np.log(len(c.ancestors)) for c in above)
  np.testing.assert_allclose(found["most_entropy"], most, rtol=1e-5)
  assert (found["entropy"] < found["most_entropy"]).all()
  assert (found["entropy"] > 0).all()
  assert (found["parent_weight"] > 0).all()
  assert (found["parent_weight"] < found["with_parent"]).all()


def test_a_pointer_notes_its_share_of_masked_tokens_that_see_an_ancestor(make, packed):
  model, params = make(ancestor_pointer=True)
  pointer = params["pointer"] | {
    "gate": jnp.zeros_like(params["pointer"]["gate"]),
    "log_odds": jnp.log(jnp.array([0.25])),
  }
  found = noted(model, params | {"pointer": pointer}, packed.batch)
  masked = sum(
    len(c.masked) for f in packed.forests for c in f if c.is_target and c.ancestors
  )
  assert found["may_copy"] == [masked]
  np.testing.assert_allclose(found["copied"], [masked / 5], rtol=1e-5)


@pytest.mark.parametrize("positions", ["none", "distance", "depth", "relative_bias"])
def test_attention_that_scores_all_alike_is_spread_evenly(make, packed, positions):
  model, params = make(ancestor_positions=positions)
  flat = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      jnp.zeros_like(x)
      if any(getattr(k, "key", "") == "encoder_decoder_attention" for k in path)
      or path[-1].key == "distance_bias"
      else x
    ),
    params,
  )
  found = noted(model, flat, packed.batch)
  np.testing.assert_allclose(found["entropy"], found["most_entropy"], rtol=1e-5)
  expected = sum(
    len(c.tokens) / len(c.ancestors)
    for forest in packed.forests
    for c in forest
    if c.is_target and 1 in c.distances
  )
  np.testing.assert_allclose(found["parent_weight"], expected, rtol=1e-5)
  # Values of 0 add nothing.
  assert (found["update"] == 0).all()
  assert (found["stream"] > 0).all()


def test_the_update_is_what_the_out_projection_gives(make, packed, family):
  model, params = make(**family)
  whole = noted(model, params, packed.batch)
  doubled = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      2 * x
      if [getattr(k, "key", "") for k in path][1:4]
      == ["layers_1", "encoder_decoder_attention", "out"]
      else x
    ),
    params,
  )
  found = noted(model, doubled, packed.batch)
  np.testing.assert_allclose(found["update"][0], whole["update"][0], rtol=1e-5)
  np.testing.assert_allclose(found["update"][1], 4 * whole["update"][1], rtol=1e-5)
  np.testing.assert_allclose(found["stream"], whole["stream"], rtol=1e-5)


def test_scanned_and_rematerialized_layers_note_the_same(make, packed, family):
  model, params = make(**family)
  expected = noted(model, params, packed.batch)
  scanned, _ = make(**family, scan_layers=True, remat_policy="full")
  found = noted(scanned, stacked(params), packed.batch)
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


def test_training_and_initializing_note_nothing(make, packed, monkeypatch):
  model, params = make()

  def refuse(*unused):
    raise AssertionError("noted")

  monkeypatch.setattr(diagnostics, "_note", refuse)
  jax.eval_shape(lambda: model.loss_fn(params, packed.batch, jax.random.key(0))[0])
  variables = jax.eval_shape(lambda: model.module.init(jax.random.key(0), packed.batch))
  assert diagnostics.COLLECTION not in variables
  with pytest.raises(AssertionError, match="noted"):
    jax.eval_shape(lambda: model.evaluate_batch(params, packed.batch, "true"))
