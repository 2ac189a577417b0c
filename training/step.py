"""The train step: gradients of summed losses, divided once, one update.

Losses and gradients are summed over microbatches and devices and divided by the
number of masked tokens in the whole batch, so every token counts the same however
the batch is cut.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from commentree.models.interface import Model
from commentree.training import partitioning
from commentree.training.config import BATCH_AXES, TrainConfig
from commentree.training.optim import learning_rates
from commentree.training.optim.schedules import Schedule
from commentree.training.state import PyTree, TrainState
from commentree.training.tpu_compile import compiler_presets

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


def make_train_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  schedule: Schedule,
  config: TrainConfig,
  mesh: Mesh,
  like: TrainState,
) -> jax.stages.Wrapped:
  """Returns the jitted step `(state, batch, key) -> (state, sums)`; state is donated.

  `key` is the run's: each step and each microbatch folds its number in. `sums` are
  the model's `loss_sums`, and `objective`, the mean loss that was minimized,
  `gradient_norm` before clipping (of what is not frozen), `learning_rate` and `finite`,
  1 or 0.

  Args:
    model: the model.
    optimizer: the optimizer.
    schedule: its learning rate, to report.
    config: microbatches, what to do about losses that are not finite, and options of
      the compiler.
    mesh: the mesh.
    like: the abstract state; the new state lies as it says.
  """

  def summed_loss(params: PyTree, batch: Batch, key: jax.Array):
    loss_sum, weight_sum, sums = model.loss_sums(params, batch, key)
    return loss_sum, {**sums, "objective": loss_sum, "_weight": weight_sum}

  # Where each device updates a part of the parameters (ZeRO-1), gradients are added up
  # by parts too.
  by_part: PyTree | None = None
  if config.partitioning.shard_optimizer:
    by_part = partitioning.update_shardings(like.params, config.partitioning)

  def cut_to_parts(tree: PyTree) -> PyTree:
    if by_part is None:
      return tree
    return jax.lax.with_sharding_constraint(tree, by_part)

  def gradients_of(params: PyTree, batch: Batch, key: jax.Array) -> tuple[PyTree, Sums]:
    grads, sums = jax.grad(summed_loss, has_aux=True)(params, batch, key)
    return cut_to_parts(grads), sums

  def gradients(params: PyTree, batch: Batch, key: jax.Array) -> tuple[PyTree, Sums]:
    parts = config.gradient_accumulation_steps
    if parts == 1:
      return gradients_of(params, batch, key)
    microbatches = _cut(batch, parts, mesh)

    def add(total: tuple[PyTree, Sums], numbered):
      number, microbatch = numbered
      part = gradients_of(params, microbatch, jax.random.fold_in(key, number))
      return jax.tree.map(jnp.add, total, part), None

    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      jax.eval_shape(gradients_of, params, first, key),
    )
    return jax.lax.scan(add, zeros, (jnp.arange(parts), microbatches))[0]

  shardings = (
    jax.tree.map(lambda leaf: leaf.sharding, like),
    partitioning.replicated(mesh),
  )

  options = compiler_presets.options_for(config.xla_preset, mesh.devices.flat[0])

  @functools.partial(
    jax.jit, donate_argnums=0, out_shardings=shardings, compiler_options=options
  )
  def train_step(state: TrainState, batch: Batch, key: jax.Array):
    grads, sums = gradients(state.params, batch, jax.random.fold_in(key, state.step))
    # A batch of padding has neither loss nor gradient.
    weight = sums.pop("_weight")
    weight = jnp.where(weight > 0, weight, 1)
    objective = sums["objective"] / weight
    with jax.named_scope("optimizer"):
      grads = jax.tree.map(lambda g: g / weight, grads)
      # Gradients of what is frozen are then read by nothing, and not computed.
      norm = optax.global_norm(learning_rates.trained(config.optimizer, grads))
      finite = jnp.isfinite(objective) & jnp.isfinite(norm)
      params = cut_to_parts(state.params)
      updates, optimizer_state = optimizer.update(grads, state.optimizer, params)
      params = optax.apply_updates(params, updates)
      if not config.stop_on_nonfinite:
        params, optimizer_state = jax.tree.map(
          lambda new, old: jnp.where(finite, new, old),
          (params, optimizer_state),
          (state.params, state.optimizer),
        )
    sums |= {
      "objective": objective,
      "gradient_norm": norm,
      "learning_rate": schedule(state.step),
      "finite": finite.astype(jnp.float32),
    }
    return TrainState(state.step + 1, params, optimizer_state), sums

  return train_step


def _cut(batch: Batch, parts: int, mesh: Mesh) -> Batch:
  """Returns `[parts, B / parts, ...]`, every part spread over all devices."""
  sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

  def cut(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, sharding)

  return {name: cut(values) for name, values in batch.items()}
