from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from commentree.errors import UserError
from commentree.training import optimizers
from commentree.training.config import OptimizerConfig

PARAMS = {
  "mlp": {"wi": {"kernel": jnp.full((4, 3), 2.0)}},
  "norm": {"scale": jnp.full((4,), 2.0)},
  "layers": {"norm": {"scale": jnp.full((2, 4), 2.0)}},
  "relpos_bias": {"rel_embedding": jnp.full((2, 4), 2.0)},
  "ancestors": {"distance_bias": jnp.full((2, 4), 2.0), "null_vector": jnp.ones((4,))},
}
GRADS = jax.tree.map(lambda p: jnp.linspace(1, 3, p.size).reshape(p.shape), PARAMS)


def first_update(learning_rate: float = 0.1, grads=GRADS, **settings):
  optimizer = optimizers.make_optimizer(
    OptimizerConfig(**settings), lambda step: jnp.float32(learning_rate)
  )
  return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]


def assert_same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_adafactor_is_optax_with_t5_settings():
  reference = optax.adafactor(0.1)
  expected = reference.update(GRADS, reference.init(PARAMS), PARAMS)[0]
  assert_same(first_update(name="adafactor", clip_norm=None), expected)


def test_any_optimizer_of_optax_is_found_by_name_with_its_arguments():
  reference = optax.sgd(0.1, momentum=0.5, nesterov=True)
  expected = reference.update(GRADS, reference.init(PARAMS), PARAMS)[0]
  kwargs = {"momentum": 0.5, "nesterov": True}
  assert_same(first_update(name="sgd", clip_norm=None, kwargs=kwargs), expected)


def test_gradients_are_clipped_by_their_global_norm():
  update = first_update(name="sgd", clip_norm=0.5, learning_rate=1.0)
  np.testing.assert_allclose(optax.global_norm(update), 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adafactor", "adamw", "lion"])
def test_decay_is_times_the_learning_rate_and_spares_norms_and_biases(name):
  with_decay = first_update(name=name, clip_norm=None, weight_decay=0.5)
  without = first_update(name=name, clip_norm=None)
  taken = jax.tree.map(lambda a, b: np.asarray(b - a), with_decay, without)
  np.testing.assert_allclose(taken["mlp"]["wi"]["kernel"], 0.1 * 0.5 * 2.0, rtol=1e-4)
  del taken["mlp"]
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(taken))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"name": "adamx"}, "no such optimizer"),
    ({"name": "clip_by_global_norm"}, "takes no learning_rate"),
    ({"name": "adamw", "kwargs": {"beta1": 0.9}}, "takes no 'beta1'"),
  ],
)
def test_a_wrong_optimizer_is_one_line_that_says_why(settings, message):
  with pytest.raises(UserError, match=message):
    first_update(**settings)
