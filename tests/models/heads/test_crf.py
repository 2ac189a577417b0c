from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.models.heads import crf
from commentree.tests.support.models.forests import QUICK_COMPILE

# Two kinds of spans; rows of six tokens. Brute force tries 5**6 labellings at most.
LABELS, LENGTH, ROWS = 5, 6, 2


def compiled(function):
  return jax.jit(function, compiler_options=QUICK_COMPILE)


partition = compiled(crf.log_partition)
nll = compiled(crf.negative_log_likelihoods)
best = compiled(crf.viterbi)
probabilities = compiled(crf.marginals)


def transitions_of(rng, masked):
  drawn = crf.Transitions(
    *(
      jnp.asarray(rng.normal(0, 1.5, shape), jnp.float32)
      for shape in ((LABELS, LABELS), (LABELS,), (LABELS,))
    )
  )
  return crf.forbid_invalid_transitions(drawn) if masked else drawn


def segments_of(lengths):
  """One row of chains of those lengths, as many as there is room for."""
  ids = [i + 1 for i, length in enumerate(lengths) for _ in range(length)][:LENGTH]
  return np.array(ids + [0] * (LENGTH - len(ids)), np.int32)


@st.composite
def problems(draw):
  """Emissions, segments and transitions, of which a row has none to six chains."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  lengths = st.lists(st.integers(1, LENGTH), max_size=LENGTH)
  segments = np.stack([segments_of(draw(lengths)) for _ in range(ROWS)])
  emissions = rng.normal(0, 2, (ROWS, LENGTH, LABELS)).astype(np.float32)
  return emissions, segments, transitions_of(rng, draw(st.booleans()))


def chains(segments):
  """Columns of each chain of a row."""
  return [np.flatnonzero(segments == s) for s in range(1, segments.max() + 1)]


def scores_of_all(emissions, transitions):
  """Every labelling of one chain and its score, in float64, term by term."""
  between, first, last = (
    np.asarray(t, np.float64)
    for t in (transitions.between_CC, transitions.first_C, transitions.last_C)
  )
  labellings = np.array(list(itertools.product(range(LABELS), repeat=len(emissions))))
  scores = first[labellings[:, 0]] + last[labellings[:, -1]]
  for t, emission in enumerate(emissions.astype(np.float64)):
    scores += emission[labellings[:, t]]
    if t > 0:
      scores += between[labellings[:, t - 1], labellings[:, t]]
  return labellings, scores


def log_sum(scores):
  return scores.max() + np.log(np.exp(scores - scores.max()).sum())


@settings(max_examples=15, deadline=None)
@given(problems())
def test_partition_best_path_and_marginals_are_those_of_all_labellings(problem):
  emissions, segments, transitions = problem
  found = np.asarray(partition(*problem))
  path = np.asarray(best(*problem))
  shares = np.asarray(probabilities(*problem))
  for row in range(ROWS):
    expected = np.zeros(LENGTH)
    for columns in chains(segments[row]):
      labellings, scores = scores_of_all(emissions[row, columns], transitions)
      expected[columns[-1]] = log_sum(scores)
      chosen = (labellings == path[row, columns]).all(axis=1)
      assert scores[chosen] >= scores.max() - 1e-4
      likely = np.exp(scores - log_sum(scores))
      for t, column in enumerate(columns):
        by_label = np.bincount(labellings[:, t], likely, LABELS)
        np.testing.assert_allclose(shares[row, column], by_label, atol=1e-4)
    np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-4)
    assert not path[row][segments[row] == 0].any()
    assert not shares[row][segments[row] == 0].any()


@settings(max_examples=15, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_a_chains_loss_is_minus_the_log_of_its_labels_share_spread_evenly(
  problem, seed
):
  emissions, segments, transitions = problem
  drawn = np.random.default_rng(seed).integers(0, LABELS, segments.shape)
  labels = np.asarray(crf.repair_iob2(jnp.asarray(drawn), jnp.asarray(segments)))
  found = np.asarray(nll(emissions, labels, segments, transitions))
  for row in range(ROWS):
    assert not found[row][segments[row] == 0].any()
    for columns in chains(segments[row]):
      labellings, scores = scores_of_all(emissions[row, columns], transitions)
      (which,) = np.flatnonzero((labellings == labels[row, columns]).all(axis=1))
      expected = log_sum(scores) - scores[which]
      np.testing.assert_allclose(found[row, columns].sum(), expected, atol=1e-3)
      assert np.ptp(found[row, columns]) == 0


@pytest.mark.long
@settings(max_examples=10, deadline=None)
@given(problems())
def test_a_chain_in_a_row_is_the_chain_alone(problem):
  emissions, segments, transitions = problem
  row, others = partition(*problem), best(*problem)
  for columns in chains(segments[0]):
    alone = np.zeros((ROWS, LENGTH, LABELS), np.float32)
    alone[0, : len(columns)] = emissions[0, columns]
    ids = np.zeros((ROWS, LENGTH), np.int32)
    ids[0, : len(columns)] = 1
    np.testing.assert_array_equal(
      best(alone, ids, transitions)[0, : len(columns)], others[0, columns]
    )
    np.testing.assert_allclose(
      partition(alone, ids, transitions)[0, len(columns) - 1],
      row[0, columns[-1]],
      rtol=1e-6,
    )


@pytest.mark.long
def test_gradients_are_those_of_differences():
  rng = np.random.default_rng(3)
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 3]], np.int32)
  emissions = rng.normal(0, 1, (ROWS, LENGTH, LABELS)).astype(np.float32)
  labels = crf.repair_iob2(
    jnp.asarray(rng.integers(0, LABELS, segments.shape)), jnp.asarray(segments)
  )

  def loss(emissions, raw):
    transitions = crf.forbid_invalid_transitions(raw)
    shares = crf.negative_log_likelihoods(emissions, labels, segments, transitions)
    return jnp.sum(shares * segments)

  raw = transitions_of(rng, masked=False)
  gradients = jax.jit(jax.grad(loss, (0, 1)))(emissions, raw)
  leaves, tree = jax.tree.flatten((emissions, raw))
  loss = jax.jit(loss)
  for number, gradient in enumerate(jax.tree.leaves(gradients)):
    for index in itertools.islice(np.ndindex(gradient.shape), 0, None, 3):
      losses = []
      for step in (1e-2, -1e-2):
        moved = list(leaves)
        moved[number] = jnp.asarray(leaves[number]).at[index].add(step)
        losses.append(float(loss(*jax.tree.unflatten(tree, moved))))
      slope = (losses[0] - losses[1]) / 2e-2
      np.testing.assert_allclose(gradient[index], slope, atol=5e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 30.0, 3000.0]))
def test_what_is_forbidden_is_never_decoded(seed, scale):
  rng = np.random.default_rng(seed)
  emissions = (scale * rng.normal(0, 1, (ROWS, LENGTH, LABELS))).astype(np.float32)
  # As tempting as can be: what is inside scores highest everywhere.
  emissions[..., 2::2] += scale
  segments = np.array([[1, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 0]], np.int32)
  path = np.asarray(best(emissions, segments, transitions_of(rng, masked=True)))
  for row in range(ROWS):
    for columns in chains(segments[row]):
      before = 0
      for label in path[row, columns]:
        if label in (2, 4):
          assert before in (label - 1, label)
        before = label


@pytest.mark.long
def test_losses_and_gradients_of_long_rows_are_finite_and_exact():
  length = 2000
  rng = np.random.default_rng(0)
  segments = jnp.ones((1, length), jnp.int32)
  transitions = transitions_of(rng, masked=True)
  for scale in (1.0, 100.0):
    emissions = jnp.asarray(scale * rng.normal(0, 1, (1, length, LABELS)), jnp.float32)
    labels = crf.repair_iob2(
      jnp.asarray(rng.integers(0, LABELS, (1, length))), segments
    )

    def loss(emissions, transitions, labels=labels):
      return crf.negative_log_likelihoods(
        emissions, labels, segments, transitions
      ).sum()

    value, gradients = compiled(jax.value_and_grad(loss, (0, 1)))(
      emissions, transitions
    )
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
  ("labels", "segments", "expected"),
  [
    ([2, 2, 0, 4, 2, 1], [1, 1, 1, 1, 1, 1], [1, 2, 0, 3, 1, 1]),
    ([1, 2, 2, 2, 0, 0], [1, 1, 2, 2, 2, 0], [1, 2, 1, 2, 0, 0]),
    ([1, 2, 3, 4, 2, 2], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 1, 2]),
  ],
)
def test_what_is_inside_of_nothing_is_mended_to_a_beginning(labels, segments, expected):
  found = crf.repair_iob2(jnp.asarray(labels), jnp.asarray(segments))
  np.testing.assert_array_equal(found, expected)
