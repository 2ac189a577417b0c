"""What precision, recall and F1 are made of: counts that add up over batches.

Everywhere `[3, X]`, float32, of each label or kind of span: how many are predicted
rightly, how many are predicted, how many there are.

Spans are those of seqeval's default mode (Nakayama 2018), which are conlleval's (Tjong
Kim Sang & Buchholz 2000): a span begins at a beginning, and at an inside that follows
an outside or another kind; it continues while insides of its kind follow. It is right
if there is one of the same kind, the same first and the same last token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from commentree.models.heads import crf
from commentree.models.layers import Array


def class_counts(
  labels: Array, predictions: Array, used: Array, num_labels: int
) -> Array:
  """Returns the counts of each label, `[3, C]`.

  Args:
    labels: what there is, `[...]`.
    predictions: what is predicted, `[...]`.
    used: which of them count, `[...]`.
    num_labels: C.
  """
  return _counts(
    jax.nn.one_hot(labels, num_labels) * used[..., None],
    jax.nn.one_hot(predictions, num_labels) * used[..., None],
    labels == predictions,
  )


def span_counts(labels: Array, predictions: Array, chains: Array, kinds: int) -> Array:
  """Returns the counts of each kind of span, `[3, K]`.

  Args:
    labels: tags of tokens, `[..., M]`, numbered as in `crf`.
    predictions: likewise.
    chains: comment of each token, `[..., M]`, 0 for tokens that do not count.
    kinds: K.
  """
  there_kind, there_first, there_ends = _spans(labels, chains)
  found_kind, found_first, found_ends = _spans(predictions, chains)
  return _counts(
    # -1 for tokens that end none: nothing.
    jax.nn.one_hot(jnp.where(there_ends, there_kind, 0) - 1, kinds),
    jax.nn.one_hot(jnp.where(found_ends, found_kind, 0) - 1, kinds),
    (there_kind == found_kind) & (there_first == found_first),
  )


def _counts(there: Array, found: Array, same: Array) -> Array:
  """Sums one-hot vectors `[..., X]`; what is right has the same in both places."""
  axes = tuple(range(there.ndim - 1))
  right = there * found * same[..., None]
  return jnp.stack([jnp.sum(x, axis=axes) for x in (right, found, there)])


def _spans(labels: Array, chains: Array) -> tuple[Array, Array, Array]:
  """Returns each token's kind from 1, its span's first column, whether it ends one."""
  labels = crf.repair_iob2(jnp.where(chains > 0, labels, 0), chains)
  kind = (labels + 1) // 2
  # A span follows at once, or nothing of this one does.
  begins = labels % 2 == 1
  goes_on = jnp.pad(kind[..., 1:] * ~begins[..., 1:], _one_more(labels)) > 0
  columns = jnp.broadcast_to(jnp.arange(labels.shape[-1]), labels.shape)
  first = jax.lax.cummax(jnp.where(begins, columns, -1), axis=labels.ndim - 1)
  return kind, first, (kind > 0) & ~goes_on


def _one_more(x: Array) -> list[tuple[int, int]]:
  return [(0, 0)] * (x.ndim - 1) + [(0, 1)]
