"""The head for numbers: losses, pairs and sums, against loops over comments."""

from __future__ import annotations

import dataclasses
import itertools
import math
import types

import jax
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.models.heads import regression
from commentree.tests.support.models import (
  forests,
  labelled,
  naive,
  slopes,
  small_models,
)
from commentree.tests.support.models.forests import QUICK_COMPILE
from commentree.training.metrics import regression as measures

# Orders stay if all scores grow alike, and a comment without ancestors has no pair.
UNUSED = {
  "squared": (),
  "ranking": ("['head']['logits']['bias']", "['ancestors']['null_vector']"),
}
SQUARED = ModelConfig(head="regression", num_labels=1)
RANKING = dataclasses.replace(SQUARED, regression_loss="ranking")


def quick(function):
  return jax.jit(function, compiler_options=QUICK_COMPILE)


@pytest.fixture(scope="module")
def threads():
  """Some forests, and an empty example."""
  rng = np.random.default_rng(4)
  layout = forests.Layout(encoder_rows=5, decoder_rows=6, slots=14, targets=16)
  drawn = [
    forests.random_forest(rng, sizes, (3, 4), small_models.CONFIG.vocab_size)
    for sizes in ((8, 5), (11,), (12,), (7, 6))
  ]
  examples = [forests.pack(forest, layout) for forest in drawn]
  batch = forests.batch_of(*examples, forests.empty_example(layout))
  return types.SimpleNamespace(forests=drawn, batch=labelled.with_numbers(batch))


@pytest.fixture(scope="module")
def batch(threads):
  return threads.batch


def numbered(threads, batch):
  """The targets that have a number: (example, comment, number), an example each."""
  for example, forest in enumerate(threads.forests):
    found = []
    for comment in forest:
      if comment.is_target:
        at = forests.masked_of(batch, example, comment.target)
        assert at.sum() <= 1
        if at.any():
          number = float(batch["target_numbers"][example, comment.target - 1])
          found.append((np.argwhere(at)[0], comment, number))
    yield example, found


def parent_of(comment):
  """What a comment answers; None of a post and of the further chunks of a comment."""
  if comment.depth == 0 or (comment.distances and comment.distances[0] == 0):
    return None
  return comment.tree, comment.whole_path[0]


def pairs(found):
  """Pairs of places in `found`, the one with the larger number first."""
  for (i, (_, a, y)), (j, (_, b, z)) in itertools.permutations(enumerate(found), 2):
    if parent_of(a) is not None and parent_of(a) == parent_of(b) and y > z:
      yield i, j


def drawn(batch, seed=0):
  shape = batch["decoder_loss_weights"].shape
  # Few values, so that some of what is predicted ties.
  drawn = np.random.default_rng(seed).integers(-2, 3, shape) / 2
  return drawn.astype(np.float32)


def test_there_are_pairs_to_speak_of(threads, batch):
  assert sum(len(list(pairs(found))) for _, found in numbered(threads, batch)) > 5


def test_losses_are_those_of_comments_one_by_one(threads, batch):
  predicted = drawn(batch)

  def losses(config):
    return (
      regression.losses_of(config, predicted, batch).loss,
      regression.weights_of(config, batch),
    )

  squared, squared_weights = map(np.asarray, quick(lambda: losses(SQUARED))())
  ranking, ranking_weights = map(np.asarray, quick(lambda: losses(RANKING))())
  np.testing.assert_array_equal(squared_weights, batch["decoder_loss_weights"])
  in_pair = 0
  for example, found in numbered(threads, batch):
    score = [float(predicted[example][tuple(at)]) for at, _, _ in found]
    own = {i: [] for i in range(len(found))}
    for i, j in pairs(found):
      for each in (i, j):
        own[each].append(math.log1p(math.exp(score[j] - score[i])))
    for i, (at, _, number) in enumerate(found):
      place = (example, *at)
      assert squared[place] == pytest.approx((score[i] - number) ** 2)
      assert ranking_weights[place] == bool(own[i])
      if own[i]:
        assert ranking[place] == pytest.approx(np.mean(own[i]), rel=1e-5)
        in_pair += 1
  assert ranking_weights.sum() == in_pair > 0


def test_sums_of_batches_come_to_the_measures_of_all_numbers(threads, batch):
  other = labelled.with_numbers(threads.batch, seed=3)
  sums = quick(lambda p, b: regression.sums_of(SQUARED, p, b))
  total, there, predicted, right = {}, [], [], []
  for each, seed in ((batch, 0), (other, 1)):
    s = drawn(each, seed)
    found = jax.device_get(sums(s, each))
    total = {name: total.get(name, 0) + np.float64(x) for name, x in found.items()}
    for example, comments in numbered(threads, each):
      score = [float(s[example][tuple(at)]) for at, _, _ in comments]
      predicted += score
      there += [number for *_, number in comments]
      order = [np.sign(score[i] - score[j]) for i, j in pairs(comments)]
      right += [(1 + sign) / 2 for sign in order]
  found = measures.results({"regression": total})
  residuals = np.square(np.subtract(predicted, there)).sum()
  assert found["r2"] == pytest.approx(1 - residuals / (np.var(there) * len(there)))
  assert found["pearson"] == pytest.approx(np.corrcoef(predicted, there)[0, 1])
  assert found["pairwise_accuracy"] == pytest.approx(np.mean(right))
  assert found["pairs"] == len(right)
  assert 0.5 in right


def test_numbers_without_spread_have_no_correlation_and_no_pairs_no_order(batch):
  same = {**batch, "target_numbers": np.full_like(batch["target_numbers"], 0.7)}
  sums = quick(lambda p: regression.sums_of(SQUARED, p, same))(drawn(batch))
  totals = {name: np.float64(x) for name, x in sums.items()}
  found = measures.results({"regression": totals})
  assert all(math.isnan(found[name]) for name in ("r2", "pearson", "pairwise_accuracy"))
  assert found["pairs"] == 0
  weights = quick(lambda: regression.weights_of(RANKING, same))()
  assert not np.any(weights)


def test_replies_to_a_post_without_text_are_paired_by_their_tree(batch):
  bare = {**batch, "ancestor_slots": np.zeros_like(batch["ancestor_slots"])}
  bare["ancestor_distances"] = np.zeros_like(batch["ancestor_distances"])
  better = np.asarray(quick(regression._better)(bare))
  assert better.any()
  for example, i, j in np.argwhere(better):
    for target in (i, j):
      assert batch["target_depths"][example, target] == 1
    trees = batch["target_trees"][example]
    assert trees[i] == trees[j]


# ---- The model ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["regression", "ranking"])
def head(request, make, batch):
  model, params = make(**labelled.HEADS[request.param])

  def everything(params, batch):
    def loss_of(params):
      loss, weight, sums = model.loss_sums(params, batch, None)
      return loss, (weight, sums)

    (loss, aux), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return {
      "loss": loss,
      "weight": aux[0],
      "sums": aux[1],
      "gradients": gradients,
      "evaluated": model.evaluate_batch(params, batch, "true"),
      "without": model.evaluate_batch(params, batch, "none"),
      "predicted": model.predict_batch(params, batch),
      "scored": model.score_batch(params, batch),
    }

  function = quick(everything)
  return model, params, function, jax.device_get(function(params, batch))


def predicted_of(params, comment, forest, cfg):
  """The number of a comment, from `naive`'s states."""
  ancestors = []
  for a, distance in zip(comment.ancestors, comment.distances):
    vectors = naive.pool(params, naive.encode(params, forest[a], cfg), cfg)
    ancestors.append((vectors, distance, forest[a].depth))
  logits = np.zeros((cfg.emb_dim, cfg.vocab_size))
  decoder = {**params["decoder"], "logits_dense": {"kernel": logits}}
  whole = {**params, "decoder": decoder}
  tokens = forests.masked_tokens(comment)
  states, _ = naive.decode(whole, comment, tokens, ancestors, cfg)
  hidden = np.tanh(naive.dense(params["head"]["hidden"], states.mean(0)))
  return naive.dense(params["head"]["logits"], hidden)[0]


def test_packed_forests_have_the_loss_and_gradients_of_comments_one_by_one(
  head, threads, batch
):
  model, params, _, found = head

  def naive_loss(params):
    total = 0.0
    for example, comments in numbered(threads, batch):
      forest = threads.forests[example]
      score = [predicted_of(params, c, forest, model.config) for _, c, _ in comments]
      if model.config.regression_loss == "squared":
        total += sum((s - y) ** 2 for s, (*_, y) in zip(score, comments))
        continue
      own = {i: [] for i in range(len(comments))}
      for i, j in pairs(comments):
        for each in (i, j):
          own[each].append(math.log1p(math.exp(score[j] - score[i])))
      total += sum(np.mean(losses) for losses in own.values() if losses)
    return total

  np.testing.assert_allclose(found["loss"], slopes.of(naive_loss, params), rtol=1e-5)
  unused = UNUSED[model.config.regression_loss]
  slopes.check(found["gradients"], naive_loss, params, 2, unused)


def test_nothing_depends_on_which_example_of_a_batch_a_forest_is(head, batch):
  _, params, function, found = head
  order = np.array([4, 2, 0, 1, 3])
  again = function(params, {name: values[order] for name, values in batch.items()})
  np.testing.assert_allclose(again["loss"], found["loss"], rtol=1e-6)
  used = batch["decoder_loss_weights"][order] > 0
  np.testing.assert_allclose(
    np.asarray(again["predicted"])[used], found["predicted"][order][used], rtol=1e-5
  )


def test_conditions_hide_ancestors_and_change_no_pair(head):
  *_, found = head
  used = found["evaluated"]["weights"] > 0
  # Which comments answer the same one is told by the true ancestors, shown or not.
  np.testing.assert_array_equal(used, found["without"]["weights"] > 0)
  for name in ("pairs", "there", "numbers"):
    sums = (found[of]["regression"][name] for of in ("evaluated", "without"))
    assert len(set(map(float, sums))) == 1
  assert (found["evaluated"]["nll"] != found["without"]["nll"])[used].any()


def test_losses_add_up_to_what_is_trained_scored_and_evaluated(head):
  *_, found = head
  evaluated = found["evaluated"]
  total = (evaluated["nll"] * evaluated["weights"]).sum()
  np.testing.assert_allclose(found["loss"], total, rtol=1e-5)
  np.testing.assert_allclose(-found["scored"].sum(), total, rtol=1e-5)
  assert found["weight"] == evaluated["weights"].sum() == found["sums"]["weights"]
  assert "accuracy" not in found["sums"]
  assert "correct" not in evaluated


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"head": "regression", "num_labels": 2}, "num_labels = 2: must be left out"),
    ({"head": "regression", "class_weights": (1.0,)}, "class_weights"),
    ({"regression_loss": "absolute"}, "must be one of 'squared'"),
  ],
)
def test_wrong_settings_are_one_line(settings, message):
  with pytest.raises(UserError, match=message):
    ModelConfig(**settings)
