"""Endless iterators of examples: some of them, and whether they are the same."""

import numpy as np


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_same(left, right):
  for one, other in zip(left, right, strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], err_msg=name)
