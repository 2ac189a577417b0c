"""Endless orders without memory: what stands at any position is found at once.

Grain's `MapDataset` is not used: with the next seed it reads an epoch in the order that
the next epoch has with this one.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_SHUFFLE_BLOCK = 1024


def shuffle(places: np.ndarray, size: int, seed: int, key: int) -> np.ndarray:
  """Where a permutation of `size` things takes some of them: int64, as `places`.

  The permutation is a keyed bijection: none but the places asked for are computed.

  Args:
    places: numbers below `size`, at least one.
    size: how many things there are.
    seed: one key of the permutation, of which 31 bits count.
    key: the other one, below 2**31.
  """
  shuffled = tf.random.experimental.index_shuffle(
    tf.constant(places, tf.int64),
    seed=tf.constant([seed & 0x7FFFFFFF, key], tf.int32),
    max_index=tf.constant(size - 1, tf.int64),
  )
  return np.atleast_1d(shuffled.numpy())


class EpochShuffle:
  """Positions 0, 1, 2… to (epoch, index): each epoch a permutation of its own."""

  def __init__(self, examples: int, seed: int):
    self._examples = examples
    self._seed = seed
    self._block: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

  def __getitem__(self, position: int) -> tuple[int, int]:
    epoch, place = divmod(position, self._examples)
    block, offset = divmod(place, _SHUFFLE_BLOCK)
    key = epoch * (self._examples // _SHUFFLE_BLOCK + 1) + block
    if self._block[0] != key:
      start = block * _SHUFFLE_BLOCK
      places = np.arange(start, min(start + _SHUFFLE_BLOCK, self._examples))
      self._block = (key, shuffle(places, self._examples, self._seed, epoch))
    return epoch, int(self._block[1][offset])
