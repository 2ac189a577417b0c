"""Our optimizers as T5X's trainer asks for one; T5X itself is not imported.

What its checkpoints then hold of the optimizer is what ours hold, so that a run may go
on under either trainer.
"""

from __future__ import annotations

from typing import Any

import flax
import jax.numpy as jnp
import optax

from commentree.errors import UserError
from commentree.training import partitioning
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.optim.optimizers import make_optimizer
from commentree.training.state import with_empty, without_empty

PyTree = Any


@flax.struct.dataclass
class OptimizerState:
  """The step, and optax's state."""

  step: Any
  param_states: PyTree


@flax.struct.dataclass
class Optimizer:
  """An optimizer with what it optimizes.

  Attributes:
    optimizer_def: what made it.
    state: its state.
    target: the parameters.
  """

  optimizer_def: OptaxOptimizer = flax.struct.field(pytree_node=False)
  state: OptimizerState
  target: PyTree

  def state_dict(self) -> dict[str, PyTree]:
    """Returns it as checkpoints hold it: plain nested dictionaries.

    Without those that are empty, which T5X loses on the way, and then misses.
    """
    states = flax.serialization.to_state_dict(self.state.param_states)
    return {
      "target": flax.serialization.to_state_dict(self.target),
      "state": {"step": self.state.step, "param_states": without_empty(states)},
    }

  def restore_state(self, state_dict: PyTree) -> Optimizer:
    """Returns the optimizer that `state_dict` was asked of."""
    restored = flax.serialization.from_state_dict
    state, states = state_dict["state"], self.state.param_states
    whole = with_empty(state["param_states"], flax.serialization.to_state_dict(states))
    return self.replace(  # type: ignore[attr-defined]
      target=restored(self.target, state_dict["target"]),
      state=OptimizerState(state["step"], restored(states, whole)),
    )

  def apply_gradient(self, grads: PyTree, *, learning_rate: Any) -> Optimizer:
    """Returns the optimizer after a step.

    Args:
      grads: gradients of the parameters.
      learning_rate: as T5X's `Trainer.learning_rate_fn` has it for this step.
    """
    transform = self.optimizer_def.transform(learning_rate)
    updates, states = transform.update(grads, self.state.param_states, self.target)
    return self.replace(  # type: ignore[attr-defined]
      target=optax.apply_updates(self.target, updates),
      state=OptimizerState(self.state.step + 1, states),
    )


class OptaxOptimizer:
  """Makes optimizers as `training.optimizers` has them."""

  def __init__(self, config: OptimizerConfig = OptimizerConfig()):
    """Takes the settings; of these the schedule is left to T5X.

    Raises:
      UserError: for an optimizer that T5X's trainer cannot drive.
    """
    if config.name.startswith("schedule_free"):
      raise UserError(
        f"OptimizerConfig.name = {config.name!r}: evaluates other parameters than it"
        " trains, which T5X's trainer cannot; take another optimizer"
      )
    self._config = config

  def transform(self, learning_rate: Any) -> optax.GradientTransformation:
    """Returns optax's transformation at one learning rate."""
    return make_optimizer(self._config, lambda _: jnp.asarray(learning_rate))

  def create(self, target: PyTree) -> Optimizer:
    """Returns a new optimizer of some parameters."""
    # T5X freezes them; masks by name are plain dictionaries.
    target = flax.core.unfreeze(target)
    states = self.transform(0.0).init(target)
    return Optimizer(self, OptimizerState(jnp.zeros((), jnp.int32), states), target)

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: PyTree
  ) -> Optimizer:
    """Returns the logical axes of every leaf, None for those that have none.

    Args:
      optimizer: the optimizer, or its shapes.
      param_logical_axes: the parameters', as `PartitionSpec`s.
    """
    axes = flax.core.unfreeze(param_logical_axes)
    states = partitioning.optimizer_specs(
      optimizer.state.param_states, optimizer.target, axes
    )
    return Optimizer(self, OptimizerState(None, states), axes)
