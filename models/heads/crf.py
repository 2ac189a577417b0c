"""Linear-chain conditional random fields over packed rows (Lafferty et al. 2001).

A chain is a run of tokens of one segment: a row holds several, and chains begin and end
where segments do. Segment 0 is padding, of which nothing is read. The score of labels
y of a chain of n tokens is

  first[y_1] + last[y_n] + sum of emissions[t, y_t] + sum of between[y_t-1, y_t],

and its probability the exponential of that over the sum of those of all labels, which
is found from left to right in log space (Rabiner 1989). Everything is float32, shapes
are `[..., L]` with any axes in front, and what runs along a row is one `lax.scan`.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from commentree.models.layers import MASKED_SCORE, Array


@flax.struct.dataclass
class Transitions:
  """Scores of labels next to each other, C of them.

  Attributes:
    between_CC: of the second label right after the first.
    first_C: of a chain's first label.
    last_C: of its last.
  """

  between_CC: Array
  first_C: Array
  last_C: Array


def allowed_transitions(num_labels: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns which labels may follow which `[C, C]`, and which may come first `[C]`.

  Labels are 0 outside, 2k + 1 for a beginning of kind k and 2k + 2 for what is inside
  of it (Ramshaw & Marcus 1995, as IOB2): inside only after that kind's beginning or
  inside.
  """
  label = np.arange(num_labels)
  inside = (label > 0) & (label % 2 == 0)
  kind = (label + 1) // 2
  continues = (kind[:, None] == kind) & (label > 0)[:, None]
  return ~inside | continues, ~inside


def forbid_invalid_transitions(transitions: Transitions) -> Transitions:
  """Returns the transitions with those that no spans could have ruled out."""
  between_CC, first_C = allowed_transitions(transitions.first_C.shape[-1])
  return Transitions(
    jnp.where(between_CC, transitions.between_CC, MASKED_SCORE),
    jnp.where(first_C, transitions.first_C, MASKED_SCORE),
    transitions.last_C,
  )


def repair_iob2(labels: Array, segment_ids: Array) -> Array:
  """Returns labels `[..., L]` in which what is inside of nothing is a beginning.

  So that the labels of data are among those that a structured chain may have: a span
  that continues after another inside of it, or in the next chunk of a long comment.
  """
  kind = (labels + 1) // 2
  begins = begins_of(segment_ids)
  before = jnp.where(begins, 0, _shifted(kind, 1))
  orphan = (labels > 0) & (labels % 2 == 0) & (before != kind)
  return jnp.where(orphan, labels - 1, labels)


def log_partition(
  emissions: Array, segment_ids: Array, transitions: Transitions
) -> Array:
  """Returns the log of the summed exponentials of all labels' scores, `[..., L]`.

  Stands at each chain's last token; 0 elsewhere.

  Args:
    emissions: `[..., L, C]`.
    segment_ids: `[..., L]`.
    transitions: scores of labels next to each other.
  """

  def step(before, token):
    emission, begins = token
    after = jax.nn.logsumexp(_onward(before, transitions), axis=-2)
    score = jnp.where(begins, _rank_up(transitions.first_C, emission), after) + emission
    return score, score

  scores = _scan(step, emissions, begins_of(segment_ids)[..., None])
  totals = jax.nn.logsumexp(scores + _rank_up(transitions.last_C, scores), axis=-1)
  return jnp.where(ends_of(segment_ids), totals, 0.0)


def negative_log_likelihoods(
  emissions: Array, labels: Array, segment_ids: Array, transitions: Transitions
) -> Array:
  """Returns each token's share of its chain's loss in nats, `[..., L]`.

  A chain has one probability; its negative logarithm is spread evenly over its tokens,
  so that shares add up to it.

  Args:
    emissions: `[..., L, C]`.
    labels: `[..., L]`; under structured transitions, `mended` ones.
    segment_ids: `[..., L]`.
    transitions: scores of labels next to each other.
  """
  emissions = emissions.astype(jnp.float32)
  begins, ends = begins_of(segment_ids), ends_of(segment_ids)
  # Products with a one-hot vector: the gradient of a look-up would be a scatter.
  is_label = jax.nn.one_hot(labels, emissions.shape[-1], dtype=jnp.float32)
  before = _shifted(is_label, 1, axis=-2)
  exact = jax.lax.Precision.HIGHEST
  between = jnp.einsum(
    "...b,...c,bc->...", before, is_label, transitions.between_CC, precision=exact
  )
  first = jnp.einsum("...c,c->...", is_label, transitions.first_C, precision=exact)
  last = jnp.einsum("...c,c->...", is_label, transitions.last_C, precision=exact)
  score = jnp.sum(is_label * emissions, axis=-1)
  score += jnp.where(begins, first, between) + jnp.where(ends, last, 0.0)
  parts = log_partition(emissions, segment_ids, transitions) - score
  same = (segment_ids[..., :, None] == segment_ids[..., None, :]) & (segment_ids > 0)[
    ..., None
  ]
  lengths = jnp.maximum(same.sum(-1), 1)
  return jnp.einsum("...ts,...s->...t", same * 1.0, parts, precision=exact) / lengths


def marginals(emissions: Array, segment_ids: Array, transitions: Transitions) -> Array:
  """Returns the probability of each label of each token, `[..., L, C]`.

  The gradient of the log partition is the expectation of what it sums over.
  """
  return jax.grad(lambda e: log_partition(e, segment_ids, transitions).sum())(
    emissions.astype(jnp.float32)
  )


def viterbi(emissions: Array, segment_ids: Array, transitions: Transitions) -> Array:
  """Returns the likeliest labels of every chain, `[..., L]` int32; 0 for padding.

  Args:
    emissions: `[..., L, C]`.
    segment_ids: `[..., L]`.
    transitions: scores of labels next to each other.
  """

  def step(before, token):
    emission, begins = token
    onward = _onward(before, transitions)
    score = jnp.where(
      begins, _rank_up(transitions.first_C, emission), onward.max(axis=-2)
    )
    # The label that each label's best path came by.
    came_by = jnp.argmax(onward, axis=-2).astype(jnp.int32)
    return score + emission, (score + emission, came_by)

  scores, came_by = _scan(step, emissions, begins_of(segment_ids)[..., None])
  chosen = jnp.argmax(scores + _rank_up(transitions.last_C, scores), axis=-1)
  ends = ends_of(segment_ids)

  def back(following, token):
    end, at_end, came_by_next = token
    by = jnp.take_along_axis(came_by_next, following[..., None], axis=-1)[..., 0]
    label = jnp.where(end, at_end, by)
    return label, label

  along = (ends, chosen.astype(jnp.int32), _shifted(came_by, -1, axis=-2))
  tokens = (
    jnp.moveaxis(along[0], -1, 0),
    jnp.moveaxis(along[1], -1, 0),
    jnp.moveaxis(along[2], -2, 0),
  )
  none = jnp.zeros(segment_ids.shape[:-1], jnp.int32)
  _, labels = jax.lax.scan(back, none, tokens, reverse=True)
  return jnp.where(segment_ids > 0, jnp.moveaxis(labels, 0, -1), 0)


def begins_of(segment_ids: Array) -> Array:
  """Returns which tokens begin a chain, `[..., L]`."""
  return (segment_ids > 0) & (segment_ids != _shifted(segment_ids, 1))


def ends_of(segment_ids: Array) -> Array:
  """Returns which tokens end a chain, `[..., L]`."""
  return (segment_ids > 0) & (segment_ids != _shifted(segment_ids, -1))


def _onward(before: Array, transitions: Transitions) -> Array:
  """Scores of going from each label to each, `[..., C, C]`."""
  return before[..., None] + _rank_up(transitions.between_CC, before[..., None])


def _rank_up(values: Array, like: Array) -> Array:
  """Returns values with axes in front, as many as `like` has."""
  return jnp.expand_dims(values, range(like.ndim - values.ndim))


def _scan(step, emissions: Array, begins: Array):
  """Runs `step` along a row; returns what it gives of each token, along the row."""
  emissions = jnp.moveaxis(emissions.astype(jnp.float32), -2, 0)
  _, outputs = jax.lax.scan(
    step, jnp.zeros_like(emissions[0]), (emissions, jnp.moveaxis(begins, -2, 0))
  )
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), outputs)


def _shifted(x: Array, by: int, axis: int = -1) -> Array:
  """Returns x moved along an axis by 1 or -1, with zeros for what comes in."""
  width = [(0, 0)] * x.ndim
  width[axis] = (1, 0) if by > 0 else (0, 1)
  start = 0 if by > 0 else 1
  padded = jnp.pad(x, width)
  return jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis)
