from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.models.heads import crf, heads
from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import labelled, small_models
from commentree.tests.support.models.forests import QUICK_COMPILE
from commentree.training import partitioning
from commentree.training.config import PartitioningConfig

SEGMENTS = np.array([[[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]]], np.int32)
WIDTH = 6


def quick(function):
  return jax.jit(function, compiler_options=QUICK_COMPILE)


def drawn(module, *arguments):
  """Random parameters of a module."""
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
  variables = jax.eval_shape(lambda: module.init(keys, *arguments))
  return small_models.draw(variables["params"])


def states(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 1, (*SEGMENTS.shape, WIDTH)).astype(np.float32)


def comments(row):
  return [np.flatnonzero(row == segment) for segment in range(1, row.max() + 1)]


# The linear tagger is the GRU less the GRU, which is compared with Flax's below.
@pytest.fixture(
  scope="module",
  params=["classification", "crf", pytest.param("gru", marks=pytest.mark.slow)],
)
def head(request, make, packed):
  """A model with a head, its parameters, a batch, and what it makes of that."""
  model, params = make(**labelled.HEADS[request.param])
  batch = labelled.for_head(model.config, packed.batch)

  def everything(params, batch):
    grads, sums = jax.grad(
      lambda p: model.loss_sums(p, batch, None)[0::2], has_aux=True
    )(params)
    without = model.evaluate_batch(params, batch, "none")
    # The network once for all the rest.
    scores = model._scores(params, batch, None)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(model, "_scores", lambda *_: scores)
      return {
        "evaluated": model.evaluate_batch(params, batch, "true"),
        "without": without,
        "predicted": model.predict_batch_with_aux(params, batch),
        "scored": model.score_batch(params, batch),
        "sums": sums,
        "gradients": grads,
      }

  return model, params, batch, jax.device_get(quick(everything)(params, batch))


# ---- The parts ---------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gru_is_flaxs_cell_over_each_comment_alone(reverse):
  gru = heads.Gru(4, jnp.dtype("float32"), reverse)
  x = states()
  params = drawn(gru, x, SEGMENTS)
  found = np.asarray(quick(gru.apply)({"params": params}, x, SEGMENTS))
  gates = {
    name: (kernel, bias)
    for name, kernel, bias in zip(
      ("r", "z", "n"),
      jnp.split(params["input"]["kernel"], 3, axis=1),
      jnp.split(params["input"]["bias"], 3),
    )
  }
  kept = jnp.split(params["recurrent_kernel"], 3, axis=1)
  cell_params = {f"i{n}": {"kernel": k, "bias": b} for n, (k, b) in gates.items()}
  cell_params |= {f"h{n}": {"kernel": k} for n, k in zip(gates, kept)}
  cell_params["hn"]["bias"] = params["recurrent_bias"]
  cell = quick(nn.GRUCell(features=4).apply)
  for row in range(SEGMENTS.shape[1]):
    for columns in comments(SEGMENTS[0, row]):
      state = jnp.zeros(4)
      for column in columns[::-1] if reverse else columns:
        state, _ = cell({"params": cell_params}, state, x[0, row, column])
        np.testing.assert_allclose(found[0, row, column], state, atol=1e-5)


@pytest.mark.parametrize("classify_from", ["mean", "first"])
def test_a_comments_label_comes_from_its_own_states(classify_from):
  config = dataclasses.replace(
    small_models.CONFIG, emb_dim=WIDTH, num_labels=3, classify_from=classify_from
  )
  classifier = heads.Classifier(config, True)
  batch = {
    "decoder_segment_ids": SEGMENTS,
    "decoder_masked_positions": np.array([[[0, 3, 4], [0, 0, 0]]], np.int32),
    "target_depths": np.ones((1, 4), np.int32),
  }
  x = states()
  params = drawn(classifier, x, batch)
  found = np.asarray(quick(classifier.apply)({"params": params}, x, batch))
  hidden, logits = params["hidden"], params["logits"]
  for m, columns in enumerate(comments(SEGMENTS[0, 0])):
    own = x[0, 0, columns]
    vector = own.mean(axis=0) if classify_from == "mean" else own[0]
    vector = np.tanh(vector @ hidden["kernel"] + hidden["bias"])
    expected = vector @ logits["kernel"] + logits["bias"]
    np.testing.assert_allclose(found[0, 0, m], expected, atol=1e-6)


# ---- The model ---------------------------------------------------------------------


def used_of(batch):
  return batch["decoder_loss_weights"] > 0


@pytest.mark.long
def test_a_head_knows_labels_alone(head):
  model, params, _, found = head
  assert found["predicted"][1]["probabilities"].shape[-1] == model.config.num_labels
  assert "head" in params
  assert "logits_dense" not in params["decoder"]


def test_every_part_of_the_model_has_a_gradient(head):
  *_, found = head
  gradients = partitioning.flatten_names(found["gradients"])
  without = {name for name, leaf in gradients.items() if not np.any(leaf)}
  assert all(np.isfinite(leaf).all() for leaf in gradients.values())
  assert not without


def test_labels_depend_on_ancestors(head):
  *_, batch, found = head
  differ = found["evaluated"]["nll"] != found["without"]["nll"]
  assert (differ & used_of(batch)).any()


def test_a_target_scores_what_its_labels_losses_add_up_to(head):
  *_, batch, found = head
  evaluated = found["evaluated"]
  targets = np.take_along_axis(
    batch["decoder_segment_ids"], batch["decoder_masked_positions"], axis=-1
  )
  for example, target in np.ndindex(found["scored"].shape):
    own = (targets[example] == target + 1) & used_of(batch)[example]
    np.testing.assert_allclose(
      found["scored"][example, target], -evaluated["nll"][example][own].sum(), rtol=1e-5
    )
  total = (evaluated["nll"] * batch["decoder_loss_weights"]).sum()
  np.testing.assert_allclose(found["sums"]["loss"], total, rtol=1e-5)


def test_predictions_are_what_is_counted_as_correct(head):
  model, _, batch, found = head
  evaluated = found["evaluated"]
  labels, aux = found["predicted"]
  used = used_of(batch)
  np.testing.assert_array_equal(labels, evaluated["predictions"])
  right = (labels == evaluated["labels"])[used]
  np.testing.assert_array_equal(right, evaluated["correct"][used] == 1)
  assert not labels[~used].any()
  np.testing.assert_allclose(aux["probabilities"][used].sum(-1), 1, rtol=1e-4)
  chosen = np.take_along_axis(aux["probabilities"], labels[..., None], -1)[..., 0]
  np.testing.assert_allclose(np.exp(aux["scores"][used]), chosen[used], rtol=1e-4)
  if model.config.tagger != "crf":
    np.testing.assert_array_equal(aux["probabilities"].argmax(-1)[used], labels[used])


def test_a_chains_loss_is_one_for_the_comment_and_its_path_one_that_may_be(head):
  model, _, _, found = head
  if model.config.tagger != "crf":
    return
  labels, chains = found["predicted"][0], found["evaluated"]["chains"]
  np.testing.assert_array_equal(labels, crf.repair_iob2(labels, chains))
  shares = found["evaluated"]["nll"]
  for example, row in np.ndindex(chains.shape[:2]):
    for chain in set(chains[example, row]) - {0}:
      assert np.ptp(shares[example, row][chains[example, row] == chain]) == 0


def made_up(model, batch):
  """What a head might return, so that the network need not run."""
  rng = np.random.default_rng(5)
  labels = model.config.num_labels
  shape = (*batch["decoder_target_tokens"].shape, labels)
  logits = jnp.asarray(rng.normal(0, 1, shape), jnp.float32)
  if model.config.tagger != "crf":
    return logits
  sizes = ((labels, labels), (labels,), (labels,))
  drawn = (jnp.asarray(rng.normal(0, 1, size), jnp.float32) for size in sizes)
  return heads.ChainScores(
    logits, crf.forbid_invalid_transitions(crf.Transitions(*drawn))
  )


@pytest.mark.parametrize("name", ["classification", "linear", "crf"])
def test_weights_of_classes_make_a_weighted_mean_and_leave_measures_alone(
  name, packed, monkeypatch
):
  settings = labelled.HEADS[name]
  weights = (0.1, 2.0, 0.5, 3.0, 0.0)[: settings["num_labels"]]
  config = dataclasses.replace(
    small_models.CONFIG, **settings, class_weights=weights, z_loss=0.0
  )
  model = CommentTreeModel(config)
  batch = labelled.for_head(config, packed.batch)
  scores = made_up(model, batch)
  monkeypatch.setattr(model, "_scores", lambda *_: scores)
  monkeypatch.setattr(model, "_noted_scores", lambda *_: (scores, {}))
  both = quick(
    lambda batch: (
      model.loss_sums({}, batch, None),
      model.evaluate_batch({}, batch, "none"),
    )
  )
  (loss, weight, measured), tokens = jax.device_get(both(batch))
  each = np.array(weights)[np.asarray(tokens["labels"])] * batch["decoder_loss_weights"]
  np.testing.assert_allclose(weight, each.sum(), rtol=1e-5)
  np.testing.assert_allclose(loss, (each * tokens["nll"]).sum(), rtol=1e-5)
  used = used_of(batch)
  np.testing.assert_allclose(measured["loss"], np.sum(tokens["nll"][used]), rtol=1e-5)
  assert measured["weights"] == used.sum()


def test_emissions_are_what_a_chain_has_for_logits(packed, monkeypatch):
  model = CommentTreeModel(
    dataclasses.replace(small_models.CONFIG, **labelled.HEADS["crf"])
  )
  batch = labelled.for_head(model.config, packed.batch)
  scores = made_up(model, batch)
  monkeypatch.setattr(model, "_scores", lambda *_: scores)
  assert model.logits({}, batch) is scores.emissions_BGMC
  # And all that is said of it is by brute force right in test_crf.py.
  decode = quick(lambda s, b: crf.viterbi(s.emissions_BGMC, b, s.transitions))
  predict = quick(lambda batch: model.predict_batch({}, batch))
  path = decode(scores, heads.chains_of(batch))
  np.testing.assert_array_equal(predict(batch), path)


def test_dropout_of_a_head_draws_anew():
  config = dataclasses.replace(
    small_models.CONFIG, emb_dim=WIDTH, num_labels=3, head_dropout_rate=0.5
  )
  tagger = heads.Tagger(config, False)
  batch = {
    "decoder_segment_ids": SEGMENTS,
    "decoder_masked_positions": np.broadcast_to(np.arange(8), SEGMENTS.shape),
  }
  x = states()
  params = drawn(tagger, x, batch)
  apply = quick(
    lambda key: tagger.apply({"params": params}, x, batch, rngs={"dropout": key})
  )
  one, other, same = (apply(jax.random.key(i)) for i in (0, 1, 0))
  assert np.any(one != other)
  np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("name", labelled.HEADS)
def test_heads_lie_on_meshes_by_rules(name, packed):
  config = dataclasses.replace(
    small_models.CONFIG, **labelled.HEADS[name], vocab_size=32
  )
  model = CommentTreeModel(config)
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), packed.shapes)
  )
  mesh = jax.sharding.AbstractMesh((1, 1, 2, 2), ("slice", "data", "fsdp", "model"))
  config = PartitioningConfig(fsdp_min_elements=1)
  shardings = partitioning.parameter_shardings(
    variables["params"], variables["params_axes"], mesh, config
  )
  kernels = {
    name: sharding.spec
    for name, sharding in partitioning.flatten_names(shardings["head"]).items()
    if name.endswith("kernel")
  }
  assert all("fsdp" in spec or "model" in spec for spec in kernels.values())


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"head": "tagging", "num_labels": 4}, "must be odd"),
    ({"head": "tagger"}, "must be one of 'masked_lm'"),
    ({"classify_from": "last"}, "must be one of 'mean'"),
    ({"num_labels": 3, "class_weights": (1.0,)}, "one for each"),
  ],
)
def test_wrong_settings_of_a_head_are_one_line(settings, message):
  with pytest.raises(UserError, match=message):
    ModelConfig(**settings)


def test_a_head_without_labels_is_refused():
  with pytest.raises(UserError, match="num_labels = 0"):
    CommentTreeModel(dataclasses.replace(small_models.CONFIG, head="classification"))


@pytest.mark.long
def test_labels_are_predicted_with_all_that_tells_of_ancestors_but_what_is_of_tokens(
  make, packed
):
  model, params = make(
    **labelled.HEADS["crf"],
    nearest_context_tokens=7,
    num_thread_layers=1,
    normalize_pooled_vectors=True,
    ancestor_pointer=True,
    vectors_to_logits=True,
    dropout_rate=0.1,
  )
  assert not {"pointer", "vectors_to_logits"} & set(params)
  batch = labelled.for_head(model.config, packed.batch)

  def loss(params, key):
    return model.loss_sums(params, batch, key)[0::2]

  gradients, sums = quick(jax.grad(loss, has_aux=True))(params, jax.random.key(0))
  assert {"accuracy", "loss"} <= set(sums)
  assert "logits_accuracy" not in sums
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(gradient).all(), name
    assert np.any(gradient) or name.endswith("['key']['bias']"), name
