from __future__ import annotations

import io

import jax
import numpy as np
import pytest

from commentree.console import Console
from commentree.errors import UserError
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training import evaluation, partitioning
from commentree.training.config import EvalConfig, PartitioningConfig
from commentree.training.metrics import (
  bags_of_words,
  evaluation_sums,
  tree_sums,
  unigram,
)
from commentree.training.metrics.baselines import Baseline
from commentree.training.reports import evaluation_report

GROUPS = {"low": [4, 5, 6], "high": np.arange(10, stub.VOCAB), "never": [3]}
CONFIG = EvalConfig(depth_edges=(0, 2, 3), frequency_ranks=(0, 2, 10))


@pytest.fixture(scope="module")
def params():
  batch = stub.random_batch(0, 8)
  shapes = {name: values.shape for name, values in batch.items()}
  types = {name: values.dtype for name, values in batch.items()}
  variables = stub.StubModel().get_initial_variables(jax.random.key(0), shapes, types)
  # Far from uniform, so that conditions, depths and groups differ.
  return jax.tree.map(lambda x: 10 * x, variables["params"])


@pytest.fixture(scope="module")
def evaluate():
  mesh = partitioning.make_mesh(PartitioningConfig())
  return evaluation.Evaluator(
    stub.StubModel(), mesh, PartitioningConfig(), CONFIG, GROUPS
  )


# Ids below 4 are no targets in the training data; the others are, the lower the more.
COUNTS = np.where(np.arange(stub.VOCAB) < 4, 0, stub.VOCAB - np.arange(stub.VOCAB))
# Of own words, with true ancestors, with the parent, with those of another tree.
WEIGHTS = np.array([[0.7, 0.3, 0], [0.5, 0.2, 0.3], [0.6, 0.2, 0.2], [0.6, 0.3, 0.1]])
BASELINE = Baseline(COUNTS, WEIGHTS)


@pytest.fixture(scope="module")
def results(evaluate, params):
  return evaluate(params, stub.held_out()(), baseline=BASELINE)


def by_hand(params, condition):
  """Every masked token: nll, correct, depth, target id, tree."""
  rows = []
  for batch in stub.held_out()():
    tokens = stub.StubModel().evaluate_batch(params, batch, condition)
    used = batch["decoder_loss_weights"] > 0
    depths, trees = (
      np.take_along_axis(batch[name][:, None], np.maximum(tokens["targets"] - 1, 0), 2)
      for name in ("target_depths", "target_trees")
    )
    columns = (tokens["nll"], tokens["correct"], depths)
    values = [np.asarray(column)[used] for column in columns]
    values.append(batch["decoder_target_tokens"][used])
    rows.append(np.stack([*values, trees[used]], axis=1))
  return np.concatenate(rows)


@pytest.mark.parametrize("condition", ["true", "shuffled", "parent_only", "none"])
def test_every_masked_token_counts_once_over_all_batches(params, results, condition):
  tokens = by_hand(params, condition)

  def check(result, selected):
    np.testing.assert_allclose(result["loss"], selected[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(result["accuracy"], selected[:, 1].mean(), rtol=1e-5)
    assert result["tokens"] == len(selected)

  found = results[condition]
  check(found, tokens)
  assert list(found["by_depth"]) == ["0-1", "2", "3+"]
  for name, low, high in (("0-1", 0, 1), ("2", 2, 2), ("3+", 3, 99)):
    selected = tokens[(tokens[:, 2] >= low) & (tokens[:, 2] <= high)]
    check(found["by_depth"][name], selected)
  assert list(found["by_group"]) == ["low", "high"]
  for name in ("low", "high"):
    check(found["by_group"][name], tokens[np.isin(tokens[:, 3], GROUPS[name])])


def test_how_much_alike_vectors_are_is_told_of_the_true_ancestors_alone(results):
  slots = np.concatenate(
    [batch["encoder_segment_ids"].reshape(-1) for batch in stub.held_out()()]
  )
  slots = slots[slots > 0].astype(np.float64)
  units = np.stack([slots, slots + 1]) / np.hypot(slots, slots + 1)
  expected = (units.T @ units)[~np.eye(len(slots), dtype=bool)].mean()
  assert results["true"]["vectors"]["mean_cosine"] == pytest.approx(expected, rel=1e-4)
  assert all("vectors" not in results[name] for name in results if name != "true")


def test_the_conditions_differ(results):
  assert len({result["loss"] for result in results.values()}) == 9


@pytest.mark.parametrize("condition", ["shuffled", "parent_only", "none"])
def test_differences_are_paired_and_their_errors_are_over_trees(
  params, results, condition
):
  true, other = by_hand(params, "true"), by_hand(params, condition)

  def check(result, selected):
    more, trees = (other - true)[selected, 0], true[selected, 4]
    assert result["minus_true"] == pytest.approx(more.mean(), rel=1e-4)
    # The jackknife over trees agrees with the linearized variance but for terms of a
    # higher order in the number of trees.
    numbers = np.unique(trees)
    left_out = [more[trees != number].mean() for number in numbers]
    share = (len(numbers) - 1) / len(numbers)
    jackknife = np.sqrt(share * np.sum((left_out - np.mean(left_out)) ** 2))
    assert result["standard_error"] == pytest.approx(jackknife, rel=0.25)
    assert result["trees"] == len(numbers)

  found = results[condition]
  check(found, np.ones(len(true), bool))
  check(found["by_depth"]["2"], true[:, 2] == 2)
  check(found["by_depth"]["3+"], true[:, 2] > 2)
  assert "minus_true" not in results["true"]


def test_the_unigram_baseline_is_on_the_same_tokens(params, results):
  ids = by_hand(params, "true")[:, 3].astype(int)
  log_probabilities = unigram.Unigram.of_counts(COUNTS).log_probabilities
  assert np.exp(log_probabilities).sum() == pytest.approx(1, rel=1e-5)
  found = results["unigram"]
  assert found["loss"] == pytest.approx(-log_probabilities[ids].mean(), rel=1e-5)
  assert found["accuracy"] == pytest.approx(np.mean(ids == COUNTS.argmax()))
  assert found["tokens"] == results["true"]["tokens"] == len(ids)


def bag_losses(weights=WEIGHTS):
  """Loss of every masked token under each bag, and its tree, by hand."""
  rows = []
  for batch in stub.held_out()():
    found = bags_of_words.losses(
      batch,
      unigram.Unigram.of_counts(COUNTS),
      np.float32(weights),
      bags_of_words.CONDITIONS,
    )
    used = batch["decoder_loss_weights"] > 0
    rows.append(np.stack([np.asarray(loss)[used] for loss in found], axis=1))
  return np.concatenate(rows)


def test_bags_of_words_tell_what_they_lose_and_gain_by_the_thread(params, results):
  losses, trees = bag_losses(), by_hand(params, "true")[:, 4]
  names = ["bag_own", "bag_true", "bag_parent_only", "bag_shuffled"]
  assert list(results)[-4:] == names
  for name, loss in zip(names, losses.T):
    assert results[name]["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert "accuracy" not in results[name]
    if name == "bag_own":
      assert "gain" not in results[name]
      continue
    gain = losses[:, 0] - loss
    expected = tree_sums.clustered(
      [gain[trees == tree].sum() for tree in np.unique(trees)],
      np.array([np.sum(trees == tree) for tree in np.unique(trees)]),
    )
    found = results[name]
    assert found["gain"] == pytest.approx(expected.value, abs=1e-6)
    assert found["gain_standard_error"] == pytest.approx(
      expected.standard_error, rel=1e-3
    )
    of_slices = found["by_depth"].values()
    total = sum(each["gain"] * each["tokens"] for each in of_slices)
    assert total / len(gain) == pytest.approx(found["gain"], abs=1e-6)
    minus_true = results[name]["loss"] - results["true"]["loss"]
    assert found["minus_true"] == pytest.approx(minus_true)


def test_bags_of_words_can_be_left_out(params):
  def names(config, baseline):
    mesh = partitioning.make_mesh(PartitioningConfig())
    evaluate = evaluation.Evaluator(
      stub.StubModel(), mesh, PartitioningConfig(), config
    )
    return list(evaluate(params, stub.held_out(1)(), baseline=baseline))

  without = EvalConfig(("true", "none"), bags_of_words=False)
  assert names(without, BASELINE) == ["true", "none", "unigram"]
  # Those of the conditions alone.
  few = names(EvalConfig(("true", "none")), BASELINE)
  assert few == ["true", "none", "unigram", "bag_own", "bag_true"]


def test_tokens_are_sliced_by_their_rank_in_the_training_data(
  evaluate, params, results
):
  tokens = by_hand(params, "true")
  ranks = unigram.Unigram.of_counts(COUNTS).ranks[tokens[:, 3].astype(int)]
  found = results["true"]["by_frequency"]
  assert list(found) == ["1-2", "3-10", "11+"]
  for name, low, high in (("1-2", 0, 2), ("3-10", 2, 10), ("11+", 10, 99)):
    selected = tokens[(ranks >= low) & (ranks < high)]
    assert found[name]["tokens"] == len(selected) > 0
    assert found[name]["loss"] == pytest.approx(selected[:, 0].mean(), rel=1e-5)
  without = evaluate(params, stub.held_out()())
  assert without["true"]["by_frequency"] == {}
  assert "unigram" not in without
  assert without["true"]["loss"] == pytest.approx(results["true"]["loss"])


def test_tokens_are_sliced_by_whether_an_ancestor_holds_them(results):
  slices = results["none"]["by_occurrence"]
  assert list(slices) == ["in_ancestor", "not_in_ancestor"]
  sums = [each["loss"] * each["tokens"] for each in slices.values()]
  tokens = results["none"]["tokens"]
  assert sum(each["tokens"] for each in slices.values()) == tokens
  assert sum(sums) / tokens == pytest.approx(results["none"]["loss"])
  assert all("standard_error" in each for each in slices.values())


def test_batches_of_one_tree_are_left_out_of_all_conditions_and_counted(
  evaluate, params
):
  batches = list(stub.held_out()())
  lone = {name: values.copy() for name, values in batches[1].items()}
  lone["target_trees"][:] = 5
  found = evaluate(params, [batches[0], lone, batches[2]])
  without = evaluate(params, [batches[0], batches[2]])
  tokens = int((lone["decoder_loss_weights"] > 0).sum())
  assert found["shuffled"].pop("left_out_tokens") == tokens
  assert found["shuffled"].pop("left_out_comments") > 0
  assert without["shuffled"].pop("left_out_tokens") == 0
  assert without["shuffled"].pop("left_out_comments") == 0
  assert found == without


def test_how_often_ancestors_of_other_trees_are_too_few_is_counted_and_said(
  evaluate, params
):
  whole = evaluate(params, stub.held_out(1)())["shuffled"]
  assert whole["fewer_ancestors"] == whole["missing_ancestors"] == 0
  # Of two trees one has single ancestors to give, to comments with as many as three.
  (batch,) = stub.held_out(1)()
  batch["target_trees"][:] = 1
  batch["target_trees"][:, 0] = 2
  batch["ancestor_slots"][:, 0, 1:] = 0
  used = np.zeros(batch["target_trees"].shape, bool)
  for example, (of, weights) in enumerate(
    zip(batch["decoder_segment_ids"][:, :, [1, 6]], batch["decoder_loss_weights"])
  ):
    used[example, of[weights > 0] - 1] = True
  counts = (batch["ancestor_slots"] > 0).sum(-1)[used]
  results = evaluate(params, [batch])
  found = results["shuffled"]
  assert found["fewer_ancestors"] == pytest.approx(np.mean(counts > 1))
  assert found["missing_ancestors"] == pytest.approx((counts - 1).sum() / counts.sum())
  said = evaluation_report.too_short(results)
  assert f"{np.mean(counts > 1):.0%} of the comments see fewer ancestors" in said
  assert said in evaluation_report.lines(results)


def test_what_is_left_out_is_said(evaluate, params):
  batches = list(stub.held_out()())
  batches[1]["target_trees"][:] = 5
  found = evaluate(params, batches)
  tokens = found["shuffled"]["left_out_tokens"]
  assert f"{tokens:,} tokens in batches that hold ancestors of at most one" in (
    evaluation_report.left_out(found)
  )
  assert evaluation_report.left_out(evaluate(params, batches[:1])) == ""


def test_where_no_batch_holds_two_trees_the_other_conditions_are_told(evaluate, params):
  batches = list(stub.held_out()())
  whole = evaluate(params, batches)
  for batch in batches:
    batch["target_trees"][:] = 0
  found = evaluate(params, batches)
  assert list(found) == ["true", "parent_only", "none"]
  assert found["true"] == whole["true"]
  assert found["none"]["trees"] == 1
  assert "standard_error" not in found["none"]
  assert evaluation_report.sentence(found) == ""
  assert "in no held-out batch do comments of two trees" in evaluation_report.left_out(
    found
  )


def test_a_sentence_says_whether_the_content_of_ancestors_helps():
  def say(value, trees=1200, **error):
    found = {"true": {}, "shuffled": {"minus_true": value, "trees": trees, **error}}
    return evaluation_report.sentence(found)

  assert say(0.12, standard_error=0.01) == (
    "ancestors save 0.120 ± 0.010 nats a token (1,200 trees, against ancestors of other"
    " trees)"
  )
  assert say(0.019, standard_error=0.01).startswith(
    "no sign that ancestors' content helps: +0.019 ± 0.010 nats a token"
  )
  assert say(-0.5, standard_error=0.01).startswith("ancestors cost 0.500 ± 0.010")
  assert "ancestors cost 0.120 nats a token (one tree: no" in say(-0.12, 1)
  # Of Student's t with one and with nine degrees of freedom one in 20 is beyond
  # 12.706 and 2.262, as tables have it.
  for trees, bound in ((2, 12.706), (10, 2.262)):
    less, more = (say(by * bound, trees, standard_error=1.0) for by in (0.999, 1.001))
    assert less.startswith("no sign")
    assert more.startswith("ancestors save")
  assert evaluation_report.sentence({"true": {}, "none": {"minus_true": 1.0}}) == ""


def test_what_is_known_of_the_true_ancestors_is_told_in_any_order_of_conditions():
  true = {"vectors": {"mean_cosine": 0.95, "spread": 0.1, "norm": 1.0}}
  for results in ({"true": true, "none": {}}, {"none": {}, "true": true}):
    assert evaluation_report.lines(results)[-1].startswith("comments' vectors are")


def test_a_limit_cuts_the_data_and_a_stop_gives_no_result(evaluate, params):
  once = evaluate(params, stub.held_out(batches=1)())
  assert evaluate(params, stub.held_out()(), 1) == once
  assert evaluate(params, stub.held_out()(), stop=lambda: True) is None


def test_data_without_a_masked_token_is_the_users_mistake(evaluate, params):
  empty = {k: np.zeros_like(v) for k, v in stub.random_batch(0, 8).items()}
  for data in ([], [empty]):
    with pytest.raises(UserError, match="no masked token"):
      evaluate(params, iter(data))


def test_depths_are_named_by_their_ranges():
  names = evaluation_sums.range_names((0, 1, 2, 3, 4, 6, 10))
  assert names == ["0", "1", "2", "3", "4-5", "6-9", "10+"]


def test_the_table_shows_conditions_depths_groups_and_tokens(results):
  console = Console(file=io.StringIO(), width=160)
  console.print(evaluation_report.table(results, "held out"))
  text = printed(console)
  for shown in ("held out", "parent_only", "depth 3+", "high", "tokens", "unigram"):
    assert shown in text
  more = results["shuffled"]["minus_true"], results["shuffled"]["standard_error"]
  assert text.count("{:+.3f} ± {:.3f}".format(*more)) == 2
  for shown in ("shuffled - true", "occurs in an ancestor", "rank 3-10", "minus true"):
    assert shown in text
  assert f"{results['none']['loss']:.3f}" in text


def test_the_table_of_bags_shows_what_they_and_the_model_gain(results):
  console = Console(file=io.StringIO(), width=160)
  console.print(evaluation_report.bags_table(results))
  text = printed(console)
  gain = "{gain:+.3f} ± {gain_standard_error:.3f}".format(**results["bag_true"])
  more = results["shuffled"]["minus_true"], results["shuffled"]["standard_error"]
  for shown in (gain, "{:+.3f} ± {:.3f}".format(*more), "+ shuffled", "depth 3+"):
    assert shown in text
  assert f"{results['bag_own']['loss']:.3f}" in text
  assert evaluation_report.bags_table({"true": results["true"]}) is None


def test_a_sentence_tells_what_bags_gain(results):
  said = evaluation_report.bags_sentence(results)
  gains = [
    "{gain:+.3f} ± {gain_standard_error:.3f}".format(**results[f"bag_{name}"])
    for name in ("true", "parent_only", "shuffled")
  ]
  assert said == (
    f"a bag of words gains by ancestors {gains[0]}, the parent alone {gains[1]}, those"
    f" of other trees {gains[2]} nats a token"
  )
  assert said in evaluation_report.lines(results)
  assert evaluation_report.bags_sentence({"true": {}}) == ""


def test_flat_metrics_are_named_by_path(results):
  flat = evaluation_report.flat_metrics(results)
  assert flat["none/by_depth/2/loss"] == results["none"]["by_depth"]["2"]["loss"]
  assert flat["shuffled/minus_true"] == results["shuffled"]["minus_true"]
