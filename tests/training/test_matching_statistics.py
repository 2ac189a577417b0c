from __future__ import annotations

import pytest

from commentree.training import matching_statistics
from commentree.training.matching_statistics import MATCHING, MatchingSums

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
