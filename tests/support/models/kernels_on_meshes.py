"""Compares attention by kernels on meshes of eight devices with one device's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.ancestor_context import AncestorContext, ByTarget
from commentree.models.transformer import kernel_choice
from commentree.models.transformer.attention import AncestorAttention, SelfAttention
from commentree.models.transformer.stacks import same_segment
from commentree.training import partitioning
from commentree.training.config import PartitioningConfig

MESHES: dict[str, dict[str, int]] = {
  "rows over 8": {},
  # Half of them over the axis that parameters are cut over.
  "rows over 4, heads over 2": {"model_parallel": 2, "fsdp_parallel": 2},
  "rows over 2, heads over 4": {"model_parallel": 4, "num_slices": 2},
}


def attended(implementation: str, num_heads: int = 4):
  """Returns what both modules make of fixed inputs, and all gradients."""
  fields = (num_heads, 8, 0.3, False, jnp.float32)
  own = SelfAttention(*fields, implementation=implementation)
  to_ancestors = AncestorAttention(*fields, implementation=implementation)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(16, 16, 12)), jnp.float32)
  targets = jnp.asarray(np.sort(rng.integers(0, 3, (16, 16))))
  visible = same_segment(targets)
  bias = jnp.asarray(rng.normal(size=(num_heads, 16, 16)), jnp.float32)
  # Two rows of each of eight examples, which have three vectors.
  vectors = jnp.asarray(rng.normal(size=(8, 3, 12)), jnp.float32)
  sees_BUS = jnp.asarray([[1, 0, 0], [0, 1, 1], [0, 0, 1]], jnp.bool_)[None]
  sees_BUS = jnp.repeat(sees_BUS, 8, axis=0)
  bias_BHUS = jnp.asarray(rng.normal(size=(8, num_heads, 3, 3)), jnp.float32)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

  def context_of(vectors, bias_BHUS, by_target):
    picked_BNU = jax.nn.one_hot(targets.reshape(8, -1), 3)
    return AncestorContext(
      vectors,
      jnp.einsum("bnu,bus->bns", picked_BNU, sees_BUS) > 0,
      bias_BHNS=jnp.einsum("bnu,bhus->bhns", picked_BNU, bias_BHUS),
      by_target=ByTarget(sees_BUS, bias_BHUS, targets) if by_target else None,
    )

  @jax.jit
  def both(x, bias, vectors, bias_BHUS):
    plain = context_of(vectors, bias_BHUS, False)
    params = (
      own.init(rngs, x, visible, bias)["params"],
      to_ancestors.init(rngs, x, plain)["params"],
    )

    def loss(params, x, bias, vectors, bias_BHUS):
      context = context_of(vectors, bias_BHUS, implementation == "pallas")
      y = own.apply({"params": params[0]}, x, visible, bias, rngs=rngs)
      z = to_ancestors.apply({"params": params[1]}, x, context, rngs=rngs)
      return jnp.sum(jnp.sin(y) + jnp.cos(z)), (y, z)

    gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)
    return gradients(params, x, bias, vectors, bias_BHUS)

  return jax.tree.map(np.asarray, both(x, bias, vectors, bias_BHUS))


def on_mesh(fields: dict[str, int], num_heads: int = 4):
  """Returns what kernels compute on a mesh."""
  config = PartitioningConfig(**fields)
  with partitioning.in_mesh(partitioning.make_mesh(config), config):
    return attended("pallas", num_heads)


def main() -> None:
  """Compares; the last line says what was found."""
  jax.config.update("jax_threefry_partitionable", True)
  kernel_choice.INTERPRET = True
  expected = attended("xla")
  for name, fields in MESHES.items():
    for one, other in zip(
      jax.tree.leaves(on_mesh(fields)), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)
  with pytest.raises(UserError, match="3 heads do not divide over the mesh"):
    on_mesh({"model_parallel": 2}, num_heads=3)
  print(f"{len(MESHES)} meshes agree; 3 heads over 2 are refused")


if __name__ == "__main__":
  main()
