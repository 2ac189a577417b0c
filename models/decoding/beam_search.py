"""Beam search: the likeliest replies, by log probability and length.

A beam holds the `beam_width` (W) likeliest beginnings of a reply. In each step they
are continued by every token. Those of the W best continuations that end are finished;
the W best others are the next beam. A reply is done once W have finished, or once
none of the beam can still be better than the best that are asked for. What
`max_length` cuts off comes after all that ended.

Letters besides those of `models/__init__`: Q replies that are searched at the same
time, C continuations; here X stands for finished texts, old and new.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.layers import Array


class Beams(NamedTuple):
  """Where the search for replies stands; Q replies are searched at the same time.

  Attributes:
    tokens_QWL: the beam, `end_id` from where its texts stop.
    log_probs_QW: log probabilities of the beam, -inf for none.
    finished_QWL: what has ended, best first.
    finished_log_probs_QW: likewise, -inf for none.
    scores_QW: that by length.
    settled_Q: of which replies the search is over.
  """

  tokens_QWL: Array
  log_probs_QW: Array
  finished_QWL: Array
  finished_log_probs_QW: Array
  scores_QW: Array
  settled_Q: Array


@dataclasses.dataclass(frozen=True)
class BeamSearch:
  """The method "beam".

  Attributes:
    config: the width, the end, the length penalty, how many replies are asked for.
  """

  config: DecodingConfig

  def begin(self, settled_Q: Array) -> Beams:
    """Returns beams of which each holds one text, the empty one.

    Args:
      settled_Q: which replies are not to be searched.
    """
    cfg = self.config
    shape = (*settled_Q.shape, cfg.beam_width)
    empty_QWL = jnp.full((*shape, cfg.max_length), cfg.end_id, jnp.int32)
    none_QW = jnp.full(shape, -jnp.inf)
    return Beams(
      empty_QWL, none_QW.at[:, 0].set(0), empty_QWL, none_QW, none_QW, settled_Q
    )

  def advance(
    self, beams: Beams, log_probs_XV: Array, position: Array
  ) -> tuple[Beams, Array, Array]:
    """Continues every text of the beams by a token.

    Args:
      beams: where the search stands.
      log_probs_XV: of the next token of each text; -inf for what is never written.
      position: of that token.

    Returns:
      Where it stands then, the newest token of each text `[X]`, and of which text of
      the beam before it is the continuation `[Q, W]`.
    """
    cfg = self.config
    width, size = cfg.beam_width, log_probs_XV.shape[-1]
    totals_QWV = beams.log_probs_QW[..., None] + log_probs_XV.reshape(-1, width, size)
    # One text in each of W may end: among twice as many, W do not.
    best_QC, index_QC = jax.lax.top_k(
      totals_QWV.reshape(-1, width * size), min(2 * width, width * size)
    )
    parents_QC, tokens_QC = index_QC // size, index_QC % size
    ends_QC = tokens_QC == cfg.end_id

    ended_QW = jnp.where(ends_QC, best_QC, -jnp.inf)[:, :width]
    ended_QW = jnp.where(beams.settled_Q[:, None], -jnp.inf, ended_QW)
    # After its end a text has ends: those of the beam are what has ended as they are.
    finished_QXL = jnp.concatenate(
      [beams.finished_QWL, _take(beams.tokens_QWL, parents_QC[:, :width])], axis=1
    )
    log_probs_QX = jnp.concatenate([beams.finished_log_probs_QW, ended_QW], axis=1)
    ended_scores_QW = ended_QW / self._penalty(position + 1)
    scores_QX = jnp.concatenate([beams.scores_QW, ended_scores_QW], axis=1)
    scores_QW, chosen_QW = jax.lax.top_k(scores_QX, width)

    live_QW, kept_QW = jax.lax.top_k(jnp.where(ends_QC, -jnp.inf, best_QC), width)
    parents_QW, newest_QW = _take(parents_QC, kept_QW), _take(tokens_QC, kept_QW)
    tokens_QWL = _take(beams.tokens_QWL, parents_QW).at[:, :, position].set(newest_QW)

    # The longest is penalised least.
    attainable_Q = live_QW[:, 0] / self._penalty(cfg.max_length)
    settled_Q = (
      beams.settled_Q
      | jnp.isfinite(scores_QW[:, -1])
      | (attainable_Q <= scores_QW[:, cfg.num_replies - 1])
    )
    after = Beams(
      tokens_QWL,
      live_QW,
      _take(finished_QXL, chosen_QW),
      _take(log_probs_QX, chosen_QW),
      scores_QW,
      settled_Q,
    )
    return after, newest_QW.reshape(-1), parents_QW

  def is_done(self, beams: Beams) -> Array:
    """Returns of which replies the search is over."""
    return beams.settled_Q

  def replies(self, beams: Beams) -> tuple[Array, Array]:
    """Returns the best, in order: tokens `[Q, K, L]`, log probabilities `[Q, K]`.

    K is `num_replies`. Where there are fewer, the log probability is -inf.
    """
    cfg = self.config
    num_finished_Q1 = jnp.isfinite(beams.scores_QW).sum(-1, keepdims=True)
    # Texts of a beam are of one length, and sorted.
    place_QK = jnp.arange(cfg.num_replies)[None]
    in_beam_QK = cfg.beam_width + place_QK - num_finished_Q1
    index_QK = jnp.where(place_QK < num_finished_Q1, place_QK, in_beam_QK)
    tokens_QXL = jnp.concatenate([beams.finished_QWL, beams.tokens_QWL], axis=1)
    log_probs_QX = jnp.concatenate(
      [beams.finished_log_probs_QW, beams.log_probs_QW], axis=1
    )
    log_probs_QK = _take(log_probs_QX, index_QK)
    is_there_QK1 = jnp.isfinite(log_probs_QK)[..., None]
    tokens_QKL = _take(tokens_QXL, index_QK)
    return jnp.where(is_there_QK1, tokens_QKL, cfg.end_id), log_probs_QK

  def _penalty(self, length: int | Array) -> Array:
    return jnp.float32((5.0 + length) / 6.0) ** self.config.length_penalty


def reorder(rows: Array, parents_QW: Array, axis: int) -> Array:
  """Returns what is kept for each text, for those that continue `parents_QW`.

  Args:
    rows: an array of whose axes one has a row for each text, Q * W.
    parents_QW: see `BeamSearch.advance`.
    axis: that one.
  """
  before, after = rows.shape[:axis], rows.shape[axis + 1 :]
  by_text = rows.reshape(*before, *parents_QW.shape, *after)
  index = parents_QW.reshape(
    *(1 for _ in before), *parents_QW.shape, *(1 for _ in after)
  )
  return jnp.take_along_axis(by_text, index, axis=axis + 1).reshape(rows.shape)


def _take(values: Array, index_QW: Array) -> Array:
  """Returns those of the second axis, `[Q, W, ...]`."""
  index = index_QW.reshape(*index_QW.shape, *(1,) * (values.ndim - 2))
  return jnp.take_along_axis(values, index, axis=1)
