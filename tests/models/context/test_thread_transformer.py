"""Vectors that attend to those above them: which these are, and what it changes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax.linen import partitioning

from commentree.models.conditions import apply_condition
from commentree.models.context.thread_transformer import above
from commentree.models.heads import matching
from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import forests, small_models

LAYERS = {"num_thread_layers": 2}


def jitted(model, params):
  logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  return lambda batch: np.asarray(logits(params, batch))


@pytest.fixture(scope="module")
def logits_with_threads(make, family):
  return jitted(*make(**LAYERS, **family))


def influences(logits_of, batch, example, forest):
  """Yields a changed comment, a target and the largest change of its logits."""
  before = logits_of(batch)
  for i, comment in enumerate(forest):
    after = logits_of(forests.changed(batch, example, comment))
    for j, target in enumerate(forest):
      if target.is_target and i != j:
        masked = forests.masked_of(batch, example, target.target)
        yield i, j, np.abs(after[example] - before[example])[masked].max()


def test_only_true_ancestors_change_what_a_target_is_given(logits_with_threads, packed):
  for example, forest in enumerate(packed.forests):
    for i, j, change in influences(logits_with_threads, packed.batch, example, forest):
      if i in forest[j].ancestors:
        assert change > 1e-4, (i, j)
      elif i not in forest[j].whole_path:
        assert change == 0, (i, j)


def test_a_parent_alone_knows_no_thread(logits_with_threads, packed):
  batch = jax.tree.map(np.asarray, apply_condition(packed.batch, "parent_only"))
  forest = packed.forests[1]
  for i, j, change in influences(logits_with_threads, batch, 1, forest):
    hops = dict(zip(forest[j].ancestors, forest[j].distances)).get(i)
    assert (change > 1e-4) if hops == 1 else (change == 0), (i, j, hops)


def test_without_ancestors_nothing_is_read(logits_with_threads, packed):
  batch = apply_condition(packed.batch, "none")
  other = {**batch, "encoder_input_tokens": batch["encoder_input_tokens"][:, ::-1] ^ 1}
  np.testing.assert_array_equal(logits_with_threads(batch), logits_with_threads(other))


@pytest.mark.parametrize("max_ancestors", [3, 16])
def test_who_is_above_whom_is_what_the_tree_says_as_far_as_targets_are_shown(
  max_ancestors,
):
  drawn, batch = forests.random_batch(
    0, [(20, 20), (30,)], [(1, 2), (3,)], max_ancestors
  )
  found = np.asarray(above(batch, batch["encoder_slot_depths"].shape[-1]))
  offsets = [0, 0]
  for example, forest in enumerate(drawn):
    root = offsets[example]
    for i, comment in enumerate(forest):
      if i and comment.tree != forest[i - 1].tree:
        root = i
      if not comment.slot:
        continue
      told = {forest[e].slot for e in range(len(forest)) if forest[e].slot}
      seen = {slot for slot in told if found[example, comment.slot - 1, slot - 1]}
      path = {forest[root + a].slot for a in comment.whole_path}
      shown = set()
      for target in forest:
        if target.is_target and i in target.ancestors:
          place = target.ancestors.index(i)
          shown |= {forest[a].slot for a in target.ancestors[place + 1 :]}
      assert seen == shown
      assert seen <= path
      if max_ancestors == 16:
        assert seen == path
  unused = batch["encoder_slot_depths"] < 0
  assert not found[unused].any()


def test_new_layers_change_nothing_at_first_whatever_they_are_given(
  make, packed, family
):
  settings = {"vectors_per_comment": 2, "num_decoder_layers": 1, **family}
  with_layers, drawn = make(**settings, **LAYERS)
  without, rest = make(**settings)
  initial = jax.jit(
    lambda key: with_layers.get_initial_variables(key, packed.shapes)["params"][
      "thread_transformer"
    ],
    compiler_options=forests.QUICK_COMPILE,
  )(jax.random.key(0))
  assert set(drawn) == {*rest, "thread_transformer"}
  np.testing.assert_array_equal(
    jitted(with_layers, {**rest, "thread_transformer": initial})(packed.batch),
    jitted(without, rest)(packed.batch),
  )
  gradients = jax.jit(
    jax.grad(
      lambda layers: with_layers.loss_fn(
        {**rest, "thread_transformer": layers}, packed.batch, None
      )[0]
    ),
    compiler_options=forests.QUICK_COMPILE,
  )(initial)
  layer = gradients["layers_0"]
  for part in (layer["attention"]["out"], layer["mlp"]["wo"]):
    assert np.abs(part["kernel"]).max() > 1e-6


def test_replies_are_matched_by_vectors_that_do_not_know_their_threads(make, packed):
  plain, _ = make(reply_matching_weight=0.1)
  model, params = make(reply_matching_weight=0.1, **LAYERS)
  rest = {name: part for name, part in params.items() if name != "thread_transformer"}
  pairs = matching.pairs_of(packed.batch)

  def matched(model, params):
    encoded = model.encode(params, packed.batch)
    return model.module.apply({"params": params}, encoded, pairs, method="match")

  for one, other in zip(matched(model, params), matched(plain, rest)):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_layers_have_the_same_names_and_axes_scanned_or_not(packed, family, remat):
  found = []
  for scan in (False, True):
    model = CommentTreeModel(
      dataclasses.replace(
        small_models.CONFIG, scan_layers=scan, remat_policy=remat, **LAYERS, **family
      )
    )
    variables = jax.eval_shape(
      lambda model=model: model.get_initial_variables(jax.random.key(0), packed.shapes)
    )
    axes = partitioning.get_axis_names(variables["params_axes"])["thread_transformer"]
    shapes = variables["params"]["thread_transformer"]
    found.append((jax.tree.map(lambda leaf: leaf.shape, shapes), axes))
  assert found[0] == found[1]
  shapes, axes = found[0]
  assert set(shapes) == {"distance_bias", "layers_0", "layers_1"}
  assert tuple(axes["layers_0"]["attention"]["query"]["kernel"]) == (
    "embed",
    "joined_kv",
  )
  assert tuple(axes["layers_1"]["mlp"]["wo"]["kernel"]) == ("mlp", "embed")
  assert tuple(axes["distance_bias"]) == ("heads", "ancestor_distance")
