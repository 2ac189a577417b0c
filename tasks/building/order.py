"""Where a tree goes: hashes of its id, the same on every machine and in every run."""

from __future__ import annotations

import hashlib

KEY_BITS = 64


def shuffle_key(seed: int, tree_id: str) -> int:
  """A tree's place in the global shuffle: in [0, 2**64), without a pattern in ids."""
  data = b"%d/%b" % (seed, tree_id.encode("utf-8", "replace"))
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def id_fraction(tree_id: str) -> float:
  """A tree's place in [0, 1), by its id alone, by which it is held out or not."""
  digest = hashlib.blake2b(tree_id.encode("utf-8", "replace"), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**KEY_BITS


def first_key(shard: int, num_shards: int) -> int:
  """The lowest key of a shard: shards are equal ranges of keys.

  The highest is one below `first_key(shard + 1, num_shards)`.
  """
  return -(-(shard << KEY_BITS) // num_shards)


def shard_of(key: int, num_shards: int) -> int:
  """The shard of a key."""
  return key * num_shards >> KEY_BITS
