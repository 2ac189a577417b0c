"""Measures of numbers, over the batches of an evaluation."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from commentree.console import Console
from commentree.errors import UserError
from commentree.models.batch import masked_targets
from commentree.models.config import ModelConfig
from commentree.models.heads import regression as head
from commentree.tests.support.training import stub
from commentree.training import evaluation, partitioning
from commentree.training.checkpointing import checkpoint_choice
from commentree.training.config import (
  CheckpointConfig,
  EvalConfig,
  PartitioningConfig,
)
from commentree.training.metrics import regression
from commentree.training.reports import evaluation_report

SQUARED = ModelConfig(head="regression", num_labels=1)
RANKING = ModelConfig(head="regression", num_labels=1, regression_loss="ranking")


class NumberedStub(stub.StubModel):
  """Tells numbers by the tokens it reads, and better with ancestors."""

  def __init__(self, config):
    super().__init__()
    self.config = config

  def numbered(self, batch, condition):
    """A batch with numbers, and what is predicted `[B, G, M]`."""
    # Other numbers for replies to the same comment.
    numbers = batch["target_trees"] % 3 + jnp.arange(6)[None] / 4.0
    batch = {**batch, "target_numbers": jnp.asarray(numbers, jnp.float32)}
    noise = batch["decoder_target_tokens"] % 4 - 1.5
    there = jnp.take_along_axis(
      batch["target_numbers"],
      masked_targets(batch).reshape(len(numbers), -1) - 1,
      axis=1,
    ).reshape(noise.shape)
    predicted = there + noise * (2.0 if condition == "none" else 0.5) + 0.25
    return batch, jnp.round(2 * predicted) / 2

  def evaluate_batch(self, params, batch, condition):
    tokens = super().evaluate_batch(params, batch, condition)
    batch, predicted = self.numbered(batch, condition)
    del tokens["correct"]
    return tokens | {
      "nll": head.losses_of(self.config, predicted, batch).loss,
      "weights": head.weights_of(self.config, batch),
      "regression": head.sums_of(self.config, predicted, batch),
    }


@pytest.fixture(scope="module", params=[SQUARED, RANKING], ids=["squared", "ranking"])
def evaluated(request):
  model = NumberedStub(request.param)
  batch = stub.random_batch(0, 8)
  shapes = {name: values.shape for name, values in batch.items()}
  types = {name: values.dtype for name, values in batch.items()}
  params = model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
  evaluate = evaluation.Evaluator(
    model,
    partitioning.make_mesh(PartitioningConfig()),
    PartitioningConfig(),
    EvalConfig(conditions=("true", "none")),
  )
  assert not evaluate.has_bags
  return model, evaluate(params, stub.held_out()())


def by_hand(model, condition):
  """All numbers there and predicted, and the order of each pair, a loop at a time."""
  there, predicted, order = [], [], []
  for batch in stub.held_out()():
    batch, found = map(
      lambda x: jax.tree.map(np.asarray, x), model.numbered(batch, condition)
    )
    targets = np.asarray(masked_targets(batch))
    for example in range(len(found)):
      own = {}
      for at in np.argwhere(batch["decoder_loss_weights"][example] > 0):
        target = int(targets[example][tuple(at)]) - 1
        own[target] = float(found[example][tuple(at)])
      numbers = batch["target_numbers"][example]
      there += [float(numbers[t]) for t in own]
      predicted += own.values()
      for i in own:
        for j in own:
          same = all(
            batch[name][example, i] == batch[name][example, j]
            for name in ("target_trees", "target_depths")
          )
          parents = [batch["ancestor_slots"][example, t, 0] for t in (i, j)]
          if same and parents[0] == parents[1] and numbers[i] > numbers[j]:
            order.append((1 + np.sign(own[i] - own[j])) / 2)
  return there, predicted, order


def test_measures_are_those_of_all_numbers_at_once(evaluated):
  model, found = evaluated
  for condition in ("true", "none"):
    there, predicted, order = by_hand(model, condition)
    result = found[condition]
    correlation = scipy.stats.pearsonr(there, predicted).statistic
    assert result["pearson"] == pytest.approx(correlation, abs=1e-6)
    assert result["pairs"] == len(order)
    assert len(order) > 3
    assert result["pairwise_accuracy"] == pytest.approx(np.mean(order))
    errors = np.square(np.subtract(there, predicted))
    if model.config.regression_loss == "squared":
      assert result["loss"] == pytest.approx(errors.mean())
      assert result["r2"] == pytest.approx(1 - errors.mean() / np.var(there))
      assert result["tokens"] == len(there)
    else:
      assert "r2" not in result
    assert "accuracy" not in result
  assert found["true"]["pearson"] > found["none"]["pearson"]


def test_measures_are_in_the_table_on_the_console_and_among_what_chooses(evaluated):
  model, found = evaluated
  file = io.StringIO()
  Console(file=file, width=160).print(evaluation_report.table(found))
  text = file.getvalue()
  names = ["Pearson's correlation", "order of replies to one comment"]
  squared = model.config.regression_loss == "squared"
  for name in names + ["R²"] * squared:
    assert name in text
  assert ("R²" in text) == squared
  assert "accuracy" not in text
  assert f"{found['none']['pearson']:.3f}" in text
  assert f"correlation {found['true']['pearson']:.4f}" in regression.in_short(
    found["true"]
  )
  metrics = evaluation_report.flat_metrics(found)
  assert metrics["true/pearson"] == found["true"]["pearson"]
  better = {**metrics, "true/pearson": 1.0}
  one, other = (checkpoint_choice.quality(m, "true/pearson") for m in (metrics, better))
  assert one < other


def test_what_ancestors_save_is_said_in_the_unit_of_the_loss(evaluated):
  model, found = evaluated
  shuffled = {**found["none"], "minus_true": 0.5, "standard_error": 0.1, "trees": 9}
  said = evaluation_report.sentence({**found, "shuffled": shuffled}, "comment")
  squared = model.config.regression_loss == "squared"
  unit = "squared error" if squared else "nats"
  assert said.startswith(f"ancestors save 0.500 ± 0.100 {unit} a comment (9 trees")


def test_sums_over_parts_are_those_of_the_whole():
  rng = np.random.default_rng(0)
  there = rng.normal(3, 2, 60)
  predicted = there + rng.normal(0, 1, 60)

  def sums(part):
    s, y = predicted[part], there[part]
    return {
      "numbers": np.float64(len(y)),
      "predicted": s.sum(),
      "there": y.sum(),
      "predicted_squares": (s**2).sum(),
      "there_squares": (y**2).sum(),
      "products": (s * y).sum(),
      "squared_errors": ((s - y) ** 2).sum(),
      "pairs": np.float64(0),
      "right": np.float64(0),
    }

  parts = [sums(slice(i, i + 20)) for i in (0, 20, 40)]
  added = {name: sum(part[name] for part in parts) for name in parts[0]}
  found = regression.results({"regression": added})
  whole = regression.results({"regression": sums(slice(None))})
  for name in ("r2", "pearson"):
    assert found[name] == pytest.approx(whole[name])
  assert found["pearson"] == pytest.approx(np.corrcoef(there, predicted)[0, 1])
  assert regression.results({}) == {}


@pytest.mark.parametrize(
  ("metric", "model", "message"),
  [
    ("true/r2", ModelConfig(), "unless ModelConfig.head is 'regression'"),
    ("none/pearson", ModelConfig(), "unless ModelConfig.head is 'regression'"),
    ("true/r2", RANKING, "whose numbers have no scale"),
    ("true/accuracy", SQUARED, "with ModelConfig.head = 'regression'"),
    ("true/by_depth/3/accuracy", SQUARED, "with ModelConfig.head = 'regression'"),
  ],
)
def test_a_metric_that_there_will_not_be_is_the_users_mistake(metric, model, message):
  config = CheckpointConfig(best_metric=metric)
  with pytest.raises(UserError, match=message):
    regression.check_best_metric(config, model)


def test_metrics_of_numbers_decide_where_there_are_some():
  for metric, model in (
    ("true/r2", SQUARED),
    ("parent_only/pairwise_accuracy", RANKING),
    ("true/accuracy", ModelConfig()),
    ("true/loss", SQUARED),
  ):
    regression.check_best_metric(CheckpointConfig(best_metric=metric), model)
    EvalConfig().check_metric("CheckpointConfig.best_metric", metric)
