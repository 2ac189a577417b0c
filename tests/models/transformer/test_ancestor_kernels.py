"""Kernels of attention to ancestors, run as plain JAX, compute what plain JAX does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.ancestor_context import ByTarget
from commentree.models.transformer import ancestor_kernels, kernel_choice
from commentree.models.transformer.kernel_parts import Heads
from commentree.tests.support.models import forests

# Heads, width, groups, examples, rows of each, length, vectors, targets, whether there
# is a bias, the dtype and the error that it may have, as a share.
SHAPES = [
  (2, 64, 1, 2, 2, 16, 5, 4, True, "float32", 1e-5),
  (4, 64, 2, 1, 3, 8, 17, 9, True, "float32", 1e-5),
  (2, 128, 2, 2, 1, 16, 16, 5, False, "float32", 1e-5),
  (3, 24, 1, 2, 2, 8, 3, 2, True, "float32", 1e-5),
  (2, 80, 1, 1, 2, 8, 5, 4, True, "bfloat16", 1e-2),
]


@pytest.mark.parametrize(
  (
    "num_heads",
    "width",
    "groups",
    "examples",
    "rows",
    "length",
    "vectors",
    "targets",
    "biased",
    "dtype",
    "error",
  ),
  SHAPES,
)
def test_results_and_gradients_are_those_of_plain_jax_in_float32(
  num_heads,
  width,
  groups,
  examples,
  rows,
  length,
  vectors,
  targets,
  biased,
  dtype,
  error,
):
  rng = np.random.default_rng(width + length)

  def drawn(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  query, of_out = (drawn(examples * rows, length, num_heads * width) for _ in "qo")
  key, value = (drawn(examples, vectors, num_heads * width) for _ in "kv")
  bias = drawn(examples, num_heads, targets, vectors) if biased else None
  visible = rng.random((examples, targets, vectors)) < 0.5
  visible[..., 0] |= ~visible.any(-1)
  ids = jnp.asarray(rng.integers(0, targets, (examples * rows, length)))
  heads = Heads(width, 2 / width**0.5, groups, interpret=True)

  def by_kernel(query, key, value, bias):
    seen = jnp.asarray(visible)
    return ancestor_kernels.attend_to_vectors(query, key, value, seen, bias, ids, heads)

  def plain(query, key, value, bias):
    def split(x):
      return x.reshape(examples, -1, num_heads, width)

    ids_BN = ids.reshape(examples, -1)
    scores = heads.scale * jnp.einsum("bnhk,bshk->bhns", split(query), split(key))
    if bias is not None:
      scores += jax.vmap(lambda bias_HUS, ids_N: bias_HUS[:, ids_N])(bias, ids_BN)
    seen_BNS = jax.vmap(lambda seen, ids_N: seen[ids_N])(jnp.asarray(visible), ids_BN)
    weights = jax.nn.softmax(jnp.where(seen_BNS[:, None], scores, -jnp.inf))
    return jnp.einsum("bhns,bshk->bnhk", weights, split(value)).reshape(query.shape)

  def both(attend, dtype):
    def run(operands, of_out):
      out, pull_back = jax.vjp(attend, *operands)
      return out, pull_back(of_out)

    compiled = jax.jit(run, compiler_options=forests.QUICK_COMPILE)
    given = jax.tree.map(lambda x: x.astype(dtype), ((query, key, value, bias), of_out))
    return jax.tree.leaves(compiled(*given))

  for one, other in zip(both(by_kernel, dtype), both(plain, "float32"), strict=True):
    assert one.dtype == dtype
    difference = np.linalg.norm(np.float64(one) - np.float64(other))
    assert difference < error * np.linalg.norm(other)


def test_more_targets_than_fit_a_tpus_memory_are_refused_in_a_line(monkeypatch):
  monkeypatch.setattr(kernel_choice, "INTERPRET", True)
  query = jnp.zeros((2, 128, 64))
  by_target = ByTarget(
    jax.ShapeDtypeStruct((1, 9000, 900), jnp.bool_), None, jnp.zeros((2, 128))
  )
  assert kernel_choice.ancestor_kernel_for("auto", query, 1, 1.0, by_target) is None
  with pytest.raises(UserError, match="do not fit a TPU's on-chip memory"):
    kernel_choice.ancestor_kernel_for("pallas", query, 1, 1.0, by_target)
