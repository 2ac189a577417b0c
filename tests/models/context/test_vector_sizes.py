"""Normalized vectors have the size of what they are pooled from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models.context.pooling import resize
from commentree.tests.support.models import forests


def rms(x):
  return np.sqrt(np.square(np.float64(x)).mean(-1))


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "attention"])
def test_a_vector_has_the_size_of_its_comments_states_and_its_own_direction(
  make, packed, family, pooling
):
  plain, params = make(pooling=pooling, vectors_per_comment=2, **family)
  model, same = make(
    pooling=pooling, vectors_per_comment=2, normalize_pooled_vectors=True, **family
  )
  assert jax.tree.structure(params) == jax.tree.structure(same)
  before, after = (
    jax.jit(one.encode, compiler_options=forests.QUICK_COMPILE)(params, packed.batch)
    for one in (plain, model)
  )
  used = np.asarray(before.used_BEJ)
  np.testing.assert_array_equal(after.used_BEJ, used)
  assert not np.asarray(after.vectors_BEJD)[~used].any()
  slots = packed.batch["encoder_segment_ids"].reshape(len(used), -1)
  for b, e, j in zip(*used.nonzero()):
    states = np.asarray(before.states_BND)[b, slots[b] == e + 1]
    old, new = (np.asarray(one.vectors_BEJD)[b, e, j] for one in (before, after))
    expected = old * np.sqrt(np.square(rms(states)).mean()) / rms(old)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)


def test_one_token_keeps_its_vector_and_nothing_stays_nothing():
  states = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32) * 0.1
  vectors = np.concatenate([states[:, :1], np.zeros((1, 2, 8), np.float32)], axis=1)
  slots = np.array([[1, 2, 0]])

  def resized(vectors, states):
    return resize(vectors[:, :, None], states, slots)[:, :, 0]

  np.testing.assert_allclose(resized(vectors, states), vectors, rtol=1e-6)
  gradients = jax.grad(lambda v, s: jnp.sum(resized(v, s) ** 2), (0, 1))(
    jnp.asarray(vectors), jnp.asarray(states)
  )
  assert all(np.isfinite(gradient).all() for gradient in gradients)
