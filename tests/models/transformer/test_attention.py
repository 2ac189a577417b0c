"""Attention in plain JAX: what it adds to scores."""

import jax
import jax.numpy as jnp
import numpy as np

from commentree.models.transformer import attention


def test_what_is_repeated_for_all_rows_has_the_gradients_of_a_broadcast():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  weights = jax.random.normal(jax.random.key(1), (5, 2, 3, 4))

  def total(repeat):
    return lambda x: jnp.sum(repeat(x) * weights)

  ours = jax.value_and_grad(total(lambda x: attention.of_all_rows(x, 5)))(x)
  plain = jax.value_and_grad(total(lambda x: jnp.broadcast_to(x, (5, 2, 3, 4))))(x)
  for one, other in zip(ours, plain):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_hidden_scores_weigh_nothing_and_have_no_gradient():
  visible = jnp.array([True, False, True])

  def weights(scores):
    return jax.nn.softmax(scores + attention.hidden(visible))

  scores = jnp.array([0.5, 30.0, -2.0])
  np.testing.assert_array_equal(
    weights(scores)[jnp.array([0, 2])], jax.nn.softmax(scores[jnp.array([0, 2])])
  )
  gradients = jax.jacobian(weights)(scores)
  np.testing.assert_array_equal(gradients[1], 0)
  np.testing.assert_array_equal(gradients[:, 1], 0)
