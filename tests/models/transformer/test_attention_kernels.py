"""Kernels, run as plain JAX, compute what plain JAX does."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.layers import MASKED_SCORE, small_normal
from commentree.models.transformer import attention, attention_kernels, kernel_choice
from commentree.models.transformer.kernel_parts import LANES, Heads
from commentree.models.transformer.stacks import in_order, same_segment
from commentree.tests.support.models import forests

compiled = functools.partial(jax.jit, compiler_options=forests.QUICK_COMPILE)


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(kernel_choice, "INTERPRET", True)


def seen(rng, rows, length, causal):
  """Draws comments of rows; returns which token sees which."""
  segments = np.sort(rng.integers(0, 4, (rows, length)), axis=1)
  visible = same_segment(jnp.asarray(segments))
  if causal:
    starts = np.argmax(segments[..., None] == np.arange(4), axis=1)
    starts = np.take_along_axis(starts, segments, axis=1)
    positions = jnp.asarray(np.arange(length) - starts)
    prefixes = jnp.asarray(np.asarray([2, 0, 5, 1])[segments])
    visible &= in_order(prefixes, positions)
  return np.asarray(visible)


class Operands(NamedTuple):
  """What attention is of, and the gradient of its result."""

  query: jax.Array
  key: jax.Array
  value: jax.Array
  visible: np.ndarray
  bias: jax.Array | None
  of_out: jax.Array


def float64(operands, num_heads, scale):
  """Returns the result and its gradients, by NumPy."""

  def split(x):
    x = np.float64(x)
    return x.reshape(*x.shape[:2], num_heads, -1)

  def joined(x):
    return x.reshape(*x.shape[:2], -1)

  query, key, value, visible, bias, of_out = operands
  query, key, value, of_out = map(split, (query, key, value, of_out))
  scores = scale * np.einsum("rqhk,rshk->rhqs", query, key)
  scores += 0 if bias is None else np.float64(bias)
  weights = np.exp(np.where(visible[:, None], scores, -np.inf))
  weights /= weights.sum(-1, keepdims=True)
  of_weights = np.einsum("rqhk,rshk->rhqs", of_out, value)
  change = (weights * of_weights).sum(-1, keepdims=True)
  of_scores = weights * (of_weights - change)
  return (
    joined(np.einsum("rhqs,rshk->rqhk", weights, value)),
    joined(scale * np.einsum("rhqs,rshk->rqhk", of_scores, key)),
    joined(scale * np.einsum("rhqs,rqhk->rshk", of_scores, query)),
    joined(np.einsum("rhqs,rqhk->rshk", weights, of_out)),
    of_scores.sum(0),
  )


def drawn(num_heads, width, rows, length, causal, dtype):
  """Draws operands in a dtype, and what the result's gradient is."""
  rng = np.random.default_rng(num_heads * width + length)
  shape = (rows, length, num_heads * width)
  query, key, value, of_out = (
    jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)
  )
  # As a trained model's, whose weights are no longer equal.
  key *= 2 / width**0.5
  bias = jnp.asarray(rng.normal(size=(num_heads, length, length)), dtype)
  visible = seen(rng, rows, length, causal)
  return Operands(query, key, value, visible, bias, of_out)


def by_kernel(operands, heads):
  query, key, value, visible, bias, of_out = operands

  def attend(query, key, value, bias):
    visible_int8 = jnp.asarray(visible, jnp.int8)
    return attention_kernels.attend(query, key, value, visible_int8, bias, heads)

  @compiled
  def both(query, key, value, bias, of_out):
    out, pull_back = jax.vjp(attend, query, key, value, bias)
    return out, *pull_back(of_out)

  return both(query, key, value, bias, of_out)


# Heads, width, groups, rows, length, whether tokens see what is before them alone,
# whether there is a bias: widths that divide a register, fill it or neither do.
SHAPES = [
  (4, 32, 1, 3, 16, False, True),
  (4, 64, 2, 2, 24, True, True),
  (3, 64, 1, 2, 8, False, False),
  (2, 128, 2, 2, 16, True, True),
  (1, 256, 1, 2, 8, False, True),
  (2, 24, 1, 2, 16, True, True),
  (6, 8, 1, 1, 10, False, False),
]


@pytest.mark.parametrize(
  ("num_heads", "width", "groups", "rows", "length", "causal", "biased"), SHAPES
)
def test_results_and_gradients_in_float32_are_those_of_float64(
  num_heads, width, groups, rows, length, causal, biased
):
  operands = drawn(num_heads, width, rows, length, causal, jnp.float32)
  if not biased:
    operands = operands._replace(bias=None)
  scale = 1.0 if biased else width**-0.5
  found = by_kernel(operands, Heads(width, scale, groups, interpret=True))
  expected = float64(operands, num_heads, scale)
  for one, other in zip(found, expected if biased else expected[:4]):
    if one is not None:
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


class PlainAttention(attention.Heads):
  """Self-attention in plain JAX, without projections."""

  @nn.compact
  def __call__(self, query, key, value, bias, visible):
    query, key, value = map(self.split, (query, key, value))
    scores = self.scores("rqhk,rshk->rhqs", query, key)
    scores += bias.astype(jnp.float32)[None]
    return self.attend(jnp.where(visible[:, None], scores, MASKED_SCORE), value, None)


def test_results_and_gradients_in_bfloat16_are_as_near_as_plain_jax_to_float64():
  num_heads, width = 4, 32
  operands = drawn(num_heads, width, 4, 32, False, jnp.bfloat16)
  query, key, value, visible, bias, of_out = operands
  found = by_kernel(operands, Heads(width, 1.0, 1, interpret=True))

  module = PlainAttention(num_heads, width, 0.0, True, jnp.bfloat16)

  def plain(*operands):
    return module.apply({}, *operands, visible).reshape(query.shape)

  out, pull_back = jax.vjp(plain, query, key, value, bias)
  exact = float64(operands, num_heads, 1.0)
  for mine, others, truth in zip(found, (out, *pull_back(of_out)), exact):
    error, others_error = (
      np.linalg.norm(np.float64(x) - truth) / np.linalg.norm(truth)
      for x in (mine, others)
    )
    assert error < 1.05 * others_error


def attended(implementation, x, visible, bias, **fields):
  """Returns what the module makes of `x`, and all gradients, with dropout."""
  module = attention.SelfAttention(
    num_heads=3,
    head_dim=16,
    dropout_rate=0.4,
    deterministic=False,
    dtype=jnp.float32,
    implementation=implementation,
    **fields,
  )
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  params = module.init(rngs, x, visible, bias)["params"]

  @compiled
  def both(params, x, bias):
    def loss(params, x, bias):
      y = module.apply({"params": params}, x, visible, bias, rngs=rngs)
      return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, x, bias)

  return both(params, x, bias)


@pytest.mark.parametrize(
  "fields", [{}, {"divide_scores": True, "use_bias": True, "kernel_init": small_normal}]
)
def test_the_module_drops_the_same_weights_and_has_the_same_gradients(
  interpreted, fields
):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 12, 20)), jnp.float32)
  visible = jnp.asarray(seen(rng, 2, 12, True))
  bias = jnp.asarray(rng.normal(size=(3, 12, 12)), jnp.float32)
  found, expected = (
    attended(implementation, x, visible, bias, **fields)
    for implementation in ("pallas", "xla")
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
  )


def test_kernels_asked_for_where_there_is_no_tpu_are_refused_in_a_line():
  query = jnp.zeros((2, 128, 64))
  assert kernel_choice.kernel_for("auto", query, 2, 1.0) is None
  with pytest.raises(UserError, match=r"attention = 'pallas'.* this is a cpu; set"):
    kernel_choice.kernel_for("pallas", query, 2, 1.0)


@pytest.mark.parametrize("generation", [2, 3, 4, 5])
def test_a_tpu_whose_compiler_refuses_kernels_computes_by_plain_jax(generation):
  """Mosaic has no products of bfloat16 for v2 and v3."""
  device = jax.sharding.AbstractDevice(f"TPU v{generation}", 1, "tpu")
  mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
  query = jax.ShapeDtypeStruct((2, 128, 64), jnp.bfloat16)
  with jax.sharding.use_abstract_mesh(mesh):
    kernel = kernel_choice.kernel_for("auto", query, 2, 1.0)
    assert (kernel is None) == (generation < 4)
    if kernel is None:
      with pytest.raises(
        UserError, match=f"from v4 on, and this is a TPU v{generation}"
      ):
        kernel_choice.kernel_for("pallas", query, 2, 1.0)


def test_rows_too_long_for_a_tpus_memory_are_refused_in_a_line(interpreted):
  query = jnp.zeros((1, 4096, 64))
  assert kernel_choice.kernel_for("auto", query, 1, 1.0) is None
  with pytest.raises(UserError, match="rows of 4096 tokens do not fit"):
    kernel_choice.kernel_for("pallas", query, 1, 1.0)


@pytest.mark.parametrize("length", [128, 256])
@pytest.mark.parametrize(("heads", "width"), [(6, 64), (12, 64), (16, 64), (12, 32)])
def test_every_size_has_groups_of_whole_registers(length, heads, width):
  groups = attention_kernels.count_groups(length, heads, width, 2)
  assert groups is not None
  assert groups == 1 or heads // groups * width % LANES == 0
