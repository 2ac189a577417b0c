"""optax optimizers by name, with clipping and decoupled weight decay around them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import jax
import optax

from ..errors import UserError
from . import learning_rates
from .config import OptimizerConfig
from .schedules import Schedule

PyTree = Any

# Norms' scales, biases of every kind (relative position and distance biases too) and
# single vectors: pulling them to zero changes the function, not its complexity.
_NOT_DECAYED = re.compile(r"(scale|bias|rel_embedding|null_vector)$")


def decay_mask(params: PyTree) -> PyTree:
  """Returns which parameters weight decay acts on."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf.ndim > 1 and not _NOT_DECAYED.search(path[-1].key), params
  )


def make_optimizer(
  config: OptimizerConfig, schedule: Schedule
) -> optax.GradientTransformation:
  """Builds the optimizer: clip, optimize, decay, to each parameter its learning rate.

  An optimizer with weight decay and a mask of its own is given ours, so that `adamw`
  and `lamb` are what their names say; to the others decay is added after the
  update. Either way it is times the learning rate.

  Args:
    config: which optimizer.
    schedule: the learning rate.

  Raises:
    UserError: if optax has no such optimizer or it does not take these arguments.
  """
  factory = getattr(optax, config.name, None)
  if not callable(factory) or config.name.startswith("_"):
    raise UserError(
      f"OptimizerConfig.name = {config.name!r}: optax has no such optimizer"
    )
  parameters = inspect.signature(factory).parameters
  if "learning_rate" not in parameters:
    raise UserError(
      f"OptimizerConfig.name = {config.name!r}: optax.{config.name} takes no"
      " learning_rate, so it is no optimizer"
    )
  for name in config.kwargs:
    if name not in parameters:
      raise UserError(
        f"OptimizerConfig.kwargs: optax.{config.name} takes no {name!r}, but"
        f" {', '.join(parameters)}"
      )
  kwargs = {"learning_rate": schedule, **config.kwargs}
  own_decay = {"weight_decay", "mask"} <= parameters.keys()
  if own_decay:
    kwargs = {"weight_decay": config.weight_decay, "mask": decay_mask, **kwargs}
  try:
    steps = [factory(**kwargs)]
  except (TypeError, ValueError) as error:
    raise UserError(
      f"OptimizerConfig.kwargs = {dict(config.kwargs)}: optax.{config.name}: {error}"
    ) from error
  if config.clip_norm is not None:
    steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.weight_decay and not own_decay:
    steps.append(
      optax.add_decayed_weights(
        lambda step: -config.weight_decay * schedule(step), mask=decay_mask
      )
    )
  return learning_rates.with_multiples(optax.chain(*steps), config)
