from __future__ import annotations

import pytest

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.training.checkpointing import checkpoint_choice
from commentree.training.config import CheckpointConfig, EvalConfig
from commentree.training.metrics import matching_statistics
from commentree.training.metrics.matching_statistics import MATCHING, MatchingSums
from commentree.training.reports.evaluation_report import flat_metrics

BATCH = {
  "vectors": {
    "pairs": 4.0,
    "candidates": 400.0,
    "recall_at_1": 1.0,
    "recall_at_10": 2.0,
    "reciprocal_rank": 1.5,
  }
}


def results(*batches):
  sums = MatchingSums()
  for batch in batches:
    sums.add(batch)
  return sums.results()


def test_means_are_over_the_pairs_of_all_batches():
  more = {"vectors": {**BATCH["vectors"], "pairs": 12.0, "candidates": 0.0}}
  found = results(BATCH, {}, more)["vectors"]
  assert found == {
    "recall_at_1": pytest.approx(2 / 16),
    "recall_at_10": pytest.approx(4 / 16),
    "mean_reciprocal_rank": pytest.approx(3 / 16),
    "candidates": pytest.approx(25),
    "pairs": 16,
  }


def test_a_sentence_tells_it_and_nothing_where_nothing_is_known():
  line = matching_statistics.sentence({MATCHING: results(BATCH)})
  assert line == (
    "a comment is the first of 100 by its vector: 25.0% given all above it, without a"
    " matcher (4 comments)"
  )
  nothing = {"vectors": dict.fromkeys(BATCH["vectors"], 0.0)}
  assert results() == results(nothing) == {}
  assert matching_statistics.sentence({}) == ""


def test_the_best_checkpoint_may_be_that_of_the_highest_recall():
  metrics = flat_metrics({"true": {"loss": 2.0, MATCHING: results(BATCH)}})
  for value in ("recall_at_1", "recall_at_10", "mean_reciprocal_rank"):
    name = f"true/{MATCHING}/vectors/{value}"
    EvalConfig().check_metric("best_metric", name)
    worse, better = ({**metrics, name: metrics[name] + more} for more in (0, 0.1))
    assert checkpoint_choice.best_of({1: worse, 2: better, 3: worse}, name) == 2


@pytest.mark.parametrize(
  ("by", "model", "needed"),
  [
    ("matcher", ModelConfig(), "reply_matching_weight"),
    ("vectors", ModelConfig(context="none"), "context"),
    ("vectors", ModelConfig(head="classification", num_labels=2), "head"),
  ],
)
def test_recall_that_there_will_not_be_is_the_users_mistake(by, model, needed):
  name = f"true/{MATCHING}/{by}/recall_at_1"
  with pytest.raises(UserError, match=f"unless ModelConfig.{needed}"):
    matching_statistics.check_best_metric(CheckpointConfig(best_metric=name), model)
  sound = ModelConfig(reply_matching_weight=0.1)
  matching_statistics.check_best_metric(CheckpointConfig(best_metric=name), sound)
