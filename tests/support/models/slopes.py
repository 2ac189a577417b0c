"""Gradients against the slopes of a loss that NumPy computes in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

_STEP = 1e-5


def of(loss: Callable[[Any], float], params: Any) -> float:
  """Returns the loss of parameters in float64."""
  return loss(jax.tree.map(np.float64, params))


def check(
  gradients: Any,
  loss: Callable[[Any], float],
  params: Any,
  directions: int = 1,
  without: Collection[str] = (),
) -> None:
  """Asserts that gradients are the loss's, and that every parameter has one.

  Each parameter's gradient against the slope in random directions: an error e in it
  shows as e * direction, which is about as large as e.

  Args:
    gradients: what is to be checked, as the parameters.
    loss: of parameters.
    params: where.
    directions: how many, of each parameter.
    without: parameters that the loss does not depend on.
  """
  leaves, structure = jax.tree.flatten(jax.tree.map(np.float64, params))
  rng = np.random.default_rng(0)
  for i, (path, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(gradients)):
    name = jax.tree_util.keystr(path)
    gradient = np.float64(gradient)
    size = np.linalg.norm(gradient)
    if name.endswith("['key']['bias']") or name in without:
      # The bias adds the same to all scores of a query, which no softmax sees.
      assert size < 1e-4, name
      continue
    assert size > 0, f"{name} has no gradient"
    for _ in range(directions):
      direction = rng.normal(size=gradient.shape)
      ahead, behind = (
        loss(
          jax.tree.unflatten(
            structure, [*leaves[:i], leaves[i] + step * direction, *leaves[i + 1 :]]
          )
        )
        for step in (_STEP, -_STEP)
      )
      np.testing.assert_allclose(
        np.sum(gradient * direction),
        (ahead - behind) / (2 * _STEP),
        rtol=1e-5,
        atol=1e-5 * size,
        err_msg=name,
      )
