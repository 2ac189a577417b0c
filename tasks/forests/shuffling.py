"""Endless orders without memory: what stands at any position is found at once.

Grain's `MapDataset` is not used: with the next seed it reads an epoch in the order that
the next epoch has with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_SHUFFLE_BLOCK = 1024
# Of `tf.random.experimental.index_shuffle`: what stands before a key of two numbers,
# rounds of the cipher, the least bits of its blocks, and the constants of its schedule.
_FIRST_KEY = 498247692
_ROUNDS = 4
_LEAST_BITS = 16
# Of so many things, a quarter of a smallest block's numbers are theirs.
_FEW = 1 << (_LEAST_BITS - 2)
_C, _Z = 0xFFFFFFFC, 0x7369F885192C0EF5


def shuffle(places: np.ndarray, size: int, seed: int, key: int) -> np.ndarray:
  """Where a permutation of `size` things takes some of them: int64, as `places`.

  The permutation is a keyed bijection: none but the places asked for are computed. It
  is that of `tf.random.experimental.index_shuffle`: the block cipher Simon (Beaulieu et
  al. 2013) in four rounds, again and again until a number is below `size`. Of a power
  of four and one more things, from 2**16 + 1 on, TensorFlow takes two to one place, for
  want of a bit; here blocks are as large as it takes.

  Args:
    places: numbers below `size`, at least one.
    size: how many things there are.
    seed: one key of the permutation, of which 31 bits count.
    key: the other one, below 2**31.
  """
  bits = max(_LEAST_BITS, (size - 1).bit_length())
  word = (bits + bits % 2) // 2
  keys = _round_keys((_FIRST_KEY, seed & 0x7FFFFFFF, key), word)
  places = np.atleast_1d(places)
  if size < _FEW:
    return _walk(places, size, keys)
  shuffled = places.astype(np.uint64)
  outside = np.ones(len(shuffled), bool)
  while outside.any():
    shuffled[outside] = _encrypt(shuffled[outside], keys, word)
    outside = shuffled >= size
  return shuffled.astype(np.int64)


def _walk(places: np.ndarray, size: int, keys: Sequence[int]) -> np.ndarray:
  """The same where most numbers of a smallest block lie outside.

  All of them are walked at once, as far again each time as they have come.
  """
  word = _LEAST_BITS // 2
  words = np.arange(1 << word, dtype=np.uint16)
  mixed = _mixed(words, word)
  left, right = np.repeat(words, len(words)), np.tile(words, len(words))
  left, right = _cipher(left, right, keys, mixed.__getitem__)
  reached = left << np.uint16(word) | right
  while (outside := reached >= size)[places].any():
    reached = np.where(outside, reached[reached], reached)
  return reached[places].astype(np.int64)


def _round_keys(key: tuple[int, int, int], word: int) -> list[int]:
  """Simon's key schedule, in words of so many bits."""
  mask = (1 << word) - 1

  def rotated_right(x: int, by: int) -> int:
    return x >> by | x << (word - by) & mask

  keys = [part & mask for part in key]
  for number in range(_ROUNDS - len(keys)):
    last = keys[-1]
    mixed = rotated_right(last, 3) ^ rotated_right(last, 4) ^ keys[number]
    keys.append((mixed ^ _C ^ (_Z >> number & 1)) & mask)
  return keys


def _encrypt(values: np.ndarray, keys: Sequence[int], word: int) -> np.ndarray:
  """Simon's cipher of blocks of two words of so many bits, uint64 as `values`."""
  mask = np.uint64((1 << word) - 1)
  left, right = _cipher(
    values >> np.uint64(word), values & mask, keys, lambda x: _mixed(x, word)
  )
  return left << np.uint64(word) | right


def _cipher(
  left: np.ndarray,
  right: np.ndarray,
  keys: Sequence[int],
  mixed: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Simon's rounds, of both words of blocks."""
  for even, odd in zip(keys[::2], keys[1::2]):
    left = left ^ mixed(right) ^ left.dtype.type(even)
    right = right ^ mixed(left) ^ right.dtype.type(odd)
  return left, right


def _mixed(words: np.ndarray, bits: int) -> np.ndarray:
  """What Simon makes of a word, whose bits stand lowest in unsigned integers."""
  kind = words.dtype.type

  def rotated_left(by: int) -> np.ndarray:
    return (words << kind(by) | words >> kind(bits - by)) & kind((1 << bits) - 1)

  return rotated_left(1) & rotated_left(8 % bits) ^ rotated_left(2)


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
