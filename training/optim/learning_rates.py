"""Learning rates of parameters, as multiples of the schedule's.

Rules name parameters, and lower layers may learn more slowly (Howard & Ruder 2018; of
pretrained encoders, Clark et al. 2020): the lower, the more general what they know.
Those that a warm start has no array for have all to learn, and may learn faster. What
is multiplied is the whole update, weight decay included. A parameter whose multiple is
0 is frozen: it has no optimizer state and no gradient, and no bit of it changes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from commentree.errors import UserError
from commentree.training.optim.optimizer_config import OptimizerConfig

PyTree = Any
Multiple = np.ndarray
"""`[]`, or `[layers]` for a parameter of stacked layers, float32."""

_STACKED = re.compile(r"(encoder|decoder)\.layers\.(.+)")
_LAYER = re.compile(r"(encoder|decoder)\.layers_(\d+)\.")
# Below the lowest layer, and in it.
_INPUTS = re.compile(r"(token_embedder|language_embedding)\b")
_LOWEST = re.compile(r"(encoder|decoder)\.relpos_bias\b")

_TRAINED, _FROZEN = "trained", "frozen"


def is_default(config: OptimizerConfig) -> bool:
  """Whether all parameters learn at the schedule's rate."""
  return not config.learning_rate_rules and config.layer_decay == 1


def with_fresh(config: OptimizerConfig, fresh: Iterable[str]) -> OptimizerConfig:
  """Returns settings in which some parameters have the multiple `fresh_multiple`.

  Args:
    config: the settings.
    fresh: parameters that a warm start has no array for. Those that a rule names keep
      its multiple.
  """
  ruled = [re.compile(rule) for rule, _ in config.learning_rate_rules]
  each = (_any_layer(name) for name in fresh)
  left = [p for p, one in each if not any(rule.fullmatch(one) for rule in ruled)]
  if not left or config.fresh_multiple == 1:
    return config
  rule = "|".join(dict.fromkeys(left)), config.fresh_multiple
  rules = (*config.learning_rate_rules, rule)
  return dataclasses.replace(config, learning_rate_rules=rules)


def _any_layer(name: str) -> tuple[str, str]:
  """Returns an expression for a parameter, and its name or that of its first layer.

  Stacked layers are matched by the names of single ones.
  """
  match = _STACKED.fullmatch(name)
  if match is None:
    return re.escape(name), name
  stack, rest = match[1], match[2]
  return rf"{stack}\.layers_\d+\.{re.escape(rest)}", f"{stack}.layers_0.{rest}"


def multiples(config: OptimizerConfig, params: PyTree) -> dict[str, Multiple]:
  """Returns the multiple of each parameter, by its dotted path.

  The first rule counts whose expression matches the whole name; layers are named one by
  one, stacked or not. It is multiplied with `layer_decay` to the power of the layers
  above: 0 for a head, logits, final norms, pooling and what knows of ancestors, 1 for
  the topmost layer of either stack, and one more than the lowest layer for tables of
  tokens.

  Args:
    config: the rules.
    params: the parameters, or anything with their shapes.

  Raises:
    UserError: naming a rule that decides nothing, or if nothing is left to train.
  """
  leaves = flax.traverse_util.flatten_dict(flax.core.unfreeze(params), sep=".")
  parts = {name: _layers_of(name, leaf.shape) for name, leaf in leaves.items()}
  heights = _heights([part for names in parts.values() for part in names])
  rules = [
    (re.compile(rule), multiple) for rule, multiple in config.learning_rate_rules
  ]
  used: set[int] = set()

  def of(part: str) -> float:
    decayed = config.layer_decay ** _layers_above(part, heights)
    for number, (rule, multiple) in enumerate(rules):
      if rule.fullmatch(part):
        used.add(number)
        return multiple * decayed
    return decayed

  found = {
    name: np.array(
      [of(part) for part in names] if _STACKED.fullmatch(name) else of(names[0]),
      np.float32,
    )
    for name, names in parts.items()
  }
  for number, (rule, _) in enumerate(rules):
    if number not in used:
      raise UserError(
        f"OptimizerConfig.learning_rate_rules: {rule.pattern!r} decides for no"
        " parameter: it must match a whole name, as --dry_run lists them (with layers"
        " one by one, layers_0, layers_1, …), that no rule before it matches"
      )
  if found and not any(multiple.any() for multiple in found.values()):
    raise UserError(
      "OptimizerConfig.learning_rate_rules: every parameter is frozen; leave out what"
      " is to be trained"
    )
  return found


def _layers_of(name: str, shape: tuple[int, ...]) -> list[str]:
  """Returns the names of a parameter's layers, or its own."""
  match = _STACKED.fullmatch(name)
  if match is None:
    return [name]
  return [f"{match[1]}.layers_{layer}.{match[2]}" for layer in range(shape[0])]


def _heights(names: list[str]) -> dict[str, int]:
  """Returns how many layers each stack has."""
  heights = {"encoder": 0, "decoder": 0}
  for name in names:
    if match := _LAYER.match(name):
      heights[match[1]] = max(heights[match[1]], int(match[2]) + 1)
  return heights


def _layers_above(name: str, heights: Mapping[str, int]) -> int:
  """Returns the layers between a parameter and what is predicted, its own counted."""
  if match := _LAYER.match(name):
    return heights[match[1]] - int(match[2])
  if match := _LOWEST.match(name):
    return heights[match[1]]
  return max(heights.values()) + 1 if _INPUTS.match(name) else 0


def with_multiples(
  transform: optax.GradientTransformation, config: OptimizerConfig
) -> optax.GradientTransformation:
  """Returns the optimizer with every parameter's own learning rate.

  Args:
    transform: the optimizer.
    config: the rules; the default ones change nothing.

  Raises:
    UserError: of what it returns, once it is given parameters: see `multiples`.
  """
  if is_default(config):
    return transform
  transform = optax.with_extra_args_support(transform)

  def labels(tree: PyTree) -> PyTree:
    found = multiples(config, tree)
    return _unflatten(
      {name: _TRAINED if m.any() else _FROZEN for name, m in found.items()}
    )

  if any(multiple == 0 for _, multiple in config.learning_rate_rules):
    parts = {_TRAINED: transform, _FROZEN: optax.set_to_zero()}
    transform = optax.multi_transform(parts, labels)

  def update(
    updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
  ) -> tuple[PyTree, PyTree]:
    updates, state = transform.update(updates, state, params, **extra)
    found = _unflatten(multiples(config, updates))
    return jax.tree.map(_times, updates, found), state

  # Its state is that of the optimizer alone, so that checkpoints fit either way.
  return optax.GradientTransformationExtraArgs(transform.init, update)


def trained(config: OptimizerConfig, tree: PyTree) -> PyTree:
  """Returns parameters or gradients less the frozen ones.

  Args:
    config: the rules.
    tree: one leaf for each parameter.
  """
  if is_default(config):
    return tree
  leaves = flax.traverse_util.flatten_dict(flax.core.unfreeze(tree), sep=".")
  found = multiples(config, tree)
  return {name: leaf for name, leaf in leaves.items() if found[name].any()}


def in_words(multiple: Multiple) -> str:
  """Returns a multiple for people: `frozen`, `x 0.5`, `x 0.25-0.5` over layers."""
  low, high = float(multiple.min()), float(multiple.max())
  if high == 0:
    return "frozen"
  return f"x {low:.3g}" if low == high else f"x {low:.3g}-{high:.3g}"


def how_many_trained(config: OptimizerConfig, params: PyTree) -> str:
  """Returns how many numbers are trained, for people; nothing if all are."""
  leaves = jax.tree.leaves(trained(config, params))
  count = sum(leaf.size for leaf in leaves)
  if count == sum(leaf.size for leaf in jax.tree.leaves(params)):
    return ""
  return f", {count:,} of them trained"


def _times(update: jax.Array, multiple: Multiple) -> jax.Array:
  if (multiple == 1).all():
    return update
  each = multiple.reshape(multiple.shape + (1,) * (update.ndim - multiple.ndim))
  return update * jnp.asarray(each, update.dtype)


def _unflatten(leaves: Mapping[str, Any]) -> PyTree:
  return flax.traverse_util.unflatten_dict(dict(leaves), sep=".")
