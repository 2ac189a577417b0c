"""The unigram baseline: what a model without any context would lose.

It knows how often each token is a target in the training data. Its loss is the
cross-entropy of the held-out targets under those frequencies: on the same tokens as the
model's, so that the two can be compared.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping

import flax.struct
import jax
import numpy as np
from etils import epath

from . import storage

UNIGRAM = "unigram"
"""Its name beside the ancestor conditions."""

_FILE = "target_counts.npz"
_ATTEMPTS = 3

Counts = Mapping[str, np.ndarray]
"""How often each id is a target in training data, by dataset."""


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


def load_or_count(
  model_dir: epath.Path,
  count: Callable[[], Counts],
  writes: bool,
  say: Callable[[str], None] = storage.print_line,
) -> Counts:
  """Returns the counts that a run's folder holds, or counts and keeps them there.

  Args:
    model_dir: the run's folder, whose settings are known to be those of this run.
    count: counts the targets of the training data.
    writes: whether this process is the one that writes.
    say: tells the user a line.

  Raises:
    StorageError: if they cannot be written.
  """
  found = load(model_dir)
  if found:
    return found
  counts = count()
  if writes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **counts)
    storage.retried(
      f"{model_dir / _FILE} cannot be written",
      lambda: storage.write_bytes(model_dir / _FILE, stream.getvalue()),
      _ATTEMPTS,
      say,
    )
  return counts


def load(model_dir: epath.Path) -> Counts:
  """Returns the counts that a run's folder holds; none if it has none, or damaged."""
  try:
    data = (model_dir / _FILE).read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    return {}
