from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from commentree.errors import UserError
from commentree.tests.support.training import published_optimizers as published
from commentree.training import partitioning, state
from commentree.training.config import PartitioningConfig
from commentree.training.optim import adafactor, optimizer_names, optimizers
from commentree.training.optim.optimizer_config import OptimizerConfig

STEPS = 4
SCALES = (1.0, 0.1)
SPARED = ("scale", "bias", "rel_embedding", "null_vector")


def drawn(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
  values = np.random.default_rng(seed).normal(scale=scale, size=shape)
  return values.astype(np.float32)


def tree(leaf, stacked: bool = False, width: int = 6):
  """A tree like a model's; `leaf` makes an array of a shape, a seed and a scale.

  Layers differ in size, so that what they would share shows.
  """
  layers = [
    {
      "mlp": {"kernel": leaf((width, width + 2), 10 + n, scale)},
      "norm": {"scale": leaf((width,), 20 + n, scale)},
    }
    for n, scale in enumerate(SCALES)
  ]
  if stacked:
    encoder = {"layers": jax.tree.map(lambda *each: np.stack(each), *layers)}
  else:
    encoder = {f"layers_{n}": layer for n, layer in enumerate(layers)}
  return {
    "encoder": {
      **encoder,
      "relpos_bias": {"rel_embedding": leaf((2, 4), 1, 1.0)},
    },
    "ancestors": {"null_vector": leaf((4,), 3, 1.0)},
    "token_embedder": {"embedding": leaf((10, width), 4, 1.0)},
  }


def first(stacked: bool = False, width: int = 6):
  return tree(
    lambda shape, seed, scale: drawn(*shape, seed=seed, scale=scale), stacked, width
  )


def gradient(step: int, stacked: bool = False, width: int = 6):
  # Of another size in each layer, too.
  return tree(
    lambda shape, seed, scale: drawn(
      *shape, seed=100 * (step + 1) + seed, scale=1 / scale
    ),
    stacked,
    width,
  )


def rate(step) -> float:
  return 0.1 / (1 + step)


def trained(config: OptimizerConfig, stacked: bool = False, width: int = 6):
  """Parameters after some steps, by layer whether or not they were stacked."""
  optimizer = optimizers.make_optimizer(config, rate)
  params = jax.tree.map(jnp.asarray, first(stacked, width))
  states = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for step in range(STEPS):
    updates, states = update(gradient(step, stacked, width), states, params)
    params = optax.apply_updates(params, updates)
  return unstacked(params)


def unstacked(params):
  encoder = dict(params["encoder"])
  if "layers" in encoder:
    layers = encoder.pop("layers")
    for n in range(len(SCALES)):
      encoder[f"layers_{n}"] = jax.tree.map(lambda leaf, n=n: leaf[n], layers)
  return {**params, "encoder": encoder}


def by_paper(step_of_array, width: int = 6):
  """What a published algorithm makes of each array."""
  gradients = [gradient(step, width=width) for step in range(STEPS)]

  def of(path, x, *grads):
    return step_of_array(path[-1].key, x, grads)

  return jax.tree_util.tree_map_with_path(of, first(width=width), *gradients)


def assert_same(a, b, rtol=2e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=5e-6), a, b
  )


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("width", [6, 128])
def test_adafactor_is_the_papers_with_t5s_settings_layer_by_layer(stacked, width):
  # Kernels of width 128 are factored.
  expected = by_paper(lambda name, x, g: published.adafactor(x, g, rate), width)
  assert_same(trained(OptimizerConfig(name="adafactor"), stacked, width), expected)


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"momentum": 0.9, "weight_decay_rate": 0.01, "min_dim_size_to_factor": 2},
    {"multiply_by_parameter_scale": False, "clipping_threshold": None},
  ],
)
def test_our_adafactor_is_optaxs_bit_by_bit(kwargs):
  assert inspect.signature(adafactor.adafactor).parameters.keys() == (
    inspect.signature(optax.adafactor).parameters.keys()
  )
  # Sizes at which the least scale counts, and at which it does not.
  params = {
    name: jnp.asarray(drawn(128, 130, seed=n, scale=scale))
    for n, (name, scale) in enumerate({"a": 1.0, "b": 1e-4}.items())
  }
  params["zero"] = jnp.zeros((4,))
  gradients = jax.tree.map(lambda p: jnp.sin(100 * p) + 0.1, params)
  ours, theirs = (
    after_steps(make(learning_rate=rate, **kwargs), params, gradients)
    for make in (adafactor.adafactor, optax.adafactor)
  )
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def after_steps(transform, params, gradients):
  """Parameters and state after some steps."""
  state = transform.init(params)
  update = jax.jit(transform.update)
  for _ in range(STEPS):
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_adamw_and_lamb_are_the_papers_and_decay_spares_norms_and_biases(name, stacked):
  def by_name(leaf, x, g):
    decay = 0.0 if leaf.endswith(SPARED) else 0.5
    return getattr(published, name)(x, g, rate, decay)

  config = OptimizerConfig(name=name, clip_norm=None, weight_decay=0.5)
  assert_same(trained(config, stacked), by_paper(by_name))


def test_sgd_takes_its_arguments_by_name():
  kwargs = {"momentum": 0.5, "nesterov": True}
  config = OptimizerConfig(name="sgd", clip_norm=None, kwargs=kwargs)
  assert_same(
    trained(config), by_paper(lambda name, x, g: published.nesterov(x, g, rate, 0.5))
  )


def test_gradients_are_clipped_by_their_global_norm():
  optimizer = optimizers.make_optimizer(
    OptimizerConfig(name="sgd", clip_norm=0.5), lambda step: 1.0
  )
  updates, _ = optimizer.update(gradient(0), optimizer.init(first()), first())
  flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)])
  whole = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient(0))])
  np.testing.assert_allclose(flat, -0.5 * whole / np.linalg.norm(whole), rtol=1e-4)


def test_adafactor_alone_is_not_clipped_unless_asked():
  assert OptimizerConfig().clip_norm is None
  assert OptimizerConfig(clip_norm=1.0).clip_norm == 1.0
  assert OptimizerConfig(name="adamw").clip_norm == 1.0
  assert OptimizerConfig(name="adamw", clip_norm=None).clip_norm is None


@pytest.mark.long
@pytest.mark.parametrize(
  "name", ["sgd", "adafactor", "adamw", "lion", "adopt", "novograd"]
)
def test_decay_is_times_the_learning_rate(name):
  def first_update(**settings):
    config = OptimizerConfig(name=name, clip_norm=None, **settings)
    optimizer = optimizers.make_optimizer(config, rate)
    return optimizer.update(gradient(0), optimizer.init(first()), first())[0]

  taken = jax.tree.map(
    lambda a, b: np.asarray(b - a), first_update(weight_decay=0.5), first_update()
  )
  for leaf in ("mlp", "norm"):
    (before,) = jax.tree.leaves(first()["encoder"]["layers_0"][leaf])
    (decay,) = jax.tree.leaves(taken["encoder"]["layers_0"][leaf])
    share = 0.1 * 0.5 if leaf == "mlp" else 0.0
    np.testing.assert_allclose(decay, share * before, rtol=1e-3, atol=1e-6)


def usable() -> list[str]:
  """Names of optax's optimizers, all but those that are refused."""
  names = []
  for name in sorted(n for n in optimizer_names.listed() if n.islower()):
    made = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    takes = (
      inspect.isfunction(made) and "learning_rate" in inspect.signature(made).parameters
    )
    refused = name in optimizer_names.REFUSED or name.startswith("scale_by_")
    if takes and not refused:
      names.append(name)
  return names


def test_the_optimizers_that_the_readme_names_are_among_those_tested():
  assert {*NAMED} < {*usable()}


NAMED = ("adafactor", "adamw", "lamb", "muon", "prodigy", "schedule_free_adamw")


@pytest.mark.long
@pytest.mark.parametrize(
  "name",
  [n if n in NAMED else pytest.param(n, marks=pytest.mark.slow) for n in usable()],
)
def test_each_optimizer_trains_and_keeps_its_state_stacked_or_not(name):
  mesh = partitioning.make_mesh(PartitioningConfig())
  whole = partitioning.replicated(mesh)
  optimizer = optimizers.make_optimizer(OptimizerConfig(name=name), rate)
  ends = []
  for stacked in (False, True):
    params = jax.tree.map(lambda x: jax.device_put(x, whole), first(stacked))
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params
    )
    like = state.abstract_state(abstract, optimizer, mesh, PartitioningConfig())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    def step(before, gradients):
      updates, states = optimizer.update(gradients, before.optimizer, before.params)
      params = optax.apply_updates(before.params, updates)
      return state.TrainState(before.step + 1, params, states)

    step = jax.jit(step, out_shardings=shardings)
    now = state.TrainState(jnp.int32(0), params, optimizer.init(params))
    assert jax.tree.map(jnp.shape, now) == jax.tree.map(lambda x: x.shape, like)
    for number in range(2):
      now = step(now, gradient(number, stacked))
      # As by way of a checkpoint.
      now = state.from_tree(jax.device_get(state.to_tree(now)), like)
    ends.append(unstacked(now.params))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ends[0], first())
  # Some begin with steps so small that they round to none in places.
  assert 0 < max(jax.tree.leaves(moved)) < np.inf
  if name != "noisy_sgd":  # each array has noise of its own
    assert_same(*ends, rtol=1e-4)


def test_schedule_free_is_evaluated_and_kept_at_its_average():
  config = OptimizerConfig(
    name="schedule_free_sgd",
    clip_norm=None,
    learning_rate_rules=((r"token_embedder\..*", 0.0),),
  )
  optimizer = optimizers.make_optimizer(config, lambda step: 0.1)
  params = jax.tree.map(jnp.asarray, first())
  states = optimizer.init(params)
  for step in range(STEPS):
    updates, states = optimizer.update(gradient(step), states, params)
    params = optax.apply_updates(params, updates)
  now = state.TrainState(jnp.int32(STEPS), params, states)

  def of(place):
    def frozen(name, x, g):
      if name == "embedding":
        return x
      return published.schedule_free_sgd(x, g, 0.1, 0.9)[place]

    return by_paper(frozen)

  assert_same(params, of(0), rtol=1e-4)
  assert_same(state.eval_params(now), of(1), rtol=1e-4)
  assert_same(state.to_tree(now)["target"], of(1), rtol=1e-4)


def test_muon_takes_the_matrices_of_layers_and_leaves_tables_to_adam():
  by_muon = trained(OptimizerConfig(name="muon"))
  by_adam = trained(OptimizerConfig(name="adam", kwargs={"nesterov": True}))
  assert_same(by_muon["token_embedder"], by_adam["token_embedder"])
  kernels = [p["encoder"]["layers_1"]["mlp"]["kernel"] for p in (by_muon, by_adam)]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.01


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"name": "adamwx"}, r"no such optimizer.*did you mean adamw\?"),
    ({"name": "global_norm"}, "takes no learning_rate"),
    ({"name": "scale_by_rprop"}, "is a part of one"),
    ({"name": "adamw", "kwargs": {"bb1": 0.9}}, r"takes no 'bb1'.*did you mean b1\?"),
    ({"name": "sm3"}, "constant learning rate"),
    ({"name": "sam"}, "second gradient"),
    ({"name": "momo"}, "needs the loss"),
    ({"name": "schedule_free"}, "name schedule_free_adamw"),
    ({"name": "prodigy", "weight_decay": 0.1}, "norms and biases too"),
    ({"name": "schedule_free_sgd", "layer_decay": 0.5}, "one learning rate"),
  ],
)
def test_a_wrong_optimizer_is_one_line_that_says_why(settings, message):
  with pytest.raises(UserError, match=message) as error:
    trained(OptimizerConfig(**settings))
  assert "\n" not in str(error.value)


def test_every_refused_optimizer_is_one_that_optax_has():
  for name in optimizer_names.REFUSED:
    assert hasattr(optax, name) or hasattr(optax.contrib, name)
