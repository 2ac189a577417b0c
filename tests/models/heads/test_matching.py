"""Reply matching, against the same written out one pair at a time."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models.heads import matching
from commentree.models.heads.matching import Pairs
from commentree.tests.support.models import forests
from commentree.tests.support.models.small_models import CONFIG

pytestmark = pytest.mark.usefixtures("strict_shapes")


def expected_pairs(forest):
  """Returns {(slot of a comment, [(slot, hops) above it])} as targets tell of it."""
  found = {}
  for comment in (c for c in forest if c.is_target and c.ancestors):
    if comment.distances[0] != 1:
      continue
    parent = forest[comment.ancestors[0]]
    above = [
      (forest[a].slot, hops - 1)
      for a, hops in zip(comment.ancestors, comment.distances)
      if hops > 1
    ]
    if above:
      found.setdefault(parent.slot, (above, parent.tree))
  return found


def test_pairs_are_parents_and_what_is_above_them_each_once(packed):
  pairs = matching.pairs_of(packed.batch)
  count = 0
  for example, forest in enumerate(packed.forests):
    found = {}
    for target in np.flatnonzero(pairs.valid_BT[example]):
      slots = pairs.thread_slots_BTA[example, target]
      hops = pairs.thread_distances_BTA[example, target]
      thread = [(int(s), int(d)) for s, d in zip(slots, hops) if s > 0]
      slot = int(pairs.slots_BT[example, target])
      assert slot not in found, "a pair is told twice"
      found[slot] = (thread, int(pairs.trees_BT[example, target]))
    assert found == expected_pairs(forest)
    count += len(found)
  assert count >= 4
  assert not pairs.valid_BT[len(packed.forests) :].any()


def test_of_a_thread_of_parents_the_nearest_is_left(packed):
  pairs = matching.pairs_of(packed.batch)
  parents = pairs.of_parents()
  left = np.asarray(parents.thread_slots_BTA) > 0
  np.testing.assert_array_equal(
    left,
    (np.asarray(pairs.thread_slots_BTA) > 0)
    & (np.asarray(pairs.thread_distances_BTA) == 1),
  )
  assert parents.valid_BT.any()
  assert not (parents.valid_BT & ~pairs.valid_BT).any()
  assert left.any(-1)[np.asarray(parents.valid_BT)].all()


def drawn(seed, trees, valid=None):
  """Returns random vectors of threads and replies, and pairs of such trees."""
  rng = np.random.default_rng(seed)
  count = len(trees)
  vectors = [
    matching.unit(jnp.asarray(rng.normal(size=(1, count, 5)), jnp.float32))
    for _ in range(2)
  ]
  ones = jnp.ones((1, count, 1), jnp.int32)
  valid = [True] * count if valid is None else valid
  pairs = Pairs(
    jnp.asarray([valid]), ones[..., 0], ones, ones, jnp.asarray([trees], jnp.int32)
  )
  return *vectors, pairs


@pytest.mark.long
def test_the_loss_tells_replies_from_those_of_other_trees_alone():
  trees, valid = [1, 1, 2, 2, 3], [True, True, True, True, False]
  threads, replies, pairs = drawn(0, trees, valid)
  loss, count = matching.matching_loss(threads, replies, jnp.array([4.0]), pairs)
  cosines = np.asarray(threads)[0] @ np.asarray(replies)[0].T
  expected = 0.0
  for i in range(4):
    others = [j for j in range(4) if trees[j] != trees[i]]
    logits = 4.0 * cosines[i, [i, *others]]
    expected += np.log(np.exp(logits).sum()) - logits[0]
  assert count == 4
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.long
def test_where_all_pairs_are_of_one_tree_there_is_no_loss_and_no_recall():
  threads, replies, pairs = drawn(1, [4, 4, 4])
  loss, count = matching.matching_loss(threads, replies, jnp.array([4.0]), pairs)
  assert loss == count == 0
  found = matching.recall_sums(threads, replies, pairs)
  assert all(float(value) == 0 for value in found.values())


@pytest.mark.long
@pytest.mark.parametrize("negatives", [1, 3, 99])
def test_recall_is_the_mean_over_all_draws_of_negatives(monkeypatch, negatives):
  monkeypatch.setattr(matching, "NEGATIVES", negatives)
  trees = [1, 1, 2, 2, 2, 3, 4, 5]
  valid = [True] * 7 + [False]
  threads, replies, pairs = drawn(2, trees, valid)
  replies = matching.unit(replies + 0.5 * threads)
  found = matching.recall_sums(threads, replies, pairs)
  cosines = np.asarray(threads)[0] @ np.asarray(replies)[0].T
  expected = dict.fromkeys(("recall_at_1", "recall_at_10", "reciprocal_rank"), 0.0)
  candidates = 0
  for i in range(7):
    others = [j for j in range(7) if trees[j] != trees[i]]
    size = min(negatives, len(others))
    draws = list(itertools.combinations(others, size))
    ranks = np.array([1 + (cosines[i, list(d)] >= cosines[i, i]).sum() for d in draws])
    expected["recall_at_1"] += (ranks == 1).mean()
    expected["recall_at_10"] += (ranks <= 10).mean()
    expected["reciprocal_rank"] += (1 / ranks).mean()
    candidates += size + 1
  assert found["pairs"] == 7
  assert found["candidates"] == candidates
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
  assert 0 < expected["recall_at_1"] < 7


@pytest.mark.long
def test_ties_count_against_a_reply():
  threads, replies, pairs = drawn(3, [1, 2, 3])
  alike = jnp.broadcast_to(replies[:, :1], replies.shape)
  found = matching.recall_sums(threads, alike, pairs)
  assert found["recall_at_1"] == 0


@pytest.mark.long
@pytest.mark.parametrize(("log_scale", "scale"), [(2.0, np.exp(2)), (90.0, 100.0)])
def test_the_scale_of_cosines_is_learnt_up_to_a_hundred(log_scale, scale):
  matcher = matching.ReplyMatcher(CONFIG)
  *_, pairs = drawn(0, [1, 2])
  vectors, used = jnp.ones((1, 1, 1, CONFIG.emb_dim)), jnp.ones((1, 1, 1), jnp.bool_)
  params = matcher.init(jax.random.key(0), vectors, used, pairs)["params"]
  params = {**params, "log_scale": jnp.array([log_scale])}
  *_, found = matcher.apply({"params": params}, vectors, used, pairs)
  np.testing.assert_allclose(found, [scale], rtol=1e-5)


@pytest.fixture(scope="module")
def batch():
  """Two trees side by side and a third in an example of its own."""
  return forests.random_batch(0, ((7, 6), (8,)), ((1, 2), (3,)))[1]


@pytest.mark.long
def test_training_adds_its_loss_and_reaches_the_encoder(make, batch):
  weight = 0.5
  model, params = make(reply_matching_weight=weight)
  plain, _ = make()
  without = {name: part for name, part in params.items() if name != "reply_matcher"}

  @jax.jit
  def both(params):
    with_loss, _, sums = model.loss_sums(params, batch, None)
    return with_loss, sums

  with_loss, sums = both(params)
  alone, masked, _ = jax.jit(lambda p: plain.loss_sums(p, batch, None))(without)
  mean = sums["reply_matching"] / sums["reply_pairs"]
  assert sums["reply_pairs"] > 0
  np.testing.assert_allclose(with_loss, alone + weight * mean * masked, rtol=1e-5)

  def matching_alone(params):
    return model.loss_sums(params, batch, None)[2]["reply_matching"]

  gradients = jax.jit(jax.grad(matching_alone), compiler_options=forests.QUICK_COMPILE)(
    params
  )
  for part in ("encoder", "reply_matcher"):
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients[part]):
      name = jax.tree_util.keystr(path)
      assert np.isfinite(gradient).all(), name
      assert np.abs(gradient).max() > 0, name
  assert not any(np.abs(x).max() for x in jax.tree.leaves(gradients["decoder"]))


@pytest.mark.long
def test_a_new_matcher_compares_what_comments_are_pooled_to(make, packed, batch):
  model, _ = make(reply_matching_weight=1.0, max_ancestor_distance=2)
  variables = jax.jit(
    lambda key: model.get_initial_variables(key, packed.shapes),
    compiler_options=forests.QUICK_COMPILE,
  )(jax.random.key(0))
  found = jax.jit(model.recall_sums, compiler_options=forests.QUICK_COMPILE)(
    variables["params"], batch
  )
  assert set(found) == {
    "vectors",
    "vectors_of_parent",
    "matcher",
    "matcher_of_parent",
  }
  # With a thread of one comment its weights do not matter.
  for name, value in found["vectors_of_parent"].items():
    np.testing.assert_allclose(
      found["matcher_of_parent"][name], value, rtol=1e-5, err_msg=name
    )
  assert found["vectors"]["pairs"] == found["vectors_of_parent"]["pairs"] > 0


def test_without_reply_matching_nothing_is_trained_and_vectors_alone_are_told(
  make, batch
):
  model, params = make()
  assert "reply_matcher" not in params
  found = jax.eval_shape(model.recall_sums, params, batch)
  assert set(found) == {"vectors", "vectors_of_parent"}
  none = dataclasses.replace(model.config, context="none")
  assert type(model)(none).recall_sums(params, batch) == {}
