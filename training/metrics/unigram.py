"""The unigram baseline: what a model without any context would lose.

It knows how often each token is a target in the training data. Its loss is the
cross-entropy of the held-out targets under those frequencies: on the same tokens as the
model's, so that the two can be compared.
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

UNIGRAM = "unigram"
"""Its name beside the ancestor conditions."""


@flax.struct.dataclass
class Unigram:
  """Frequencies of targets, as an evaluation takes them.

  Attributes:
    log_probabilities: of each id, nats. [V]
    ranks: of each id from 0, the most frequent. [V]
  """

  log_probabilities: np.ndarray | jax.Array
  ranks: np.ndarray | jax.Array

  @classmethod
  def of_counts(cls, counts: np.ndarray) -> Unigram:
    """Returns frequencies smoothed for ids that were not seen.

    A share of the probability is spread over all ids alike: that of ids seen once,
    which estimates how much of new data was never seen (Good, 1953).

    Args:
      counts: how often each id is a target. [V]
    """
    counts = np.asarray(counts, np.float64)
    total = max(counts.sum(), 1.0)
    new = min(max((counts == 1).sum(), 1.0) / total, 1.0)
    probabilities = (1 - new) * counts / total + new / len(counts)
    ranks = np.empty(len(counts), np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return cls(np.log(probabilities).astype(np.float32), ranks)
