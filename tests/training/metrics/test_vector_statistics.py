from __future__ import annotations

import numpy as np
import pytest

from commentree.models.context import pooling
from commentree.training.metrics import vector_statistics


def statistics(vectors, used, batches=1):
  sums = vector_statistics.VectorSums()
  for part, in_use in zip(np.split(vectors, batches), np.split(used, batches)):
    sums.add(pooling.vector_sums(part, in_use))
  return sums.results()


def test_statistics_are_those_of_all_pairs_whatever_the_batches():
  rng = np.random.default_rng(0)
  vectors = rng.normal(0.5, 1, (4, 6, 2, 8)).astype(np.float32)
  used = rng.random((4, 6, 2)) < 0.7
  x = vectors[used].astype(np.float64)
  units = x / np.linalg.norm(x, axis=1, keepdims=True)
  cosines = (units @ units.T)[~np.eye(len(x), dtype=bool)]
  for batches in (1, 2, 4):
    found = statistics(vectors, used, batches)
    assert found["mean_cosine"] == pytest.approx(cosines.mean(), rel=1e-4)
    assert found["norm"] == pytest.approx((x**2).sum(1).mean() ** 0.5, rel=1e-5)
    from_mean = ((x - x.mean(0)) ** 2).sum(1).mean() ** 0.5
    assert found["spread"] == pytest.approx(from_mean, rel=1e-5)


def test_what_is_not_in_use_counts_for_nothing_even_if_it_is_not_finite():
  vectors = np.ones((1, 3, 1, 4), np.float32)
  vectors[0, 2] = np.nan
  used = np.array([[[True], [True], [False]]])
  assert statistics(vectors, used)["mean_cosine"] == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 1])
def test_of_less_than_two_vectors_nothing_is_told(count):
  used = np.arange(3).reshape(1, 3, 1) < count
  assert statistics(np.ones((1, 3, 1, 4), np.float32), used) == {}
  assert vector_statistics.warning({}) == ""


def test_a_collapse_is_said_and_vectors_that_differ_are_not():
  rng = np.random.default_rng(1)
  used = np.ones((1, 50, 1), bool)
  apart = rng.normal(size=(1, 50, 1, 16)).astype(np.float32)
  found = {"vectors": statistics(apart, used)}
  assert abs(found["vectors"]["mean_cosine"]) < 0.1
  assert vector_statistics.warning(found) == ""
  alike = {"vectors": statistics(0.1 * apart + 3, used)}
  said = vector_statistics.warning(alike)
  assert "vectors are nearly alike (mean cosine 1.00, spread 0." in said
  assert "\n" not in said
