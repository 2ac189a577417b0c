"""Bags of words: what a comment's and its thread's words tell, without any network.

A bag predicts a masked token by a mixture: how frequent the token is in the training
data, its share of the comment's own visible words, and its share of the words of the
ancestors. What the ancestors add to the mixture is the least that a thread is worth: a
model that reads them should gain more.

`own` has no ancestors; `true`, `parent_only` and `shuffled` have those of the condition
of that name. Weights are fitted on training data, of each mixture alone: where
ancestors tell nothing, as those of another tree, their weight goes to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from commentree.models import occurrences
from commentree.models.conditions import apply_condition
from commentree.models.config import Condition
from commentree.training import partitioning
from commentree.training.cluster import hosts
from commentree.training.config import PartitioningConfig
from commentree.training.data_input import HostBatch, global_batches
from commentree.training.metrics.unigram import Unigram

PREFIX = "bag_"
"""Of a bag's name beside the ancestor conditions."""

OWN = "own"
CONDITIONS: tuple[Condition, ...] = ("true", "parent_only", "shuffled")
BAGS = (OWN, *CONDITIONS)
"""The mixtures, in the order of the rows of their weights `[4, 3]`.

The columns are the unigram's, the comment's own words' and the ancestors'.
"""

_MIN_TOKENS = 50_000
_MAX_BATCHES = 100
_ROUNDS = 500
_CONVERGED = 1e-9
# So that no token is impossible.
_LEAST_UNIGRAM = 1e-3


def names(conditions: Sequence[str]) -> list[str]:
  """Returns the names of the bags that go with an evaluation's conditions."""
  return [f"{PREFIX}{bag}" for bag in BAGS if bag == OWN or bag in conditions]


def is_bag(name: str) -> bool:
  """Whether a loss is that of a bag, by its name."""
  return name.startswith(PREFIX)


def shares(batch: Mapping[str, Any], conditions: Sequence[Condition]) -> jax.Array:
  """Returns the share of words that are the masked token, `[B, G, M, 1 + C]`.

  Of the comment's own visible words, then of those of its ancestors under each
  condition; -1 where there are no words.
  """
  counted = [occurrences.in_own_comment(batch)]
  for condition in conditions:
    counted.append(occurrences.in_ancestors(apply_condition(batch, condition)))
  return jnp.stack(
    [jnp.where(of > 0, times / jnp.maximum(of, 1), -1) for times, of in counted],
    axis=-1,
  )


def probabilities(unigram: Any, found: Any, weights: Any) -> list[Any]:
  """Returns each mixture's probability of the masked tokens, each `[...]`.

  Own words that are not there leave their weight to the unigram; a comment that sees no
  ancestors is predicted by the mixture without.

  Args:
    unigram: probability of the tokens by their frequency. [...]
    found: as `shares` returns them. [..., 1 + C]
    weights: of the mixture of own words, then of each condition's. [1 + C, 3]
  """
  own = jnp.where(found[..., 0] < 0, unigram, found[..., 0])
  alone = weights[0, 0] * unigram + weights[0, 1] * own
  result = [alone]
  for number in range(1, found.shape[-1]):
    above = found[..., number]
    row = weights[number]
    mixed = row[0] * unigram + row[1] * own + row[2] * above
    result.append(jnp.where(above < 0, alone, mixed))
  return result


def losses(
  batch: Mapping[str, Any],
  unigram: Unigram,
  weights: jax.Array | np.ndarray,
  conditions: Sequence[Condition],
) -> list[jax.Array]:
  """Returns the loss of each masked token under each bag, nats `[B, G, M]`.

  Args:
    batch: the batch.
    unigram: the frequencies.
    weights: of all mixtures. [4, 3]
    conditions: an evaluation's; the order is that of `names`.
  """
  used = [number for number, bag in enumerate(BAGS) if bag in (OWN, *conditions)]
  chosen: list[Condition] = [bag for bag in CONDITIONS if bag in conditions]
  frequencies = jnp.exp(unigram.log_probabilities[batch["decoder_target_tokens"]])
  found = shares(batch, chosen)
  mixed = probabilities(frequencies, found, weights[np.array(used)])
  return [-jnp.log(each) for each in mixed]


def fit(unigram: np.ndarray, found: np.ndarray) -> np.ndarray:
  """Returns weights of the mixtures by expectation maximization, float64 `[4, 3]`.

  Each mixture is fitted on the tokens that it is used for. The same tokens in the same
  order give the same weights.

  Args:
    unigram: probability of each token by its frequency. [N]
    found: as `shares` returns them for all conditions. [N, 4]
  """
  own = np.where(found[:, 0] < 0, unigram, found[:, 0])
  nothing = np.zeros_like(unigram)
  result = [_fit(np.stack([unigram, own, nothing]))]
  for above in found.T[1:]:
    seen = above >= 0
    parts = np.stack([unigram[seen], own[seen], above[seen]])
    result.append(_fit(parts) if seen.any() else result[0])
  return np.stack(result)


def _fit(parts: np.ndarray) -> np.ndarray:
  """Returns the weights of `parts` `[3, N]` that make the tokens likeliest."""
  weights = np.where(parts.any(axis=1), 1.0, 0.0)
  weights[0] = 1.0
  weights /= weights.sum()
  for _ in range(_ROUNDS if parts.shape[1] else 0):
    joint = weights[:, None] * parts
    new = (joint / joint.sum(axis=0)).mean(axis=1)
    moved = np.abs(new - weights).max()
    weights = new
    if moved < _CONVERGED:
      break
  weights[0] = max(weights[0], _LEAST_UNIGRAM)
  return weights / weights.sum()


class Fitter:
  """Fits weights on batches of training data; all processes take part."""

  def __init__(self, mesh: Mesh, partitioning_config: PartitioningConfig):
    """Compiles nothing yet."""
    self._mesh = mesh
    self._partitioning = partitioning_config
    self._measure = jax.jit(_measure, out_shardings=partitioning.replicated(mesh))

  def __call__(self, counts: np.ndarray, batches: Iterable[HostBatch]) -> np.ndarray:
    """Returns the weights of all mixtures, `[4, 3]`, the same on all processes.

    Args:
      counts: how often each id is a target in the training data. [V]
      batches: this process's share of batches of training data.
    """
    frequencies = np.exp(Unigram.of_counts(counts).log_probabilities)
    sharding = partitioning.replicated(self._mesh)
    placed = jax.make_array_from_process_local_data(
      sharding, frequencies, frequencies.shape
    )
    compiled, tokens, kept = None, 0, []
    for batch in global_batches(batches, self._mesh, _MAX_BATCHES):
      if compiled is None:
        with partitioning.in_mesh(self._mesh, self._partitioning):
          compiled = self._measure.lower(batch, placed).compile()
        hosts.barrier("bags of words compiled")
      unigram, found, used = jax.device_get(compiled(batch, placed))
      kept.append((unigram[used].astype(np.float64), found[used].astype(np.float64)))
      tokens += int(used.sum())
      # The same on all processes: they leave together.
      if tokens >= _MIN_TOKENS:
        break
    if not kept:
      return fit(np.zeros(0), np.zeros((0, len(BAGS))))
    return fit(*(np.concatenate(parts) for parts in zip(*kept)))


def _measure(batch, frequencies):
  return (
    frequencies[batch["decoder_target_tokens"]],
    shares(batch, CONDITIONS),
    batch["decoder_loss_weights"] > 0,
  )
