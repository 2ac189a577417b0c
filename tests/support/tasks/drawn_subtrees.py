"""Random subtrees of trees, for tests of what follows tokenisation."""

import numpy as np

VOCAB_SIZE = 100
MASK_ID = 3
FIRST_WORD = 10  # ids below are specials and markers


def maskable() -> np.ndarray:
  return np.arange(VOCAB_SIZE) >= FIRST_WORD


def random_subtree(rng, nodes=None, max_length=40, deep=0.3, tree_id=b"t"):
  """A whole small tree as a subtree: a marker, then words; the post is context."""
  nodes = nodes or int(rng.integers(1, 12))
  lengths = rng.integers(2, max_length, nodes).astype(np.int32)
  tokens = rng.integers(FIRST_WORD, VOCAB_SIZE, lengths.sum()).astype(np.int32)
  tokens[np.cumsum(lengths) - lengths] = 5  # the author's marker
  parents = np.array(
    [-1]
    + [
      n - 1 if rng.random() < deep else int(rng.integers(0, n)) for n in range(1, nodes)
    ],
    np.int32,
  )
  depths = np.zeros(nodes, np.int32)
  for node in range(1, nodes):
    depths[node] = depths[parents[node]] + 1
  is_target = (np.arange(nodes) > 0).astype(np.int32)
  return {
    "tokens": tokens,
    "lengths": lengths,
    "parents": parents,
    "depths": depths,
    "is_target": is_target,
    "node_ids": np.arange(nodes, dtype=np.int32),
    "tree_id": tree_id,
  }


def random_subtrees(count, seed=0, **settings):
  rng = np.random.default_rng(seed)
  return [
    random_subtree(rng, tree_id=f"t{i}".encode(), **settings) for i in range(count)
  ]


def node_of(subtree):
  return np.repeat(np.arange(len(subtree["lengths"])), subtree["lengths"])
