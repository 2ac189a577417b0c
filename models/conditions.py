"""Which ancestors targets see instead of their own: in evaluations and in training.

The four conditions of an evaluation and ancestor dropout change the batch: the network
knows nothing of them.

Shapes: B examples, T targets with A ancestors each, E encoder slots.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from commentree.models.config import Condition
from commentree.models.layers import Array
from commentree.settings import check_choice

Batch = Mapping[str, Array]

# Differences in depth beyond it count the same in the choice of another thread.
_MAX_DEPTH_DIFFERENCE = 63


def apply_condition(batch: Batch, condition: Condition) -> dict[str, Array]:
  """Returns the batch as an evaluation condition would have it.

  true: unchanged.
  shuffled: every target sees the ancestors of a target of another tree, as many as it
    has itself and at its own distances; see `shuffle_ancestors`.
  parent_only: only ancestors one hop up.
  none: no ancestors, nor earlier chunks of the target's own comment.

  Raises:
    UserError: for any other condition.
  """
  check_choice("evaluation", "condition", condition, Condition)
  if condition == "shuffled":
    return shuffle_ancestors(batch)
  batch = dict(batch)
  if condition == "parent_only":
    batch["ancestor_slots"] = _parents(batch)
  elif condition == "none":
    batch["ancestor_slots"] = jnp.zeros_like(batch["ancestor_slots"])
  return batch


def drop_ancestors(batch: Batch, key: Array, rate: float) -> dict[str, Array]:
  """Returns the batch with the ancestors of a share `rate` of its targets hidden.

  One half of those targets lose all of them, the other all but the parent.
  """
  slots_BTA = batch["ancestor_slots"]
  draw_BT1 = jax.random.uniform(key, (*slots_BTA.shape[:2], 1))
  slots_BTA = jnp.where(draw_BT1 < rate, _parents(batch), slots_BTA)
  return {**batch, "ancestor_slots": jnp.where(draw_BT1 < rate / 2, 0, slots_BTA)}


def _parents(batch: Batch) -> Array:
  return jnp.where(batch["ancestor_distances"] == 1, batch["ancestor_slots"], 0)


def has_two_trees(batch: Batch) -> Array:
  """Returns whether targets of two trees of the global batch have ancestors.

  Only then can each target be given the ancestors of another tree.
  """
  trees_BT, counts_BT = batch["target_trees"], _count_ancestors(batch)
  largest = jnp.iinfo(trees_BT.dtype).max
  least = jnp.min(jnp.where(counts_BT > 0, trees_BT, largest))
  return least < jnp.max(jnp.where(counts_BT > 0, trees_BT, 0))


def shuffle_ancestors(batch: Batch) -> dict[str, Array]:
  """Gives every target the ancestors of a target of another tree of the global batch.

  Each example reads the encoder's rows of one other example (or its own, if that has
  the only other tree): of that with the most ancestors to give, the nearest after it.
  There each target takes the list of ancestors of one target of another tree: one with
  as many ancestors as it has itself at the same depth, else of the next larger number,
  of which it takes the nearest; if there are only shorter lists, the longest. It keeps
  its own distances. So no link leads to a comment on the target's path, below it, or
  to itself, in all subtrees of its tree in the batch.

  A target that no list is left for (see `has_two_trees`) sees nothing.

  Args:
    batch: the global batch; it may be sharded over its examples.
  """
  counts_BT = _count_ancestors(batch)
  trees_BT = batch["target_trees"]
  donor_B = _choose_examples(trees_BT, counts_BT)
  moved = {
    name: values[donor_B]
    for name, values in batch.items()
    if name.startswith("encoder_")
  }
  lists_BTA = batch["ancestor_slots"][donor_B]
  chosen_BT, found_BT = _choose_targets(
    (trees_BT, counts_BT, batch["target_depths"]),
    (trees_BT[donor_B], counts_BT[donor_B], batch["target_depths"][donor_B]),
  )
  slots_BTA = jnp.take_along_axis(lists_BTA, chosen_BT[..., None], axis=1)
  in_use_BTA = (batch["ancestor_slots"] > 0) & found_BT[..., None]
  return {**batch, **moved, "ancestor_slots": jnp.where(in_use_BTA, slots_BTA, 0)}


def ancestors_lacking(batch: Batch) -> Array:
  """Returns how many ancestors fewer each target sees if shuffled, `[B, T]`.

  None, but where no list that it could take is as long as its own.
  """
  return _count_ancestors(batch) - _count_ancestors(shuffle_ancestors(batch))


def _count_ancestors(batch: Batch) -> Array:
  """Returns how many ancestors each target sees, `[B, T]`."""
  return jnp.sum(batch["ancestor_slots"] > 0, axis=-1)


def _choose_examples(trees_BT: Array, counts_BT: Array) -> Array:
  """Returns of each example which one gives it ancestors, `[B]`.

  One that leaves the fewest targets without; of those, one in which the fewest
  ancestors are missing; of those the next in the batch, itself last.
  """
  examples = jnp.arange(len(trees_BT))
  # The longest list of each example, and the longest of its other trees.
  longest_C = counts_BT.max(axis=1)
  tree_C1 = jnp.take_along_axis(trees_BT, counts_BT.argmax(axis=1)[:, None], axis=1)
  second_C = jnp.where(trees_BT != tree_C1, counts_BT, 0).max(axis=1)

  def add(sums, target):
    without_BC, missing_BC = sums
    tree_B1, wanted_B1 = (values[:, None] for values in target)
    is_same_BC = tree_B1 == tree_C1[None, :, 0]
    length_BC = jnp.where(is_same_BC, second_C[None], longest_C[None])
    without_BC += (wanted_B1 > 0) & (length_BC == 0)
    return (without_BC, missing_BC + jnp.maximum(wanted_B1 - length_BC, 0)), None

  # Target by target: all at once would take T times the memory.
  nothing_BC = jnp.zeros((len(trees_BT), len(trees_BT)), jnp.int32)
  of_targets = (trees_BT.T, counts_BT.astype(jnp.int32).T)
  (without_BC, missing_BC), _ = jax.lax.scan(add, (nothing_BC, nothing_BC), of_targets)
  turn_BC = (examples[None] - examples[:, None] - 1) % len(examples)
  return _least_in_order(without_BC, missing_BC, turn_BC)


def _choose_targets(
  own: tuple[Array, Array, Array], others: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
  """Returns of each target whose ancestors it takes, and whether there are any.

  Args:
    own: tree, number of ancestors and depth of the targets, `[B, T]`.
    others: the same of those to choose from, `[B, T]`.
  """
  (trees, counts, depths), (their_trees, their_counts, their_depths) = (
    tuple(values[:, :, None] for values in own),
    tuple(values[:, None] for values in others),
  )
  fits_BTT = (their_trees != trees) & (their_counts > 0)
  targets = jnp.arange(trees.shape[1])
  # A longer list is cut to length; a shorter one is the worse, the more it lacks.
  surplus_BTT = their_counts - counts
  most = counts.max(initial=0) + their_counts.max(initial=0)
  length_BTT = jnp.where(surplus_BTT >= 0, surplus_BTT, most - surplus_BTT)
  depth_BTT = jnp.minimum(jnp.abs(their_depths - depths), _MAX_DEPTH_DIFFERENCE)
  # Of equals each target takes another: as far after it as it stands in its example.
  turn_BTT = jnp.broadcast_to(
    (targets[None] - targets[:, None]) % len(targets), fits_BTT.shape
  )
  chosen_BT = _least_in_order(~fits_BTT, length_BTT, depth_BTT, turn_BTT)
  found_BT = jnp.take_along_axis(fits_BTT, chosen_BT[..., None], axis=-1)[..., 0]
  return chosen_BT, found_BT


def _least_in_order(*keys: Array) -> Array:
  """Returns the index along the last axis that is least by the keys in their order.

  The last key differs between all.
  """
  still = jnp.ones_like(keys[0], dtype=bool)
  for key in keys:
    key = key.astype(jnp.int32)
    least = jnp.min(
      jnp.where(still, key, jnp.iinfo(jnp.int32).max), axis=-1, keepdims=True
    )
    still &= key == least
  return jnp.argmax(still, axis=-1)
