"""The masked loss: where it is counted, and what of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models.heads.losses import pointer_losses, token_losses
from commentree.models.heads.pointer import Copies, PointerScores
from commentree.models.layers import RelativePositionBias, relative_position_buckets
from commentree.tests.support.models import forests, naive


@pytest.fixture(scope="module")
def logits():
  return jnp.asarray(np.random.default_rng(0).normal(0, 3, (4, 11)), jnp.float32)


TARGETS = jnp.array([0, 3, 10, 5])


@pytest.mark.long
def test_nll_and_its_gradient_are_those_of_log_softmax(logits):
  def plain(logits):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[:, None], 1)[:, 0]

  losses = token_losses(logits, TARGETS)
  np.testing.assert_allclose(losses.nll, plain(logits), rtol=1e-6)
  np.testing.assert_array_equal(losses.loss, losses.nll)
  weights = jnp.array([1.0, 0.0, 2.0, 0.5])
  np.testing.assert_allclose(
    jax.grad(lambda x: jnp.sum(token_losses(x, TARGETS).loss * weights))(logits),
    jax.grad(lambda x: jnp.sum(plain(x) * weights))(logits),
    atol=1e-6,
  )


def pointer_scores(logits, log_weights, log_odds):
  """Two queries see ancestors that hold token 0 twice and 7 once; two see none."""
  weights = jax.nn.softmax(log_weights) * jnp.array([1, 1, 0, 0])[:, None]
  copies = Copies(weights[None], jnp.array([[0, 7, 0]]), log_odds[None])
  return PointerScores(logits[None, None], copies)


@pytest.fixture(scope="module")
def pointed(logits):
  """Logits, log weights of three tokens to copy, and log odds."""
  log_weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
  return logits, log_weights, jnp.array([-0.3, 1.2, 0.4, -2.0])


@pytest.mark.long
@pytest.mark.parametrize("targets", [[0, 3, 10, 5], [7, 0, 0, 7]])
def test_losses_of_copies_are_those_of_the_mixture_and_of_the_logits(pointed, targets):
  """Values and gradients, though only one token of the vocabulary is looked at."""
  targets = jnp.array(targets)[None, None]

  def ours(pointed):
    scores = pointer_scores(*pointed)
    losses = pointer_losses(scores, targets, z_loss=0.1, logits_weight=0.5)
    return losses.loss.sum(), losses

  def plain(pointed):
    scores = pointer_scores(*pointed)
    mixed = token_losses(scores.mixed(), targets)
    alone = token_losses(scores.logits_BGMV, targets, z_loss=0.1)
    return (mixed.nll + 0.5 * alone.nll + alone.z_loss).sum(), mixed

  (loss, losses), grads = jax.value_and_grad(ours, has_aux=True)(pointed)
  (expected_loss, mixed), expected = jax.value_and_grad(plain, has_aux=True)(pointed)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  np.testing.assert_allclose(losses.nll, mixed.nll, rtol=1e-5)
  np.testing.assert_array_equal(losses.correct, mixed.correct)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
    grads,
    expected,
  )


def test_a_mixture_is_a_distribution_and_without_ancestors_that_of_the_logits(pointed):
  logits, log_weights, log_odds = pointed
  mixed = pointer_scores(*pointed).mixed()[0, 0]
  np.testing.assert_array_equal(mixed[2:], logits[2:])
  weights = jax.nn.softmax(log_weights[:2])
  copies = np.zeros((2, logits.shape[-1]))
  copies[:, 0], copies[:, 7] = weights[:, 0] + weights[:, 2], weights[:, 1]
  odds = np.exp(log_odds[:2, None])
  expected = (jax.nn.softmax(logits[:2]) + odds * copies) / (1 + odds)
  np.testing.assert_allclose(jax.nn.softmax(mixed[:2]), expected, rtol=1e-5)


@pytest.mark.long
def test_copies_of_hardly_any_weight_leave_loss_and_gradient_as_they_are():
  ids, log_odds = jnp.array([[5, 6]]), jnp.zeros((1, 1))
  # Of the two tokens the second is copied with the weight e-85, which is 1e-37.
  apart = jnp.array([[[85.0, 0.0]]])
  log_prob = jnp.array([[-80.0]])

  def ratio(scores):
    copies = Copies(jax.nn.softmax(scores), ids, log_odds)
    return copies.log_ratio_of(jnp.array([[6]]), log_prob)[0, 0]

  value, gradient = jax.value_and_grad(ratio)(apart)
  assert float(value) == float(-jax.nn.softplus(0.0))
  assert not gradient.any()
  value, gradient = jax.value_and_grad(ratio)(apart - jnp.array([[[10.0, 0.0]]]))
  assert value > 4
  assert np.isfinite(gradient).all()
  assert gradient.all()


def test_smoothed_loss_is_the_divergence_from_the_smoothed_target(logits):
  smoothing, vocab_size = 0.2, logits.shape[-1]
  soft = np.full(logits.shape, smoothing / (vocab_size - 1))
  soft[np.arange(4), TARGETS] = 1 - smoothing

  def plain(logits):
    return jnp.sum(soft * (jnp.log(soft) - jax.nn.log_softmax(logits)))

  def ours(logits):
    return token_losses(logits, TARGETS, label_smoothing=smoothing).loss.sum()

  np.testing.assert_allclose(ours(logits), plain(logits), rtol=1e-5)
  np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(plain)(logits), atol=1e-6)
  np.testing.assert_allclose(ours(jnp.log(soft)), 0, atol=1e-5)
  np.testing.assert_array_equal(
    token_losses(logits, TARGETS, label_smoothing=smoothing).nll,
    token_losses(logits, TARGETS).nll,
  )


def test_z_loss_is_the_squared_log_normalizer_and_has_its_gradient(logits):
  def plain(logits):
    return 0.3 * jnp.sum(jax.nn.logsumexp(logits, axis=-1) ** 2)

  def ours(logits):
    return token_losses(logits, TARGETS, z_loss=0.3).z_loss.sum()

  np.testing.assert_allclose(ours(logits), plain(logits), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(plain)(logits), rtol=1e-5)
  with_z = token_losses(logits, TARGETS, z_loss=0.3)
  np.testing.assert_allclose(with_z.loss - with_z.z_loss, with_z.nll, rtol=1e-5)


@pytest.mark.long
def test_huge_logits_give_finite_losses_and_gradients():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  losses = token_losses(logits, jnp.array([1]), z_loss=1e-4)
  np.testing.assert_allclose(losses.nll, 2e4)
  gradient = jax.grad(lambda x: token_losses(x, jnp.array([1])).loss.sum())(logits)
  np.testing.assert_allclose(gradient, [[1, -1, 0]])


def test_a_token_is_correct_when_nothing_scores_higher(logits):
  correct = token_losses(logits, TARGETS).correct
  np.testing.assert_array_equal(correct, jnp.argmax(logits, -1) == TARGETS)


def test_only_masked_positions_count(make, packed):
  model, params = make()
  loss = jax.jit(
    lambda batch: model.loss_fn(params, batch, None)[0],
    compiler_options=forests.QUICK_COMPILE,
  )
  batch = {name: feature.copy() for name, feature in packed.batch.items()}
  unused = batch["decoder_loss_weights"] == 0
  assert unused.any()
  batch["decoder_target_tokens"][unused] = 7
  batch["decoder_masked_positions"][unused] = 2
  assert loss(batch) == loss(packed.batch)
  batch["decoder_target_tokens"][~unused] ^= 1
  assert loss(batch) != loss(packed.batch)


@pytest.mark.long
def test_all_masked_tokens_of_a_batch_count_alike(make, packed):
  model, params = make()
  sums = jax.jit(
    lambda batch: model.loss_sums(params, batch, None),
    compiler_options=forests.QUICK_COMPILE,
  )
  total, weight, parts = sums(packed.batch)
  each = [
    sums({name: feature[i : i + 1] for name, feature in packed.batch.items()})
    for i in range(3)
  ]
  np.testing.assert_allclose(sum(one[0] for one in each), total, rtol=1e-6)
  assert sum(one[1] for one in each) == weight
  for name, part in parts.items():
    np.testing.assert_allclose(sum(one[2][name] for one in each), part, rtol=1e-5)
  loss, metrics = jax.jit(model.loss_fn, compiler_options=forests.QUICK_COMPILE)(
    params, packed.batch, None
  )
  np.testing.assert_allclose(loss, total / weight, rtol=1e-5)
  comments = [c for forest in packed.forests for c in forest]
  assert metrics["comments"].compute() == sum(c.is_target for c in comments)
  assert metrics["decoder_tokens"].compute() == sum(
    len(c.tokens) for c in comments if c.is_target
  )
  assert metrics["encoder_tokens"].compute() == sum(
    len(c.tokens) for c in comments if c.slot
  )


def test_relative_position_buckets_are_t5s():
  offsets = np.arange(-200, 201)
  buckets = relative_position_buckets(offsets, 32, 128)
  assert buckets.tolist() == [naive.bucket(int(offset)) for offset in offsets]


@pytest.mark.parametrize("causal", [False, True])
def test_position_bias_depends_on_key_minus_query(causal):
  bias = RelativePositionBias(num_heads=2, dtype=jnp.float32, causal=causal)
  variables = bias.init(jax.random.key(0), 4)
  name = "causal_rel_embedding" if causal else "rel_embedding"
  table = np.asarray(variables["params"][name])
  bucket = naive.causal_bucket if causal else naive.bucket
  for length in (1, 2, 40):
    values = np.asarray(bias.apply(variables, length))
    expected = [[table[:, bucket(k - q)] for k in range(length)] for q in range(length)]
    np.testing.assert_allclose(values, np.moveaxis(expected, -1, 0), rtol=1e-6)
