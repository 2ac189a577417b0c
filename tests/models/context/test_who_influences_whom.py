"""Properties 2 and 4, and what must be defined where there is nothing to see."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models import conditions
from commentree.models.conditions import (
  ancestors_lacking,
  apply_condition,
  drop_ancestors,
  has_two_trees,
)
from commentree.tests.support.models import forests

pytestmark = pytest.mark.usefixtures("strict_shapes")


def test_changing_a_comment_changes_its_descendants_and_by_exactly_0_all_others(
  logits_of, packed
):
  seen = set()
  for forest, i, j, change in forests.changes_of(
    logits_of, packed.batch, packed.forests
  ):
    if i in forest[j].ancestors:
      assert change > 1e-4, f"{j} does not see its ancestor {i}"
    else:
      assert change == 0, f"{j} sees {i}"
    seen.add(i in forest[j].ancestors)
  assert seen == {True, False}


def test_changing_one_example_changes_nothing_in_another(logits_of, packed):
  before = logits_of(packed.batch)
  after = logits_of(forests.changed(packed.batch, 0, packed.forests[0][0]))
  np.testing.assert_array_equal(before[1:], after[1:])
  assert np.abs(before[0] - after[0]).max() > 0


def test_what_padding_holds_changes_nothing(logits_of, packed):
  forests.check_padding_is_unread(logits_of, packed.batch)


def test_without_ancestors_nothing_depends_on_the_encoder(logits_of, packed):
  batch = apply_condition(packed.batch, "none")
  other = {**batch, "encoder_input_tokens": batch["encoder_input_tokens"][:, ::-1] ^ 1}
  np.testing.assert_array_equal(logits_of(batch), logits_of(other))
  assert np.abs(logits_of(batch) - logits_of(packed.batch)).max() > 1e-4


def test_a_model_without_context_is_one_that_sees_no_ancestors(make, packed, family):
  (pooled, params), (without, same) = make(**family), make(**family, context="none")
  assert jax.tree.structure(params) == jax.tree.structure(same)
  hidden = apply_condition(packed.batch, "none")
  logits = [
    jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)(params, batch)
    for model, batch in ((pooled, hidden), (without, packed.batch))
  ]
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


def test_parent_only_depends_on_the_parent_and_on_nobody_else(logits_of, packed):
  batch = jax.tree.map(np.asarray, apply_condition(packed.batch, "parent_only"))
  for forest, i, j, change in forests.changes_of(logits_of, batch, packed.forests):
    hops = dict(zip(forest[j].ancestors, forest[j].distances)).get(i)
    assert (change > 1e-4) if hops == 1 else (change == 0), (i, j, hops)


def test_true_changes_nothing(packed):
  assert apply_condition(packed.batch, "true") == packed.batch


@pytest.fixture(scope="module")
def shuffled_logits_of(make, family):
  model, params = make(**family)
  logits = jax.jit(
    lambda batch: model.logits(params, apply_condition(batch, "shuffled")),
    compiler_options=forests.QUICK_COMPILE,
  )
  return lambda batch: np.asarray(logits(batch))


def test_shuffled_shows_each_target_as_many_comments_of_another_tree(
  shuffled_logits_of, packed
):
  before = shuffled_logits_of(packed.batch)
  seen = {}
  for example, forest in enumerate(packed.forests):
    for comment in forest:
      after = shuffled_logits_of(forests.changed(packed.batch, example, comment))
      for other_example, other_forest in enumerate(packed.forests):
        for other in other_forest:
          if other.is_target and other is not comment:
            masked = forests.masked_of(packed.batch, other_example, other.target)
            difference = np.abs(after - before)[other_example][masked].max()
            assert difference == 0 or difference > 1e-4
            if difference:
              seen.setdefault((other_example, other.target), []).append(comment)
  longest = max(len(c.ancestors) for c in packed.forests[0] if c.is_target)
  assert longest == 1
  for example, forest in enumerate(packed.forests):
    for target in forest:
      if target.is_target:
        arrived = seen.get((example, target.target), [])
        # The trees of the first forest have no longer lists to give to the second.
        there = len(target.ancestors) if example == 0 else longest
        assert len(arrived) == min(len(target.ancestors), there)
        assert target.tree not in {comment.tree for comment in arrived}
        assert len({comment.tree for comment in arrived}) <= 1
        lacking = ancestors_lacking(packed.batch)[example, target.target - 1]
        assert lacking == len(target.ancestors) - len(arrived)


def links(batch, shuffled, drawn):
  """Yields of each target with ancestors the comments that it is shown instead."""
  # The slot of a comment in the rows that an example reads, by its tokens' rows.
  first = np.asarray(shuffled["encoder_input_tokens"]).reshape(len(drawn), -1)
  donors = [
    [
      c
      for c in range(len(drawn))
      if (batch["encoder_input_tokens"][c].ravel() == f).all()
    ]
    for f in first
  ]
  for example, forest in enumerate(drawn):
    (donor,) = donors[example]
    by_slot = {comment.slot: comment for comment in drawn[donor] if comment.slot}
    for comment in forest:
      if comment.is_target and comment.ancestors:
        slots = np.asarray(shuffled["ancestor_slots"])[example, comment.target - 1]
        yield comment, [by_slot[slot] for slot in slots.tolist() if slot]


@pytest.mark.parametrize("seed", range(3))
def test_where_other_trees_have_long_lists_all_get_their_number_and_most_their_depths(
  seed,
):
  trees = [(1, 2), (2, 3, 4), (5,), (5, 6)]
  drawn, batch = forests.random_batch(
    seed, [(20, 20), (15, 15, 15), (30,), (20, 9)], trees
  )
  shuffled = apply_condition(batch, "shuffled")
  assert has_two_trees(batch)
  same_depth = []
  for target, shown in links(batch, shuffled, drawn):
    assert len(shown) == len(target.ancestors)
    assert len({id(comment) for comment in shown}) == len(shown)
    assert {comment.tree for comment in shown} != {target.tree}
    (tree,) = {comment.tree for comment in shown}
    assert tree != target.tree
    assert [c.depth for c in shown] == sorted((c.depth for c in shown), reverse=True)
    same_depth += [
      comment.depth == target.depth - hops
      for comment, hops in zip(shown, target.distances)
    ]
  assert np.mean(same_depth) > 0.6
  for name in ("decoder_input_tokens", "ancestor_distances", "target_depths"):
    assert shuffled[name] is batch[name]


def test_shuffled_reads_another_example_where_a_forest_holds_one_tree_alone():
  # Subtrees of tree 1 lie in all examples but one; in the fourth with a small tree,
  # where the targets of both find another tree only in the fifth.
  trees = [(1,), (1,), (1,), (1, 2), (3,)]
  drawn, batch = forests.random_batch(0, [(20,), (20,), (20,), (20, 2), (20,)], trees)
  shown = {}
  for target, comments in links(batch, apply_condition(batch, "shuffled"), drawn):
    shown.setdefault(target.tree, set()).update(c.tree for c in comments)
  assert shown == {1: {3}, 2: {3}, 3: {1}}


@pytest.mark.parametrize("seed", range(3))
def test_no_link_of_shuffled_leads_up_down_or_to_the_target_in_deep_threads(seed):
  # Small forests of deep threads, each of which lies in subtrees in several examples.
  trees = [(1,), (1, 2), (2,), (3, 1), (1,)]
  sizes = [(25,), (20, 6), (25,), (12, 12), (25,)]
  drawn, batch = forests.random_batch(seed, sizes, trees, 8)
  shuffled = apply_condition(batch, "shuffled")
  counts = dict.fromkeys(("links", "same tree", "same example and path"), 0)
  for forest in drawn:
    for comment in forest:
      comment.example = forest
  for target, shown in links(batch, shuffled, drawn):
    for comment in shown:
      counts["links"] += 1
      counts["same tree"] += comment.tree == target.tree
      up = any(comment is target.example[above] for above in target.whole_path)
      counts["same example and path"] += up or comment is target
  assert counts.pop("links") > 300
  assert not any(counts.values())


def test_longest_lists_are_found_as_by_comparing_all_with_all():
  rng = np.random.default_rng(0)
  choose = jax.jit(conditions._choose_examples)
  for _ in range(20):
    trees = rng.integers(1, 6, (7, 5)).astype(np.int32)
    counts = rng.integers(0, 5, (7, 5)).astype(np.int32)
    expected = []
    for b in range(7):
      costs = []
      for c in range(7):
        at = counts[c].argmax()
        second = max(
          (n for t, n in zip(trees[c], counts[c]) if t != trees[c, at]), default=0
        )
        length = [second if t == trees[c, at] else counts[c, at] for t in trees[b]]
        without = sum(w > 0 and n == 0 for w, n in zip(counts[b], length))
        missing = sum(max(w - n, 0) for w, n in zip(counts[b], length))
        costs.append((without, missing, (c - b - 1) % 7, c))
      expected.append(min(costs)[-1])
    assert choose(trees, counts).tolist() == expected


def test_choosing_examples_takes_no_more_memory_for_more_targets():
  def megabytes(targets):
    shape = jax.ShapeDtypeStruct((512, targets), np.int32)
    compiled = jax.jit(conditions._choose_examples).lower(shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20

  few, many = megabytes(8), megabytes(64)
  assert many < few + 2


def test_with_one_tree_in_the_batch_shuffled_shows_nothing():
  batch = forests.random_batch(0, [(20,), (20,), (9,)], [(7,)] * 3)[1]
  assert not has_two_trees(batch)
  shuffled = apply_condition(batch, "shuffled")
  assert not np.any(shuffled["ancestor_slots"])
  # A tree of posts alone has no ancestors to give.
  batch["target_trees"][0, -1] = 8
  assert not has_two_trees(batch)


def test_an_unknown_condition_is_a_user_error(packed):
  with pytest.raises(UserError, match="parent_only"):
    apply_condition(packed.batch, "siblings")


def test_ancestor_dropout_hides_its_share_half_of_it_all_but_the_parent():
  batch = {
    "ancestor_slots": np.tile([1, 2, 3], (50, 200, 1)),
    "ancestor_distances": np.tile([1, 2, 3], (50, 200, 1)),
  }
  slots = np.asarray(
    drop_ancestors(batch, jax.random.key(0), 0.4)["ancestor_slots"]
  ).reshape(-1, 3)
  kinds = {
    tuple(row): np.mean((slots == row).all(-1)) for row in np.unique(slots, axis=0)
  }
  assert set(kinds) == {(0, 0, 0), (1, 0, 0), (1, 2, 3)}
  np.testing.assert_allclose(kinds[0, 0, 0], 0.2, atol=0.02)
  np.testing.assert_allclose(kinds[1, 0, 0], 0.2, atol=0.02)


@pytest.mark.parametrize("family", ["t5"], indirect=True)
def test_ancestor_dropout_is_for_training_only(make, packed, family, logits_of):
  model, params = make(ancestor_dropout_rate=1.0, **family)
  jitted = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  batch = packed.batch
  np.testing.assert_array_equal(jitted(params, batch), logits_of(batch))
  # All are hidden from half of the targets, all but the parent from the others.
  trained = np.asarray(jitted(params, batch, jax.random.key(0)))
  other = {**batch, "encoder_input_tokens": batch["encoder_input_tokens"] ^ 1}
  after = np.asarray(jitted(params, other, jax.random.key(0)))
  unmoved = [
    (trained == after)[example][forests.masked_of(batch, example, comment.target)].all()
    for example, forest in enumerate(packed.forests)
    for comment in forest
    if comment.is_target and comment.ancestors
  ]
  assert 0 < np.mean(unmoved) < 1


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "attention"])
def test_gradients_reach_the_encoder_through_every_vector_in_use(make, packed, pooling):
  model, params = make(pooling=pooling, vectors_per_comment=2)
  module, weights = model.module, packed.batch["decoder_loss_weights"]

  def encoded(table):
    changed = {**params, "token_embedder": {"embedding": table}}
    return model.encode(changed, packed.batch)

  def decoded(vectors, rest):
    read = dataclasses.replace(rest, vectors_BEJD=vectors)
    logits = module.apply({"params": params}, read, packed.batch, method=module.decode)
    return jnp.sum(jax.nn.log_softmax(logits)[..., 5] * weights)

  def gradients(table):
    read = encoded(table)
    of_words = jax.jacrev(lambda t: encoded(t).vectors_BEJD[0, 0].sum(-1))(table)
    return read.used_BEJ, jax.grad(decoded)(read.vectors_BEJD, read), of_words

  used, of_vectors, of_words = jax.tree.map(
    np.asarray,
    jax.jit(gradients, compiler_options=forests.QUICK_COMPILE)(
      params["token_embedder"]["embedding"]
    ),
  )
  of_vectors = np.linalg.norm(of_vectors, axis=-1)
  slots_in_use = packed.batch["encoder_slot_depths"] >= 0
  assert used[slots_in_use].all()
  assert not used[~slots_in_use].any()
  assert (of_vectors[used] > 1e-5).all(), "a vector in use has no influence"
  assert (of_vectors[~used] == 0).all(), "an unused vector has influence"

  # And from each vector into what the encoder read: its comment's words.
  comment = next(c for c in packed.forests[0] if c.slot == 1)
  reached = np.linalg.norm(of_words, axis=-1) > 1e-6
  assert reached.shape[0] == 2
  for vector in reached:
    assert set(np.flatnonzero(vector)) == set(comment.tokens)


def test_empty_examples_and_targets_without_ancestors_give_no_nan(make, packed, family):
  model, params = make(**family)
  layout = forests.Layout()
  empty = forests.batch_of(forests.empty_example(layout), forests.empty_example(layout))
  loss_and_gradient = jax.jit(
    jax.value_and_grad(model.loss_fn, has_aux=True),
    compiler_options=forests.QUICK_COMPILE,
  )
  (loss, metrics), gradients = loss_and_gradient(params, empty, None)
  assert loss == 0
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradients))
  assert metrics["masked_tokens"].compute() == 0
  assert metrics["comments"].compute() == 0

  orphans = jax.tree.map(np.asarray, apply_condition(packed.batch, "none"))
  orphans = {name: feature[:2] for name, feature in orphans.items()}
  (loss, _), gradients = loss_and_gradient(params, orphans, None)
  assert np.isfinite(loss)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  assert np.abs(gradients["ancestors"]["null_vector"]).max() > 0
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradients["encoder"]))


def test_only_targets_that_see_no_ancestor_see_the_null_vector(make, packed, family):
  model, params = make(**family)
  logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  before = np.asarray(logits(params, packed.batch))
  ancestors = {
    k: v + 1.0 if k == "null_vector" else v for k, v in params["ancestors"].items()
  }
  after = np.asarray(logits({**params, "ancestors": ancestors}, packed.batch))
  for example, forest in enumerate(packed.forests):
    for comment in forest:
      if comment.is_target:
        masked = forests.masked_of(packed.batch, example, comment.target)
        change = np.abs(after - before)[example][masked].max()
        assert (change == 0) if comment.ancestors else (change > 1e-4)
