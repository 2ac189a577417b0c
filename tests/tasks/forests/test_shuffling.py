"""Orders of an epoch: those of TensorFlow's cipher, without TensorFlow."""

import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given
from hypothesis import strategies as st

from commentree.tasks.forests import shuffling

POWERS_OF_FOUR = {4**power for power in range(32)}


def by_tensorflow(places, size, seed, key):
  shuffled = tf.random.experimental.index_shuffle(
    tf.constant(places, tf.int64),
    seed=tf.constant([seed & 0x7FFFFFFF, key], tf.int32),
    max_index=tf.constant(size - 1, tf.int64),
  )
  return np.atleast_1d(shuffled.numpy())


@given(
  bits=st.integers(0, 44),
  beside=st.integers(-2, 2),
  seed=st.integers(-(2**63), 2**63),
  key=st.integers(0, 2**31 - 1),
)
@example(bits=0, beside=0, seed=0, key=0)
@example(bits=16, beside=2, seed=0, key=0)
@example(bits=14, beside=-1, seed=1, key=2)
@example(bits=14, beside=0, seed=1, key=2)
@example(bits=17, beside=1, seed=3, key=1)
def test_the_order_is_that_of_tensorflow(bits, beside, seed, key):
  size = max(1, 2**bits + beside)
  assume(size < 2**16 or size - 1 not in POWERS_OF_FOUR)
  places = np.unique(np.linspace(0, size - 1, 50).astype(np.int64))
  ours = shuffling.shuffle(places, size, seed, key)
  assert ours.dtype == np.int64
  np.testing.assert_array_equal(ours, by_tensorflow(places, size, seed, key))


@pytest.mark.parametrize("size", [1, 2, 1000, 2**16, 2**16 + 1, 70_000])
def test_an_order_has_every_place_once(size):
  order = shuffling.shuffle(np.arange(size), size, 5, 1)
  np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_an_order_of_few_things_is_found_as_fast_as_that_of_many():
  started = time.process_time()
  for epoch in range(20):
    shuffling.shuffle(np.arange(1), 1, 5, epoch)
  # A walk through the block, a number at a time, takes a second.
  assert time.process_time() - started < 2
