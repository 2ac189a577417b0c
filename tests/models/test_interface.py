"""What trainers rely on: T5X's contract for a model object, and our own seam."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from flax.linen import partitioning

from commentree.errors import UserError
from commentree.models import batch
from commentree.models.interface import Model
from commentree.models.metrics import metrics_of_sums
from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import forests, small_models

# Name -> the parameters T5X passes by position, then those it passes by name.
T5X_METHODS = {
  "get_initial_variables": ([], ["rng", "input_shapes", "input_types"]),
  "loss_fn": (["params", "batch", "dropout_rng"], ["flax_mutables"]),
  "eval_fn": (["params", "batch"], ["flax_mutables"]),
  "predict_batch": (["params", "batch"], ["rng"]),
  "predict_batch_with_aux": (["params", "batch"], ["rng"]),
  "score_batch": (["params", "batch"], []),
}


@pytest.mark.parametrize("name", T5X_METHODS)
def test_methods_take_what_t5x_passes(make, name):
  positional, named = T5X_METHODS[name]
  signature = inspect.signature(getattr(make()[0], name))
  signature.bind(*positional, **dict.fromkeys(named))
  parameters = list(signature.parameters.values())
  assert [p.name for p in parameters[: len(positional)]] == positional
  optional = [name for name in named if name not in ("rng", "input_shapes")]
  assert all(signature.parameters[name].default is None for name in optional)


def test_the_protocol_and_the_model_agree():
  for name, member in inspect.getmembers(Model, inspect.isfunction):
    if name.startswith("_"):
      continue
    theirs = inspect.signature(member).parameters
    ours = inspect.signature(getattr(CommentTreeModel, name)).parameters
    assert [(p.name, p.default) for p in ours.values()] == [
      (p.name, p.default) for p in theirs.values()
    ], name


def test_attributes_are_those_that_t5x_reads():
  vocabulary, optimizer, converter = object(), object(), object()
  model = CommentTreeModel(
    small_models.CONFIG,
    input_vocabulary=vocabulary,
    optimizer_def=optimizer,
    feature_converter_cls=converter,
  )
  assert model.input_vocabulary is vocabulary
  assert model.output_vocabulary is vocabulary
  assert model.optimizer_def is optimizer
  assert model.FEATURE_CONVERTER_CLS is converter
  assert model.module.scan_layers is False
  with pytest.raises(UserError, match="feature_converter_cls"):
    _ = CommentTreeModel(small_models.CONFIG).FEATURE_CONVERTER_CLS


def test_the_network_is_traced_once_for_shapes_and_for_values(packed, monkeypatch):
  model = CommentTreeModel(small_models.CONFIG)
  traced, init = [], type(model.module).init
  monkeypatch.setattr(
    type(model.module), "init", lambda *args: traced.append(0) or init(*args)
  )

  def draw(key):
    return model.get_initial_variables(key, packed.shapes)["params"]

  key = jax.random.key(3)
  shapes = jax.eval_shape(draw, key)
  drawn = jax.jit(draw)(key)
  assert len(traced) == 1
  again = jax.jit(lambda key: init(model.module, key, batch.smallest()))(key)["params"]
  jax.tree.map(np.testing.assert_array_equal, drawn, again)
  assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, shapes)


def test_every_parameter_has_axes_of_its_rank(make, packed, family):
  model, _ = make(**family)
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(
      rng=jax.random.key(0), input_shapes=packed.shapes, input_types=None
    )
  )
  assert set(variables) == {"params", "params_axes"}
  metadata = jax.tree.leaves(
    variables["params_axes"],
    is_leaf=lambda x: isinstance(x, partitioning.AxisMetadata),
  )
  assert all(isinstance(leaf, partitioning.AxisMetadata) for leaf in metadata)
  names = jax.tree.leaves(
    partitioning.get_axis_names(variables["params_axes"]),
    is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
  )
  leaves = jax.tree.leaves(variables["params"])
  assert [len(axes) for axes in names] == [leaf.ndim for leaf in leaves]
  assert all(leaf.dtype == np.float32 for leaf in leaves)


def test_a_batch_of_another_make_is_a_user_error(make, packed):
  model, _ = make()
  shapes = dict(packed.shapes)
  del shapes["ancestor_slots"]
  with pytest.raises(UserError, match="ancestor_slots"):
    model.get_initial_variables(jax.random.key(0), shapes)
  shapes = {**packed.shapes, "decoder_input_tokens": (8, 512)}
  with pytest.raises(UserError, match="decoder_input_tokens"):
    model.get_initial_variables(jax.random.key(0), shapes)


def test_loss_and_metrics_cross_jit_and_merge(make, packed):
  model, params = make()
  loss, metrics = jax.jit(model.loss_fn, compiler_options=forests.QUICK_COMPILE)(
    params, packed.batch, None
  )
  assert loss.shape == ()
  assert all(isinstance(metric, clu_metrics.Metric) for metric in metrics.values())
  for name, metric in metrics.items():
    value = metric.merge(metric).compute()
    assert np.shape(value) == (), name
    doubled = isinstance(metric, clu_metrics.Average) or value == 2 * metric.compute()
    assert doubled, name
  z_loss = metrics["z_loss"].compute()
  np.testing.assert_allclose(loss, metrics["loss"].compute() + z_loss, rtol=1e-5)


def test_metrics_of_a_batch_with_nothing_to_average_are_0_and_merge():
  names = ("loss", "z_loss", "accuracy", "weights", "comments", "reply_matching")
  names += ("encoder_tokens", "encoder_positions", "reply_pairs")
  names += ("decoder_tokens", "decoder_positions")
  nothing = dict.fromkeys(names, jnp.zeros(()))
  empty = metrics_of_sums(nothing)
  assert all(metric.compute() == 0 for metric in empty.values())
  pairs = {"reply_matching": jnp.float32(3), "reply_pairs": jnp.float32(2)}
  some = metrics_of_sums({**nothing, **pairs})["reply_matching"]
  assert empty["reply_matching"].merge(some).compute() == 1.5
  assert isinstance(some, clu_metrics.Average)


def test_loss_normalizing_factor_divides_the_sum(make, packed):
  model, params = make()
  fixed = CommentTreeModel(model.config, loss_normalizing_factor=10)
  loss, metrics = jax.jit(fixed.eval_fn, compiler_options=forests.QUICK_COMPILE)(
    params, packed.batch
  )
  mean = metrics["loss"].compute() + metrics["z_loss"].compute()
  np.testing.assert_allclose(
    loss, mean * metrics["masked_tokens"].compute() / 10, rtol=1e-5
  )
  with pytest.raises(UserError, match="loss_normalizing_factor"):
    CommentTreeModel(model.config, loss_normalizing_factor=0)


def test_a_model_without_a_vocabulary_size_is_a_user_error():
  with pytest.raises(UserError, match="vocab_size"):
    CommentTreeModel(dataclasses.replace(small_models.CONFIG, vocab_size=0))


def test_predictions_scores_and_evaluation_tell_the_same_story(make, packed):
  model, params = make()
  batch = packed.batch
  weights = batch["decoder_loss_weights"]

  def everything(params, batch):
    return (
      model.logits(params, batch),
      model.predict_batch_with_aux(params, batch, rng=None),
      model.score_batch(params, batch),
      model.evaluate_batch(params, batch, "true"),
    )

  logits, (predictions, aux), scores, evaluated = jax.tree.map(
    np.asarray,
    jax.jit(everything, compiler_options=forests.QUICK_COMPILE)(params, batch),
  )
  assert logits.shape == (*weights.shape, model.config.vocab_size)
  assert logits.dtype == np.float32
  np.testing.assert_array_equal(
    predictions, np.where(weights > 0, logits.argmax(-1), 0)
  )
  assert aux["scores"].shape == predictions.shape
  hits = (predictions == batch["decoder_target_tokens"]) & (weights > 0)
  np.testing.assert_array_equal(evaluated["correct"] * weights, hits)
  np.testing.assert_allclose(
    evaluated["nll"][hits], -aux["scores"][hits], rtol=1e-4, atol=1e-6
  )
  for example, forest in enumerate(packed.forests):
    for comment in forest:
      if comment.is_target:
        masked = forests.masked_of(batch, example, comment.target)
        np.testing.assert_allclose(
          scores[example, comment.target - 1],
          -evaluated["nll"][example][masked].sum(),
          rtol=1e-5,
        )
        assert set(evaluated["targets"][example][masked]) == {comment.target}
  assert (scores[2] == 0).all()
