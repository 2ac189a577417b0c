"""Every combination of settings runs, and those that must not matter do not."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.config import AncestorPositions, ModelConfig, Pooling
from commentree.models.heads.losses import token_losses
from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import forests, small_models


def loss_and_gradients(model, params, batch):
  return jax.jit(
    jax.value_and_grad(lambda p: model.loss_fn(p, batch, None)[0]),
    compiler_options=forests.QUICK_COMPILE,
  )(params)


@pytest.fixture(scope="module")
def halves(make, packed):
  """Returns the model's two halves, each compiled once for its setting.

  Encoder and pooling depend on `pooling` alone, the decoder on `ancestor_positions`
  alone: nine programs make up the twenty combinations.
  """
  common = {
    "vectors_per_comment": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dtype": "bfloat16",
  }
  compiled = functools.partial(jax.jit, compiler_options=forests.QUICK_COMPILE)
  batch = packed.batch

  @functools.cache
  def encoder(pooling):
    model, params = make(pooling=pooling, ancestor_positions="none", **common)

    def encode(params):
      encoded = model.encode(params, batch)
      return encoded.vectors_BEJD, encoded

    def gradients(params, of_vectors):
      _, pull_back, _ = jax.vjp(encode, params, has_aux=True)
      return pull_back(of_vectors)[0]

    return params, compiled(encode), compiled(gradients)

  @functools.cache
  def decoder(positions):
    model, params = make(ancestor_positions=positions, **common)

    def loss(params, vectors, encoded):
      read = dataclasses.replace(encoded, vectors_BEJD=vectors)
      logits = model.module.apply({"params": params}, read, batch, method="decode")
      return token_losses(logits, batch["decoder_target_tokens"]).loss.mean()

    return params, compiled(jax.value_and_grad(loss, argnums=(0, 1)))

  return encoder, decoder


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("positions", get_args(AncestorPositions))
def test_every_pooling_runs_with_every_position_kind_and_has_finite_gradients(
  halves, pooling, positions
):
  encoder, decoder = halves
  encoder_params, encode, encoder_gradients = encoder(pooling)
  decoder_params, decode = decoder(positions)
  loss, (of_decoder, of_vectors) = decode(decoder_params, *encode(encoder_params))
  of_encoder = encoder_gradients(encoder_params, of_vectors)
  assert np.isfinite(loss)
  trained = {
    "encoder": of_encoder["encoder"],
    "pooling": of_encoder.get("pooling"),
    "decoder": of_decoder["decoder"],
    "ancestors": of_decoder["ancestors"],
  }
  for path, gradient in jax.tree_util.tree_leaves_with_path(trained):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(gradient).all(), name
    assert np.abs(gradient).max() > 0, name
    assert gradient.dtype == jnp.float32, name


@pytest.mark.parametrize(
  ("family", "ways"),
  [
    ("t5", (("full", False), ("minimal", False), ("minimal", True))),
    ("roberta", (("minimal", True),)),
  ],
)
def test_scanned_and_rematerialized_layers_compute_the_same(make, packed, family, ways):
  changes = {**small_models.FAMILIES[family], "num_encoder_layers": 2}
  model, params = make(**changes)
  loss, gradients = loss_and_gradients(model, params, packed.batch)

  def scanned_form(tree):
    """Stacks `layers_0` and `layers_1` of either side into `layers`."""
    tree = dict(tree)
    for side in ("encoder", "decoder"):
      stack = dict(tree[side])
      layers = [stack.pop(f"layers_{i}") for i in range(2)]
      stack["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
      tree[side] = stack
    return tree

  for policy, scan in ways:
    again, drawn = make(remat_policy=policy, scan_layers=scan, **changes)
    form = scanned_form if scan else dict
    assert jax.tree.map(jnp.shape, form(params)) == jax.tree.map(jnp.shape, drawn)
    same_loss, same_gradients = loss_and_gradients(again, form(params), packed.batch)
    np.testing.assert_allclose(same_loss, loss, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      same_gradients,
      form(gradients),
    )


@pytest.mark.parametrize("name", ["t5", "roberta"])
def test_rematerialization_saves_nothing_or_what_projections_give(make, packed, name):
  changes = {**small_models.FAMILIES[name], "num_encoder_layers": 2}

  def residuals(policy):
    model, params = make(remat_policy=policy, **changes)
    _, backward = jax.eval_shape(
      lambda p: jax.vjp(lambda p: model.loss_sums(p, packed.batch, None)[0], p), params
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backward))

  config = make(**changes)[0].config
  heads, mlps = config.num_heads * config.head_dim, len(config.mlp_activations)
  encoder, decoder = (
    packed.batch[f"{side}_input_tokens"].size for side in ("encoder", "decoder")
  )
  # Query, key, value and the way back; and in the decoder a query of the vectors, too.
  projected = (encoder + decoder) * (3 * heads + 2 * config.emb_dim)
  projected += (encoder + decoder) * mlps * config.mlp_dim
  projected += decoder * (heads + config.emb_dim)
  assert config.num_encoder_layers == config.num_decoder_layers == 2
  saved = residuals("minimal") - residuals("full")
  assert 1.8 * projected < saved < 2.3 * projected
  assert residuals("minimal") < residuals("none")


def test_dropout_draws_anew_by_key_and_not_without_one(make, packed):
  model, params = make(dropout_rate=0.5, num_encoder_layers=1, num_decoder_layers=1)
  plain, _ = make(num_encoder_layers=1, num_decoder_layers=1)
  loss = jax.jit(
    lambda key: model.loss_fn(params, packed.batch, key)[0],
    compiler_options=forests.QUICK_COMPILE,
  )
  losses = [float(loss(jax.random.key(seed))) for seed in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]
  without = [
    jax.jit(one.eval_fn, compiler_options=forests.QUICK_COMPILE)(params, packed.batch)
    for one in (model, plain)
  ]
  assert without[0][0] == without[1][0]


@pytest.mark.parametrize(
  ("family", "tied"), [("t5", False), ("t5", True), ("roberta", False)]
)
def test_the_loss_starts_near_that_of_guessing(packed, family, tied):
  config = ModelConfig(
    vocab_size=4000,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dtype="float32",
    logits_via_embedding=tied,
    **small_models.FAMILIES[family],
  )
  model = CommentTreeModel(config)

  def initial_loss(key):
    params = model.get_initial_variables(key, packed.shapes)["params"]
    return model.loss_fn(params, packed.batch, None)[1]["loss"].compute()

  # Unit logits cost half a nat.
  loss = jax.jit(initial_loss, compiler_options=forests.QUICK_COMPILE)(
    jax.random.key(0)
  )
  assert math.log(4000) - 0.5 < loss < math.log(4000) + 1.0


@pytest.mark.parametrize(
  "changes",
  [
    {"pooling": "sum"},
    {"family": "bert"},
    {"position_offset": 514},
    {"layer_norm_epsilon": -1.0},
    {"logits_via_embedding": "yes"},
    {"normalize_pooled_vectors": 1},
    {"num_thread_layers": -1},
    {"logits_via_embedding": True, "family": "roberta"},
    {"ancestor_positions": "rope"},
    {"remat_policy": "some"},
    {"mlp_activations": ("geglu",)},
    {"mlp_activations": ()},
    {"vocab_size": -1},
    {"dropout_rate": 1.5},
    {"dtype": "float16"},
    {"pointer_logits_loss_weight": -1.0},
    {"label_smoothing": 0.1, "ancestor_pointer": True},
  ],
)
def test_a_bad_setting_is_one_line_naming_it(changes):
  with pytest.raises(UserError, match=f"ModelConfig.{next(iter(changes))}") as raised:
    ModelConfig(**{"vocab_size": 8, **changes})
  assert "\n" not in str(raised.value)


def test_the_compute_type_of_the_family_of_roberta_is_the_set_one(make, packed):
  """Gradients are float32 and finite, though all between is bfloat16."""
  model, params = make(
    dtype="bfloat16",
    num_encoder_layers=1,
    num_decoder_layers=1,
    **small_models.FAMILIES["roberta"],
  )
  vectors = jax.eval_shape(lambda p: model.encode(p, packed.batch).vectors_BEJD, params)
  assert vectors.dtype == jnp.bfloat16
  loss, gradients = loss_and_gradients(model, params, packed.batch)
  assert np.isfinite(loss)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    name = jax.tree_util.keystr(path)
    assert gradient.dtype == jnp.float32, name
    assert np.isfinite(gradient).all(), name
    assert np.abs(gradient).max() > 0, name


# Of both types' vectors, the first dimension: neither, the first's, the second's.
_SHIFTS = np.float32([np.zeros((2, 1)), [[1], [0]], [[0], [1]]]) * np.eye(1, 16)


def test_of_bert_s_types_all_tokens_have_the_first(make, packed):
  model, params = make(
    num_encoder_layers=1, num_decoder_layers=1, **small_models.FAMILIES["bert"]
  )
  types = params["token_embedder"]["type_embedding"]
  loss = jax.jit(
    lambda types: model.loss_fn(
      {
        **params,
        "token_embedder": {**params["token_embedder"], "type_embedding": types},
      },
      packed.batch,
      None,
    )[0],
    compiler_options=forests.QUICK_COMPILE,
  )
  before, first, second = (loss(types + shift) for shift in _SHIFTS)
  assert before == second
  assert before != first


def test_rows_longer_than_there_are_positions_are_a_user_error(make, packed):
  length = packed.batch["encoder_positions"].shape[-1]
  changes = {**small_models.FAMILIES["roberta"], "num_positions": length + 1}
  message = f"rows of {length} tokens, but ModelConfig.num_positions = {length + 1}"
  model = CommentTreeModel(dataclasses.replace(small_models.CONFIG, **changes))
  _, params = make(**changes)
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda: model.loss_fn(params, packed.batch, None))
