"""What the decoder's cross-attention does, noted in evaluations.

Blocks note sums over their tokens in the collection "diagnostics", which is mutable in
evaluations alone: in training nothing of this is traced.

Shapes: B examples, N decoder tokens, Q masked tokens, S vectors (the null vector
first), H heads, R rows of L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from commentree.models.layers import Array

if TYPE_CHECKING:
  from commentree.models.ancestor_context import AncestorContext

COLLECTION = "diagnostics"


def wanted(module: nn.Module) -> bool:
  """Whether a module is to note what it does."""
  return module.is_mutable_collection(COLLECTION) and not module.is_initializing()


def note_attention(
  module: nn.Module, scores_BHNS: Array, context: AncestorContext
) -> None:
  """Notes where a layer's attention goes.

  Args:
    module: the attention.
    scores_BHNS: its masked scores, float32.
    context: what it attends to.
  """
  watched = context.watched
  if watched is None:
    return
  # Means over heads.
  weights_BHNS = jax.nn.softmax(scores_BHNS, axis=-1)
  logs_BHNS = jnp.log(jnp.where(weights_BHNS > 0, weights_BHNS, 1))
  entropy_BN = -jnp.sum(weights_BHNS * logs_BHNS, axis=-1).mean(axis=1)
  weights_BNS = weights_BHNS.mean(axis=1)
  on_parent_BN = jnp.sum(jnp.where(watched.is_parent_BNS, weights_BNS, 0), axis=-1)
  has_parent_BN = watched.is_parent_BNS.any(axis=-1)
  sees_BN = _sees_ancestor(context)
  count_BN = context.visible_BNS.sum(axis=-1, dtype=jnp.float32)

  def total(values_BN: Array, of_BN: Array) -> Array:
    return jnp.where(of_BN, values_BN, 0).sum(dtype=jnp.float32)

  ones_BN = jnp.ones_like(entropy_BN)
  _note(
    module,
    {
      "tokens": total(ones_BN, watched.is_token_BN),
      "null_weight": total(weights_BNS[..., 0], watched.is_token_BN),
      "with_ancestors": total(ones_BN, sees_BN),
      "entropy": total(entropy_BN, sees_BN),
      "most_entropy": total(jnp.log(count_BN), sees_BN),
      "with_parent": total(ones_BN, has_parent_BN),
      "parent_weight": total(on_parent_BN, has_parent_BN),
    },
  )


def note_update(
  module: nn.Module, x_RLD: Array, update_RLD: Array, context: AncestorContext
) -> None:
  """Notes how large a layer's update by its ancestors is, of tokens that see any.

  Args:
    module: the block.
    x_RLD: the stream that the update is added to.
    update_RLD: the update.
    context: what it comes from.
  """
  if context.watched is None:
    return
  sees_BN1 = _sees_ancestor(context)[..., None]
  sees_RL1 = context.rows(sees_BN1, x_RLD.shape[:2])

  def squares(values_RLD: Array) -> Array:
    return jnp.where(sees_RL1, jnp.square(values_RLD.astype(jnp.float32)), 0).sum()

  _note(module, {"update": squares(update_RLD), "stream": squares(x_RLD)})


def note_copies(module: nn.Module, share_BQ: Array, sees_BQ: Array) -> None:
  """Notes how much of the probability a pointer gives to copies.

  Args:
    module: the pointer.
    share_BQ: probability of a copy at each masked token that sees an ancestor.
    sees_BQ: which tokens these are.
  """
  shares_BQ = jnp.where(sees_BQ, share_BQ, 0)
  _note(
    module,
    {
      "copied": shares_BQ.sum(dtype=jnp.float32),
      "may_copy": sees_BQ.sum(dtype=jnp.float32),
    },
  )


def sums_by_layer(variables: Mapping[str, Any]) -> dict[str, Array]:
  """Returns what the decoder noted, by name: a number for each layer, or one."""
  found: dict[str, list[tuple[int, Array]]] = {}
  for path, value in flatten_dict(variables[COLLECTION]).items():
    layer = next((part for part in path if part.startswith("layers")), "")
    # Scanned layers are one, with a leading axis; a pointer is of no layer.
    number = int(layer.partition("_")[2] or 0)
    found.setdefault(path[-1], []).append((number, jnp.atleast_1d(value)))
  return {
    name: jnp.concatenate([value for _, value in sorted(values, key=lambda v: v[0])])
    for name, values in found.items()
  }


def _note(module: nn.Module, sums: dict[str, Array]) -> None:
  module.sow(COLLECTION, "sums", sums, reduce_fn=lambda _, new: new, init_fn=dict)


def _sees_ancestor(context: AncestorContext) -> Array:
  """Returns which tokens see more than the null vector, `[B, N]`; padding does not."""
  return context.visible_BNS[..., 1:].any(axis=-1)
