from __future__ import annotations

import io

import numpy as np
import pytest

from commentree.console import Console
from commentree.tests.support.consoles import printed
from commentree.training.metrics import attention_statistics
from commentree.training.metrics.attention_statistics import AttentionSums
from commentree.training.reports import evaluation_report

# Two layers.
BATCH = {
  "tokens": np.array([10.0, 10]),
  "null_weight": np.array([2.0, 4]),
  "with_ancestors": np.array([8.0, 8]),
  "entropy": np.array([4.0, 8]),
  "most_entropy": np.array([8.0, 8]),
  "with_parent": np.array([4.0, 4]),
  "parent_weight": np.array([1.0, 3]),
  "update": np.array([1.0, 4]),
  "stream": np.array([100.0, 16]),
}


def results(*batches):
  sums = AttentionSums()
  for batch in batches:
    sums.add(batch)
  return sums.results()


def test_ratios_are_of_each_layer_and_their_mean():
  found = results(BATCH)
  assert found["by_layer"]["0"] == pytest.approx(
    {
      "update_share": 0.1,
      "entropy": 0.5,
      "most_entropy": 1,
      "parent_weight": 0.25,
      "null_weight": 0.2,
    }
  )
  assert found["by_layer"]["1"]["update_share"] == pytest.approx(0.5)
  assert found["update_share"] == pytest.approx(0.3)
  assert found["entropy"] == pytest.approx(0.75)


def test_tokens_of_all_batches_count_alike():
  more = {name: 3 * values for name, values in BATCH.items()}
  more["null_weight"] = np.zeros(2)
  found = results(BATCH, more)
  assert found["by_layer"]["0"]["null_weight"] == pytest.approx(0.05)
  assert found["entropy"] == pytest.approx(results(BATCH)["entropy"])


def test_what_a_pointer_copies_is_told_beside_it():
  found = results(BATCH | {"copied": np.array([0.5]), "may_copy": np.array([4.0])})
  assert found["copy_share"] == pytest.approx(0.125)
  line = attention_statistics.sentence({attention_statistics.ATTENTION: found})
  assert line.endswith("12.5% of the probability is copied from ancestors")
  plain = attention_statistics.sentence(
    {attention_statistics.ATTENTION: results(BATCH)}
  )
  assert "copied" not in plain


def test_without_ancestors_or_sums_nothing_is_told():
  assert results() == results({}) == {}
  none = {name: np.zeros(2) for name in BATCH}
  assert results(none) == {}
  assert attention_statistics.sentence({}) == ""
  assert attention_statistics.table({}) is None


def test_layers_stand_in_the_table_and_their_mean_in_a_line_and_in_metrics():
  of_true = {"loss": 1.0, attention_statistics.ATTENTION: results(BATCH)}
  console = Console(file=io.StringIO(), width=160)
  console.print(attention_statistics.table(of_true))
  text = printed(console)
  for shown in ("update / stream", "0.100", "0.500", "0.300", "mean"):
    assert shown in text
  said = attention_statistics.sentence(of_true)
  assert said == (
    "cross-attention adds 0.3 of what it is added to; entropy 0.75 of at most 1.00"
    " nats; 50% on the parent, 30% on the null vector"
  )
  assert said in evaluation_report.lines({"true": of_true})
  flat = evaluation_report.flat_metrics({"true": of_true})
  assert flat["true/cross_attention/by_layer/1/update_share"] == pytest.approx(0.5)
