from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.tests.support.training import stub
from commentree.training import data_input, partitioning
from commentree.training import state as state_lib
from commentree.training import step as step_lib
from commentree.training.optim import optimizers, schedules
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig


def run(config, batches, *, dropout=0.0):
  """Takes a step a batch; returns first parameters, last state, sums by step."""
  model = stub.StubModel(dropout)
  mesh = partitioning.make_mesh(config.partitioning)
  schedule = schedules.make_schedule(config.optimizer.schedule, config.train_steps)
  optimizer = optimizers.make_optimizer(config.optimizer, schedule)
  params = state_lib.abstract_params(model, batches[0], mesh, config.partitioning)
  like = state_lib.abstract_state(params, optimizer, mesh, config.partitioning)
  state = state_lib.initial_state(model, optimizer, batches[0], like, jax.random.key(0))
  before = jax.device_get(state.params)
  train_step = step_lib.make_train_step(model, optimizer, schedule, config, mesh, like)
  history = []
  for batch in batches:
    with partitioning.in_mesh(mesh, config.partitioning):
      placed = data_input.ToGlobalBatch(mesh)(batch)
      state, sums = train_step(state, placed, jax.random.key(1))
    history.append(jax.device_get(sums))
  return before, jax.device_get(state), history


@pytest.fixture
def sgd():
  return OptimizerConfig(
    name="sgd",
    clip_norm=None,
    schedule=ScheduleConfig(name="constant", learning_rate=1.0, warmup_steps=0),
  )


@pytest.mark.long
def test_microbatches_give_the_same_step_although_their_weights_differ(
  make_config, sgd
):
  batches = [stub.random_batch(n, 8) for n in range(2)]
  _, whole, _ = run(make_config(optimizer=sgd), batches)
  _, cut, history = run(
    make_config(optimizer=sgd, gradient_accumulation_steps=4), batches
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    whole.params,
    cut.params,
  )
  assert history[0]["weights"] == batches[0]["decoder_loss_weights"].sum()


def test_the_gradient_is_that_of_the_mean_over_masked_tokens(make_config, sgd):
  batch = stub.random_batch(0, 8)

  def mean(params):
    loss, weight, _ = stub.StubModel().loss_sums(params, batch, None)
    return loss / weight

  before, state, history = run(make_config(optimizer=sgd), [batch])
  loss, grads = jax.jit(jax.value_and_grad(mean))(before)
  jax.tree.map(
    lambda old, g, new: np.testing.assert_allclose(old - g, new, rtol=1e-5, atol=1e-6),
    before,
    grads,
    state.params,
  )
  np.testing.assert_allclose(history[0]["objective"], loss, rtol=1e-6)


def test_a_batch_of_padding_moves_nothing_and_is_finite(make_config, sgd):
  empty = {k: np.zeros_like(v) for k, v in stub.random_batch(0, 8).items()}
  before, state, history = run(make_config(optimizer=sgd), [empty])
  assert history[0]["finite"] == 1
  jax.tree.map(np.testing.assert_array_equal, before, state.params)


@pytest.mark.long
def test_every_step_and_microbatch_draws_its_own_dropout(make_config):
  frozen = OptimizerConfig(
    name="sgd", schedule=ScheduleConfig(name="constant", learning_rate=0.0)
  )
  # Microbatches of one and the same forest: example i goes to microbatch i mod 2.
  one = stub.random_batch(0, 1)
  batch = {name: np.concatenate([values] * 2) for name, values in one.items()}
  config = make_config(optimizer=frozen, gradient_accumulation_steps=2)
  _, state, (first, second) = run(config, [batch, batch], dropout=0.5)
  assert first["loss"] != second["loss"]
  key = jax.random.fold_in(jax.random.key(1), 0)
  losses = [
    stub.StubModel(0.5).loss_sums(state.params, one, jax.random.fold_in(key, n))[0]
    for n in range(2)
  ]
  assert abs(losses[0] - losses[1]) > 1e-3
  np.testing.assert_allclose(first["loss"], sum(losses), rtol=1e-5)


def test_a_step_that_is_not_finite_is_skipped_if_so_set(make_config, sgd):
  good = stub.random_batch(0, 8)
  weights = np.full_like(good["decoder_loss_weights"], np.inf)
  bad = {**good, "decoder_loss_weights": weights}
  config = make_config(optimizer=sgd, stop_on_nonfinite=False)
  before, state, history = run(config, [bad])
  assert history[0]["finite"] == 0
  assert state.step == 1
  jax.tree.map(np.testing.assert_array_equal, before, state.params)


def test_the_reported_learning_rate_is_that_of_the_step(make_config):
  *_, history = run(make_config(), [stub.random_batch(n, 8) for n in range(3)])
  rates = [float(h["learning_rate"]) for h in history]
  np.testing.assert_allclose(rates, [0.005, 0.01, 0.01 * (2 / 3) ** 0.5], rtol=1e-6)


def test_the_state_survives_the_form_that_t5x_reads(make_config):
  _, state, _ = run(make_config(), [stub.random_batch(0, 8)])
  tree = state_lib.to_tree(state)
  assert set(tree) == {"target", "state"}
  assert set(tree["state"]) == {"step", "param_states"}
  back = state_lib.from_tree(tree, state)
  assert jax.tree.structure(back) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, back, state)
  assert jnp.shape(back.step) == ()
