from __future__ import annotations

import dataclasses
import io

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from commentree.console import Console
from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training.checkpointing import checkpoints, run_record
from commentree.training.config import TrainConfig
from commentree.training.optim import learning_rates, optimizers
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.optim.t5x_optimizer import OptaxOptimizer
from commentree.training.partitioning import flatten_names
from commentree.training.reports import parameter_table
from commentree.training.train import train

# As models name them, unrolled and stacked; three layers in the encoder, two below the
# decoder's top.
UNROLLED = {
  "token_embedder": {"embedding": jnp.ones((5, 4))},
  "encoder": {
    **{f"layers_{i}": {"mlp": {"wi": {"kernel": jnp.ones((4, 6))}}} for i in range(3)},
    "relpos_bias": {"rel_embedding": jnp.ones((2, 4))},
    "encoder_norm": {"scale": jnp.ones(4)},
  },
  "decoder": {
    f"layers_{i}": {"mlp": {"wi": {"kernel": jnp.ones((4, 6))}}} for i in range(2)
  },
  "head": {"logits": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}},
}
STACKED = {
  **UNROLLED,
  "encoder": {
    "layers": {"mlp": {"wi": {"kernel": jnp.ones((3, 4, 6))}}},
    "relpos_bias": {"rel_embedding": jnp.ones((2, 4))},
    "encoder_norm": {"scale": jnp.ones(4)},
  },
  "decoder": {"layers": {"mlp": {"wi": {"kernel": jnp.ones((2, 4, 6))}}}},
}
OPTIMIZERS = ("adamw", "adafactor", "sgd")


def config(name="sgd", **settings):
  kwargs = {"min_dim_size_to_factor": 2} if name == "adafactor" else {}
  return OptimizerConfig(name=name, kwargs=kwargs, **settings)


def gradients(params, step=0):
  return jax.tree.map(
    lambda p: jnp.cos(p + step + jnp.arange(p.size).reshape(p.shape)), params
  )


def steps(config, params, count=3):
  """Parameters after some steps, and the optimizer's state."""
  optimizer = optimizers.make_optimizer(config, lambda step: 0.1 / (1 + step))
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, number):
    updates, state = optimizer.update(gradients(params, number), state, params)
    return optax.apply_updates(params, updates), state

  for number in range(count):
    params, state = step(params, state, number)
  return params, state


# ---- Which multiple ----------------------------------------------------------------


def test_the_first_rule_that_matches_a_whole_name_counts():
  rules = ((r"head\..*", 2), (r"head\.logits\.bias|.*embedding", 0.5), ("head", 9))
  with pytest.raises(UserError, match="'head' decides for no parameter"):
    learning_rates.multiples(config(learning_rate_rules=rules), UNROLLED)
  found = learning_rates.multiples(config(learning_rate_rules=rules[:2]), UNROLLED)
  assert found["head.logits.bias"] == 2
  assert found["token_embedder.embedding"] == 0.5
  assert found["encoder.relpos_bias.rel_embedding"] == 0.5
  assert found["encoder.encoder_norm.scale"] == 1


@pytest.mark.parametrize("params", [UNROLLED, STACKED], ids=["unrolled", "stacked"])
def test_layers_decay_from_the_top_of_either_stack(params):
  found = learning_rates.multiples(config(layer_decay=0.5), params)
  layers = {side: [] for side in ("encoder", "decoder")}
  for name, multiple in found.items():
    if ".layers" in name:
      layers[name.split(".")[0]] += np.atleast_1d(multiple).tolist()
  assert layers == {"encoder": [1 / 8, 1 / 4, 1 / 2], "decoder": [1 / 4, 1 / 2]}
  assert found["encoder.relpos_bias.rel_embedding"] == 1 / 8
  assert found["token_embedder.embedding"] == 1 / 16
  assert found["encoder.encoder_norm.scale"] == 1
  assert found["head.logits.kernel"] == 1


def test_rules_name_stacked_layers_one_by_one_and_are_times_the_decay():
  rules = ((r"encoder\.layers_0\..*", 0), (r"(en|de)coder\..*", 3))
  found = learning_rates.multiples(
    config(learning_rate_rules=rules, layer_decay=0.5), STACKED
  )
  np.testing.assert_allclose(found["encoder.layers.mlp.wi.kernel"], [0, 0.75, 1.5])
  np.testing.assert_allclose(found["decoder.layers.mlp.wi.kernel"], [0.75, 1.5])


@pytest.mark.parametrize(
  ("params", "layers"), [(UNROLLED, "layers_1"), (STACKED, "layers")]
)
def test_fresh_parameters_have_a_multiple_unless_a_rule_names_them(params, layers):
  fresh = [
    f"decoder.{layers}.mlp.wi.kernel",
    "head.logits.bias",
    "head.logits.kernel",
  ]
  given = config(learning_rate_rules=((r"head\..*kernel", 2),), fresh_multiple=7)
  found = learning_rates.multiples(learning_rates.with_fresh(given, fresh), params)
  assert found["head.logits.bias"] == 7
  assert found["head.logits.kernel"] == 2
  assert (found[f"decoder.{layers}.mlp.wi.kernel"] == 7).all()
  others = set(found) - set(fresh)
  assert {
    float(multiple.max()) for name, multiple in found.items() if name in others
  } == {1}
  # Where rules name all of them, and where there are none.
  for ours in ([], ["head.logits.kernel"]):
    assert learning_rates.with_fresh(given, ours) == given
  one = config(fresh_multiple=1)
  assert learning_rates.with_fresh(one, fresh) == one


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_multiples_leave_the_optimizers_state_as_it_is(name):
  """So that a run continues under T5X, whose trainer knows of no warm start of ours."""
  plain = optimizers.make_optimizer(config(name), lambda _: 0.1).init(UNROLLED)
  ruled = config(name, learning_rate_rules=((r"head\..*", 7),))
  state = optimizers.make_optimizer(ruled, lambda _: 0.1).init(UNROLLED)
  assert jax.tree.structure(state) == jax.tree.structure(plain)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"learning_rate_rules": [("hed.*", 1)]}, "'hed.*' decides for no parameter"),
    ({"learning_rate_rules": [(".*", 1), ("head.*", 0)]}, "'head.*' decides for no"),
    ({"learning_rate_rules": [(".*", 0)]}, "every parameter is frozen"),
    ({"learning_rate_rules": ["head"]}, "each must be"),
    ({"learning_rate_rules": [("head(", 1)]}, "no regular expression"),
    ({"learning_rate_rules": [("head.*", -1)]}, "must be a number of at least 0"),
    ({"layer_decay": 1.5}, "from 0.001 to 1"),
    ({"fresh_multiple": 0}, "fresh_multiple = 0: must be a number of at least 0.001"),
  ],
)
def test_a_wrong_rule_is_one_line(settings, message):
  with pytest.raises(UserError, match=message) as raised:
    steps(config(**settings), UNROLLED)
  assert "\n" not in str(raised.value)


# ---- What it does ------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_the_multiple_of_what_it_would_be(name):
  settings = {"name": name, "weight_decay": 0.1, "clip_norm": None}
  plain, _ = steps(config(**settings), UNROLLED, 1)
  rules = ((r"head\..*", 0.25),)
  slower, _ = steps(
    config(**settings, learning_rate_rules=rules, layer_decay=0.5), UNROLLED, 1
  )
  multiples = learning_rates.multiples(
    config(learning_rate_rules=rules, layer_decay=0.5), UNROLLED
  )
  before, plain, slower = map(flatten_names, (UNROLLED, plain, slower))
  for path, multiple in multiples.items():
    moved = np.asarray(plain[path] - before[path])
    assert moved.any()
    np.testing.assert_allclose(
      np.asarray(slower[path] - before[path]), multiple * moved, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("params", [UNROLLED, STACKED], ids=["unrolled", "stacked"])
def test_what_is_frozen_stays_bit_by_bit_and_has_no_state(name, params):
  rules = ((r"(token_embedder|encoder)\..*", 0), (r"decoder\.layers_0\..*", 0))
  frozen = config(name, weight_decay=0.1, learning_rate_rules=rules)
  after, state = steps(frozen, params)
  multiples = learning_rates.multiples(frozen, params)
  before, after = flatten_names(params), flatten_names(after)
  for path, multiple in multiples.items():
    still = np.broadcast_to(multiple == 0, before[path].shape[: multiple.ndim])
    same = np.asarray(before[path] == after[path])
    assert same[still].all()
    assert not same[~still].all(axis=-1).any()
  text = str(jax.tree_util.tree_leaves_with_path(state))
  assert "token_embedder" not in text
  assert "'encoder'" not in text
  assert ("'head'" in text) == (name != "sgd")


@pytest.mark.long
def test_what_is_frozen_does_not_count_in_clipping():
  rules = ((r"(token_embedder|encoder|decoder)\..*", 0),)
  settings = {"clip_norm": 0.1, "learning_rate_rules": rules}
  optimizer = optimizers.make_optimizer(config(**settings), lambda _: 1.0)
  huge = jax.tree.map(lambda p: 1e3 * jnp.ones_like(p), UNROLLED)
  huge["head"] = gradients(UNROLLED["head"])
  updates, _ = optimizer.update(huge, optimizer.init(UNROLLED), UNROLLED)
  np.testing.assert_allclose(optax.global_norm(updates), 0.1, rtol=1e-5)


def test_without_rules_nothing_is_another():
  plain = optimizers.make_optimizer(config("adamw"), lambda _: 0.1)
  names = jax.tree_util.tree_leaves_with_path(plain.init(UNROLLED))
  assert not any("inner_states" in jax.tree_util.keystr(path) for path, _ in names)
  facts = run_record.training_facts(_run_config(OptimizerConfig()))
  ruled = OptimizerConfig(learning_rate_rules=[("head.*", 2)], layer_decay=0.9)
  more = run_record.training_facts(_run_config(ruled))
  changed = {"OptimizerConfig.learning_rate_rules", "OptimizerConfig.layer_decay"}
  assert {name for name in more if more[name] != facts[name]} == changed


def _run_config(optimizer):
  return TrainConfig("run", 10, 8, optimizer=optimizer)


# ---- A run -------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_with_frozen_parameters_goes_on_where_it_stood(
  make_config, model, console, tmp_path
):
  optimizer = OptimizerConfig(
    name="adamw", learning_rate_rules=[("embedding|kernel", 0), ("scale", 0.5)]
  )
  whole = make_config(optimizer=optimizer, model_dir=str(tmp_path / "whole"))
  train(whole, model, stub.Batches, console=console)
  halves = make_config(optimizer=optimizer, model_dir=str(tmp_path / "halves"))
  for steps_done in (3, 6):
    part = dataclasses.replace(halves, train_steps=steps_done)
    train(part, model, stub.Batches, console=console)
  one, other, first = (
    checkpoints.path_of(tmp_path / run, step)
    for run, step in (("whole", 6), ("halves", 6), ("halves", 3))
  )
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device)
    for name, shape in _STUB_SHAPES.items()
  }
  one, other, first = (checkpoints.restore_params(p, like) for p in (one, other, first))
  jax.tree.map(np.testing.assert_array_equal, one, other)
  for name in ("embedding", "kernel"):
    np.testing.assert_array_equal(one[name], first[name])
  for name in ("scale", "out"):
    assert np.any(one[name] != first[name])
  trained = sum(np.prod(_STUB_SHAPES[name]) for name in ("scale", "out"))
  assert f"parameters, {trained} of them trained" in printed(console)


_STUB_SHAPES = {
  "embedding": (stub.VOCAB, stub.WIDTH),
  "scale": (stub.WIDTH,),
  "kernel": (stub.WIDTH, 4 * stub.WIDTH),
  "out": (4 * stub.WIDTH, stub.VOCAB),
}


@pytest.mark.long
def test_t5xs_optimizer_freezes_as_well():
  definition = OptaxOptimizer(config("adamw", learning_rate_rules=[(r"head\..*", 0)]))
  optimizer = definition.create(flax.core.freeze(UNROLLED))
  stepped = optimizer.apply_gradient(gradients(UNROLLED), learning_rate=0.1)
  restored = optimizer.restore_state(stepped.state_dict())
  jax.tree.map(np.testing.assert_array_equal, restored, stepped)
  jax.tree.map(np.testing.assert_array_equal, stepped.target["head"], UNROLLED["head"])


def test_a_dry_run_shows_each_parameters_multiple(make_config):
  model = CommentTreeModel(
    ModelConfig(
      vocab_size=32, scan_layers=True, head="tagging", num_labels=3, tagger="crf"
    )
  )
  optimizer = OptimizerConfig(
    learning_rate_rules=[(r"token_embedder\..*", 0), (r"head\..*", 5)], layer_decay=0.5
  )
  console = Console(file=io.StringIO(), width=250)
  parameter_table.describe(make_config(optimizer=optimizer), model, console)
  lines = printed(console).splitlines()

  def row(name):
    return next(line for line in lines if f" {name} " in line)

  assert "frozen" in row("token_embedder.embedding")
  assert "x 5" in row("head.transitions")
  assert "x 0.25-0.5" in row("decoder.layers.mlp.wo.kernel")
