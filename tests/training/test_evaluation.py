from __future__ import annotations

import io

import jax
import numpy as np
import pytest

from commentree.console import Console
from commentree.errors import UserError
from commentree.training import evaluation, partitioning
from commentree.training.config import EvalConfig, PartitioningConfig

from . import stub

GROUPS = {"low": [4, 5, 6], "high": np.arange(10, stub.VOCAB), "never": [3]}
CONFIG = EvalConfig(depth_edges=(0, 2, 3))


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


@pytest.fixture(scope="module")
def results(evaluate, params):
  return evaluate(params, stub.held_out()())


def by_hand(params, condition):
  """Every masked token: nll, correct, depth, target id."""
  rows = []
  for batch in stub.held_out()():
    tokens = stub.StubModel().evaluate_batch(params, batch, condition)
    used = batch["decoder_loss_weights"] > 0
    columns = (tokens["nll"], tokens["correct"], tokens["depths"])
    values = [np.asarray(column)[used] for column in columns]
    rows.append(np.stack([*values, batch["decoder_target_tokens"][used]], axis=1))
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


def test_the_conditions_differ(results):
  assert len({result["loss"] for result in results.values()}) == 4


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
  names = evaluation.depth_names((0, 1, 2, 3, 4, 6, 10))
  assert names == ["0", "1", "2", "3", "4-5", "6-9", "10+"]


def test_the_table_shows_conditions_depths_groups_and_tokens(results):
  console = Console(file=io.StringIO(), width=160)
  console.print(evaluation.table(results, "held out"))
  text = console.file.getvalue()
  for shown in ("held out", "parent_only", "depth 3+", "high", "tokens"):
    assert shown in text
  assert f"{results['none']['loss']:.3f}" in text


def test_flat_metrics_are_named_by_path(results):
  flat = evaluation.flat_metrics(results)
  assert flat["none/by_depth/2/loss"] == results["none"]["by_depth"]["2"]["loss"]
  assert set(evaluation.metrics_of({"true": results["true"]})) == {
    "true/loss",
    "true/accuracy",
    "true/tokens",
  }
