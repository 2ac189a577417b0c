"""Learning rates by step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from commentree.training.optim.optimizer_config import ScheduleConfig

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(config: ScheduleConfig, train_steps: int) -> Schedule:
  """Returns the learning rate as a function of the step, counted from 0.

  The first step already moves: during warm-up step s has (s + 1) / warmup_steps of
  the peak. Steps after the end of the decay have the last learning rate.

  Args:
    config: the shape of the schedule.
    train_steps: the run's last step.

  Raises:
    UserError: if no step is left to decay in.
  """
  config.check_steps(train_steps)
  end = config.last_decay_step(train_steps)
  warmup = config.warmup_steps
  # wsd holds the peak until its decay begins, the others decay from the warm-up on.
  start = warmup
  if config.name == "wsd":
    start = max(warmup, round(end * (1 - config.decay_share)))

  def share(step: jax.Array) -> jax.Array:
    if config.name == "constant":
      return jnp.ones_like(step)
    if config.name == "rsqrt":
      return jax.lax.rsqrt(jnp.maximum(step + 1, warmup) / max(warmup, 1))
    progress = jnp.clip((step - start) / max(end - start, 1), 0, 1)
    if config.name == "cosine":
      progress = (1 - jnp.cos(jnp.pi * progress)) / 2
    return 1 - progress * (1 - config.final_share)

  def schedule(step: jax.Array) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    ramp = jnp.minimum((step + 1) / max(warmup, 1), 1)
    return config.learning_rate * ramp * share(step)

  return schedule
