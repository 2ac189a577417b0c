"""Optimizers that look at whole arrays, applied to each layer of a stack by itself.

Scanned layers are stacked in one array, with a leading axis over layers. Adafactor
scales an update by its parameter's root mean square and clips it by its own, LAMB by a
ratio of norms, Muon orthogonalizes a matrix: taken over a stack, layers would share
what is each one's own, and a run would learn otherwise with `scan_layers` than without.
T5X's Adafactor treats the axis alike (`FactorDim.BATCH`).

The state is what the optimizer has for the stack: statistics have the leading axis,
counters have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax

PyTree = Any

STACKS = ("encoder", "decoder")
"""Parts of the model whose `layers`, if there are any, are stacked layers."""

_LAYERS = "layers"
_REST = "rest"


def per_layer(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer with each stacked layer treated as an array of its own.

  It must treat arrays one by one: what it computes over all of them together, it would
  compute over each stack and the rest.

  Args:
    transform: the optimizer.
  """
  inner = optax.with_extra_args_support(transform)

  def init(params: PyTree) -> PyTree:
    names = frozenset(params)
    states = []
    for group in _groups(params):
      part = _select(params, group)
      if group == _REST:
        states.append(inner.init(part))
        continue
      shapes = jax.eval_shape(inner.init, jax.tree.map(_first_layer, part))
      axes = _axes(shapes, names)
      states.append(jax.vmap(inner.init, out_axes=axes)(part))
    return _merge(states, names)

  def update(
    updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
  ) -> tuple[PyTree, PyTree]:
    names = frozenset(updates)
    parts, states = [], []
    for group in _groups(updates):
      grads = _select(updates, group)
      own = None if params is None else _select(params, group)
      before = _select_state(state, group, names)

      def step(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        return inner.update(grads, state, params, **extra)

      if group != _REST:
        axes = _axes(before, names)
        step = jax.vmap(step, in_axes=(0, axes, 0), out_axes=(0, axes))
      part, after = step(grads, before, own)
      parts.append(part)
      states.append(after)
    return _merge(parts, names), _merge(states, names)

  return optax.GradientTransformationExtraArgs(init, update)


def _first_layer(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _groups(params: PyTree) -> list[str]:
  """Returns the stacks that hold arrays, and `_REST` if anything else does."""
  stacks = [s for s in STACKS if jax.tree.leaves(_select(params, s))]
  # Also where nothing else is there, to keep what has no arrays.
  return [_REST, *stacks]


def _select(tree: PyTree, group: str) -> PyTree:
  """Returns the part of a tree like the parameters that is in a group."""
  if group != _REST:
    stack = tree.get(group)
    there = isinstance(stack, dict) and _LAYERS in stack
    return {group: {_LAYERS: stack[_LAYERS]}} if there else {}
  rest = {}
  for name, node in tree.items():
    if name in STACKS and isinstance(node, dict):
      stacked = jax.tree.leaves(node.get(_LAYERS))
      node = {key: sub for key, sub in node.items() if key != _LAYERS or not stacked}
    rest[name] = node
  return rest


def _is_like_params(node: Any, names: frozenset[str]) -> bool:
  """Whether a node of a state is a tree like the parameters, or a part of one."""
  return isinstance(node, dict) and bool(node) and node.keys() <= names


def _select_state(state: PyTree, group: str, names: frozenset[str]) -> PyTree:
  return jax.tree.map(
    lambda node: _select(node, group) if _is_like_params(node, names) else node,
    state,
    is_leaf=lambda node: _is_like_params(node, names),
  )


def _axes(state: PyTree, names: frozenset[str]) -> PyTree:
  """Returns the axes of a stack's state that run over layers, for `jax.vmap`."""
  return jax.tree.map(
    lambda node: 0 if _is_like_params(node, names) else None,
    state,
    is_leaf=lambda node: _is_like_params(node, names),
  )


def _merge(parts: Sequence[PyTree], names: frozenset[str]) -> PyTree:
  """Returns one tree of those of all groups; of what is no parameter's, the first."""

  def merge(*nodes: Any) -> Any:
    return _union(nodes) if _is_like_params(nodes[0], names) else nodes[0]

  return jax.tree.map(merge, *parts, is_leaf=lambda node: _is_like_params(node, names))


def _union(nodes: Sequence[Any]) -> Any:
  """Returns nested dictionaries with what any of them has."""
  if not isinstance(nodes[0], dict):
    return nodes[0]
  keys = dict.fromkeys(key for node in nodes for key in node)
  return {key: _union([node[key] for node in nodes if key in node]) for key in keys}
