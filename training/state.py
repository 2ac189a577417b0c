"""The state of training: step, parameters, optimizer; and its form on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.sharding import Mesh

from commentree.models.interface import Model
from commentree.training import partitioning
from commentree.training.config import PartitioningConfig

PyTree = Any

_Abstract = jax.ShapeDtypeStruct
_TRAINED = "trained_params"


@flax.struct.dataclass
class TrainState:
  """What changes from step to step.

  Attributes:
    step: updates done, int32.
    params: the model's parameters.
    optimizer: optax's state.
  """

  step: Any
  params: PyTree
  optimizer: PyTree


def eval_params(state: TrainState) -> PyTree:
  """Returns the parameters to evaluate and to keep: as a rule those that are trained.

  Schedule-free optimizers (Defazio et al. 2024) take gradients at other points than the
  average that they promise to be good.

  Args:
    state: the state, or its shapes.
  """
  averaged = _schedule_free(state.optimizer)
  if averaged is None or isinstance(jax.tree.leaves(state.params)[0], _Abstract):
    return state.params
  z = partitioning.flatten_names(averaged.z)
  params = partitioning.flatten_names(state.params)
  # Frozen ones are not averaged.
  trained = {name: params[name] for name, leaf in z.items() if hasattr(leaf, "shape")}
  found = jax.jit(
    optax.contrib.schedule_free_eval_params,
    out_shardings={name: leaf.sharding for name, leaf in trained.items()},
  )(averaged._replace(z={name: z[name] for name in trained}), trained)
  return flax.traverse_util.unflatten_dict({**params, **found}, sep=".")


def _schedule_free(optimizer: PyTree) -> optax.contrib.ScheduleFreeState | None:
  def is_one(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)

  return next(filter(is_one, jax.tree.leaves(optimizer, is_leaf=is_one)), None)


def to_tree(state: TrainState) -> dict[str, PyTree]:
  """Returns the state as T5X's checkpoints hold it: plain nested dictionaries.

  `target` are the parameters to evaluate; where others are trained, those are kept
  besides.
  """
  params = flax.core.unfreeze(state.params)
  optimizer = {
    "step": state.step,
    "param_states": flax.serialization.to_state_dict(state.optimizer),
  }
  if _schedule_free(state.optimizer) is None:
    return {"target": params, "state": optimizer}
  target = flax.core.unfreeze(eval_params(state))
  return {"target": target, "state": {**optimizer, _TRAINED: params}}


def from_tree(tree: Mapping[str, PyTree], like: TrainState) -> TrainState:
  """Returns the state that `to_tree` was given.

  Args:
    tree: what it returned, perhaps by way of a checkpoint.
    like: a state of the same structure; its values are not used.
  """
  return TrainState(
    step=tree["state"]["step"],
    params=tree["state"].get(_TRAINED, tree["target"]),
    optimizer=flax.serialization.from_state_dict(
      like.optimizer, tree["state"]["param_states"]
    ),
  )


def without_empty(tree: PyTree) -> PyTree:
  """Returns nested dictionaries less those that hold no leaf."""
  if not isinstance(tree, dict):
    return tree
  kept = {key: without_empty(value) for key, value in tree.items()}
  return {
    key: value for key, value in kept.items() if not isinstance(value, dict) or value
  }


def with_empty(tree: PyTree, like: PyTree) -> PyTree:
  """Returns nested dictionaries with what `without_empty` took off `like`."""
  if not isinstance(like, dict) or not isinstance(tree, dict):
    return tree
  missing = {key: like[key] for key in like.keys() - tree.keys()}
  lost = {key: value for key, value in missing.items() if not without_empty(value)}
  return {key: with_empty(tree[key], like.get(key)) for key in tree} | lost


def _abstract(tree: PyTree, shardings: PyTree) -> PyTree:
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )


def abstract_params(
  model: Model,
  batch: Mapping[str, Any],
  mesh: Mesh,
  config: PartitioningConfig,
) -> PyTree:
  """Returns shapes, dtypes and shardings of the parameters; computes nothing.

  Args:
    model: the model.
    batch: a batch, for its shapes and dtypes.
    mesh: the mesh.
    config: the rules.

  Raises:
    UserError: if a parameter cannot be placed on the mesh.
  """
  variables = _abstract_variables(model, batch, mesh)
  params = flax.core.unfreeze(variables["params"])
  return _abstract(
    params,
    partitioning.parameter_shardings(params, variables["params_axes"], mesh, config),
  )


def parameter_axes(model: Model, batch: Mapping[str, Any], mesh: Mesh) -> PyTree:
  """Returns the model's `params_axes`; computes nothing.

  Args:
    model: the model.
    batch: a batch, for its shapes and dtypes.
    mesh: the mesh.
  """
  return _abstract_variables(model, batch, mesh)["params_axes"]


def abstract_state(
  params: PyTree,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  config: PartitioningConfig,
) -> TrainState:
  """Returns shapes, dtypes and shardings of the state.

  Args:
    params: abstract parameters with their shardings.
    optimizer: the optimizer.
    mesh: the mesh.
    config: whether optimizer state is shared out further.
  """
  shardings = partitioning.update_shardings(params, config)
  optimizer_state = jax.eval_shape(optimizer.init, params)
  whole = partitioning.replicated(mesh)
  return TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    params=params,
    optimizer=_abstract(
      optimizer_state,
      partitioning.optimizer_shardings(optimizer_state, params, shardings, mesh),
    ),
  )


def initial_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  batch: Mapping[str, Any],
  like: TrainState,
  key: jax.Array,
  params: PyTree | None = None,
) -> TrainState:
  """Draws a state, each device its own part of it.

  Args:
    model: the model.
    optimizer: the optimizer.
    batch: a batch, for its shapes.
    like: the abstract state.
    key: draws the parameters.
    params: parameters to start from, of no use afterwards; drawn if None.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

  def with_optimizer(params: PyTree) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  if params is not None:
    initial = jax.jit(with_optimizer, out_shardings=shardings, donate_argnums=0)
    return initial(params)

  def draw(key: jax.Array) -> TrainState:
    params = _variables(model, batch, key)["params"]
    return with_optimizer(flax.core.unfreeze(params))

  return jax.jit(draw, out_shardings=shardings)(key)


def first_keys(seed: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
  """Returns the keys of the first parameters and of the steps, on every device."""
  return jax.jit(
    lambda: tuple(jax.random.split(jax.random.key(seed))),
    out_shardings=partitioning.replicated(mesh),
  )()


def draw_params(
  model: Model,
  batch: Mapping[str, Any],
  like: PyTree,
  key: jax.Array,
  names: Sequence[str],
) -> dict[str, jax.Array]:
  """Draws some parameters as `initial_state` does, and no others.

  Args:
    model: the model.
    batch: a batch, for its shapes.
    like: the abstract parameters, with shardings.
    key: draws the parameters.
    names: which, by dotted path.
  """
  leaves = partitioning.flatten_names(like)

  def draw(key: jax.Array) -> dict[str, jax.Array]:
    params = partitioning.flatten_names(_variables(model, batch, key)["params"])
    return {name: params[name] for name in names}

  shardings = {name: leaves[name].sharding for name in names}
  return jax.jit(draw, out_shardings=shardings)(key)


def count_parameters(params: PyTree) -> int:
  """Returns how many numbers the parameters hold."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def bytes_per_device(tree: PyTree) -> int:
  """Returns what one device holds of abstract arrays with shardings, bytes."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _abstract_variables(model: Model, batch: Mapping[str, Any], mesh: Mesh) -> PyTree:
  key = jax.eval_shape(jax.random.key, 0)
  # On the mesh as that of `initial_state`, so that what is traced here serves there.
  key = jax.ShapeDtypeStruct(
    key.shape, key.dtype, sharding=partitioning.replicated(mesh)
  )
  return jax.eval_shape(lambda key: _variables(model, batch, key), key)


def _variables(model: Model, batch: Mapping[str, Any], key: jax.Array) -> PyTree:
  return model.get_initial_variables(
    key,
    {name: tuple(values.shape) for name, values in batch.items()},
    {name: values.dtype for name, values in batch.items()},
  )
