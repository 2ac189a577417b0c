"""optax optimizers by name, with clipping and decoupled weight decay around them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import optax.contrib

from commentree.errors import UserError, suggestion
from commentree.training.optim import adafactor, learning_rates, optimizer_names
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.optim.per_layer import per_layer
from commentree.training.optim.schedules import Schedule

PyTree = Any

# Norms' scales, biases of every kind (relative position and distance biases too) and
# single vectors: pulling them to zero changes the function, not its complexity.
_NOT_DECAYED = re.compile(r"(scale|bias|rel_embedding|null_vector)$")

# Those that scale, clip or turn an array by something of the whole array.
_OF_WHOLE_ARRAYS = frozenset(
  ("adafactor", "fromage", "galore", "lamb", "lars", "muon", "novograd")
)
# Equal to optax's, in fewer passes over memory.
_OURS: Mapping[str, Callable[..., Any]] = {"adafactor": adafactor.adafactor}
# Those that compute parameters, which a multiple of the update would not be.
_OF_PARAMETERS = frozenset(("madgrad", "schedule_free_adamw", "schedule_free_sgd"))


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
  update, times the learning rate. One that looks at whole arrays sees each of stacked
  layers by itself (`per_layer`).

  Args:
    config: which optimizer.
    schedule: the learning rate.

  Raises:
    UserError: if optax has no such optimizer or it does not take these arguments.
  """
  optimizer_names.check(config.name)
  factory, where = _factory(config.name)
  parameters = inspect.signature(factory).parameters
  for name in config.kwargs:
    if name not in parameters:
      raise UserError(
        f"OptimizerConfig.kwargs: {where} takes no {name!r}, but"
        f" {', '.join(parameters)}{suggestion(name, parameters)}"
      )
  mask = next((m for m in ("mask", "weight_decay_mask") if m in parameters), None)
  own_decay = "weight_decay" in parameters and mask is not None
  kwargs: dict[str, Any] = {"learning_rate": schedule}
  if own_decay:
    kwargs |= {"weight_decay": config.weight_decay, str(mask): decay_mask}
  kwargs |= _special(config)
  try:
    transform = factory(**{**kwargs, **config.kwargs})
  except (TypeError, ValueError) as error:
    raise UserError(
      f"OptimizerConfig.kwargs = {dict(config.kwargs)}: {where}: {error}"
    ) from error
  _check_can_be_combined(config, where, parameters, own_decay=own_decay)
  if config.name in _OF_WHOLE_ARRAYS:
    transform = per_layer(transform)
  steps = [transform]
  if config.clip_norm is not None:
    steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.weight_decay and not own_decay:
    steps.append(
      optax.add_decayed_weights(
        lambda step: -config.weight_decay * schedule(step), mask=decay_mask
      )
    )
  return learning_rates.with_multiples(optax.chain(*steps), config)


def _factory(name: str) -> tuple[Callable[..., Any], str]:
  """Returns optax's function of a name, or what we have for it, and where it is.

  Raises:
    UserError: if it makes no optimizer.
  """
  module = optax if hasattr(optax, name) else optax.contrib
  factory = _OURS.get(name) or getattr(module, name, None)
  where = f"{module.__name__}.{name}"
  part = name.startswith("scale_by_")
  if factory is None or part or "learning_rate" not in _parameters(factory):
    raise UserError(
      f"OptimizerConfig.name = {name!r}: {where} is"
      f" {'a part of one' if part else 'not one, as it takes no learning_rate'}; name"
      " an optimizer"
    )
  return factory, where


def _parameters(factory: Any) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(factory).parameters if inspect.isfunction(factory) else {}


def _special(config: OptimizerConfig) -> dict[str, Any]:
  """Returns arguments that an optimizer needs to be meant for a transformer."""
  if config.name == "muon":
    # As its author has it: matrices within layers; tables and logits by Adam.
    return {
      "muon_weight_dimension_numbers": _matrices_of_layers,
      "adam_weight_decay": config.weight_decay,
    }
  return {}


def _matrices_of_layers(params: PyTree) -> PyTree:
  """Returns Muon's dimension numbers for the kernels of layers, None for the rest."""

  def numbers(path: tuple[Any, ...], leaf: jax.Array) -> Any:
    keys = [str(key.key) for key in path]
    in_layer = any(key.startswith("layers") for key in keys)
    is_matrix = in_layer and keys[-1] == "kernel" and leaf.ndim == 2
    return optax.contrib.MuonDimensionNumbers() if is_matrix else None

  return jax.tree_util.tree_map_with_path(numbers, params)


def _check_can_be_combined(
  config: OptimizerConfig,
  where: str,
  parameters: Mapping[str, inspect.Parameter],
  *,
  own_decay: bool,
) -> None:
  """Refuses settings that would be something else with an optimizer than they say."""
  sets_own_size = where.startswith("optax.contrib") and "weight_decay" in parameters
  if config.weight_decay and sets_own_size and not own_decay:
    raise UserError(
      f"OptimizerConfig.weight_decay = {config.weight_decay:g}: {where} decays by"
      " itself, norms and biases too; set it to 0, and OptimizerConfig.kwargs ="
      f" {{'weight_decay': {config.weight_decay:g}}} if that is meant"
    )
  multiples = [multiple for _, multiple in config.learning_rate_rules]
  if config.name in _OF_PARAMETERS and {*multiples, config.layer_decay} - {0, 1}:
    raise UserError(
      f"OptimizerConfig.learning_rate_rules, layer_decay and fresh_multiple: {where}"
      " takes one learning rate for all parameters; leave the first two out, or freeze"
      " with 0, and set fresh_multiple = 1"
    )
