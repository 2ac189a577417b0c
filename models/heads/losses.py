"""The masked language model's loss, token by token."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from commentree.models.heads.pointer import PointerScores
from commentree.models.layers import Array


@flax.struct.dataclass
class TokenLosses:
  """Losses of masked tokens, each `[...]` float32 and not yet weighted.

  Attributes:
    loss: what is minimized, in nats: smoothed cross entropy plus `z_loss`.
    nll: negative log likelihood of the true token, in nats.
    z_loss: the share of the squared log normalizer.
    correct: 1 where no token has a higher logit than the true one; None of numbers.
    logits_correct: with a pointer, `correct` by the logits alone; else None.
  """

  loss: Array
  nll: Array
  z_loss: Array
  correct: Array | None
  logits_correct: Array | None = None


def token_losses(
  logits: Array, targets: Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> TokenLosses:
  """Computes the losses of tokens.

  With smoothing, `label_smoothing` of the target's probability is spread evenly
  over the other tokens, and the entropy of that target is taken off, so that a
  perfect model's loss stays 0. `z_loss` times the squared log normalizer keeps the
  logits from drifting (as T5X).

  Args:
    logits: `[..., V]` float32.
    targets: `[...]` token ids.
    label_smoothing: share of probability, from 0 to 1.
    z_loss: coefficient of the squared log normalizer.
  """
  vocab_size = logits.shape[-1]
  log_normalizer, target_logit = _normalizer_and_target(logits, targets)
  nll = log_normalizer - target_logit
  cross_entropy = nll
  if label_smoothing > 0 and vocab_size > 1:
    other = label_smoothing / (vocab_size - 1)
    kept = 1 - label_smoothing
    entropy = -label_smoothing * np.log(other)
    if kept > 0:
      entropy -= kept * np.log(kept)
    expected_logit = (kept - other) * target_logit + other * jnp.sum(logits, axis=-1)
    cross_entropy = log_normalizer - expected_logit - entropy
  penalty = z_loss * jnp.square(log_normalizer)
  highest = jnp.max(jax.lax.stop_gradient(logits), axis=-1)
  return TokenLosses(
    loss=cross_entropy + penalty,
    nll=nll,
    z_loss=penalty,
    correct=(target_logit >= highest).astype(jnp.float32),
  )


def pointer_losses(
  scores: PointerScores, targets: Array, *, z_loss: float, logits_weight: float
) -> TokenLosses:
  """Computes the losses of tokens that may be copied.

  The likelihood is that of the mixture of logits and copies, which alone teaches the
  logits little of the tokens that copies explain; `logits_weight` times the cross
  entropy of the logits alone is added to what is minimized. `z_loss` is of the logits'
  normalizer.

  Args:
    scores: logits `[..., V]` and copies.
    targets: `[...]` token ids.
    z_loss: coefficient of the squared log normalizer.
    logits_weight: weight of the loss of the logits alone.
  """
  alone = token_losses(scores.logits_BGMV, targets, z_loss=z_loss)
  nll = alone.nll - scores.copies.log_ratio_of(targets, -alone.nll)
  # Only which token is the likeliest needs the mixture's whole vocabulary: a program
  # that does not use `correct` does not work it out.
  mixed = jax.lax.stop_gradient(scores).mixed()
  of_target = jnp.take_along_axis(mixed, targets[..., None], axis=-1)[..., 0]
  return TokenLosses(
    loss=nll + logits_weight * alone.nll + alone.z_loss,
    nll=nll,
    z_loss=alone.z_loss,
    correct=(of_target >= jnp.max(mixed, axis=-1)).astype(jnp.float32),
    logits_correct=alone.correct,
  )


@jax.custom_vjp
def _normalizer_and_target(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Returns the log of the summed exponentials, and the target's logit.

  The gradient is written out because the logits are the largest array of a small
  model: it reads them once, and needs neither their saved exponentials nor a scatter.
  """
  highest = jnp.max(logits, axis=-1, keepdims=True)
  log_normalizer = (
    jnp.log(jnp.sum(jnp.exp(logits - highest), axis=-1)) + highest[..., 0]
  )
  target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_normalizer, target_logit


def _normalizer_and_target_forward(logits: Array, targets: Array):
  log_normalizer, target_logit = _normalizer_and_target(logits, targets)
  return (log_normalizer, target_logit), (logits, targets, log_normalizer)


def _normalizer_and_target_backward(saved, gradients):
  logits, targets, log_normalizer = saved
  of_normalizer, of_target = gradients
  probabilities = jnp.exp(logits - log_normalizer[..., None])
  is_target = jax.nn.one_hot(targets, logits.shape[-1], dtype=jnp.bool_)
  of_logits = of_normalizer[..., None] * probabilities + jnp.where(
    is_target, of_target[..., None], 0
  )
  return of_logits, None


_normalizer_and_target.defvjp(
  _normalizer_and_target_forward, _normalizer_and_target_backward
)
