"""Compares self-attention by kernels on meshes of eight devices with one device's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.transformer import kernel_choice
from commentree.models.transformer.attention import SelfAttention
from commentree.models.transformer.stacks import same_segment
from commentree.training import partitioning
from commentree.training.config import PartitioningConfig

MESHES: dict[str, dict[str, int]] = {
  "rows over 8": {},
  "rows over 8, as parameters": {"fsdp_parallel": -1},
  "rows over 4, heads over 2": {"model_parallel": 2, "fsdp_parallel": 2},
  "rows over 2, heads over 4": {"model_parallel": 4, "num_slices": 2},
}


def attended(implementation: str, num_heads: int = 4):
  """Returns the module's result and all gradients, of fixed inputs."""
  module = SelfAttention(
    num_heads, 8, 0.3, False, jnp.float32, implementation=implementation
  )
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, 16, 12)), jnp.float32)
  visible = same_segment(jnp.asarray(np.sort(rng.integers(0, 3, (8, 16)))))
  bias = jnp.asarray(rng.normal(size=(num_heads, 16, 16)), jnp.float32)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

  @jax.jit
  def both(x, bias):
    params = module.init(rngs, x, visible, bias)["params"]

    def loss(params, x, bias):
      y = module.apply({"params": params}, x, visible, bias, rngs=rngs)
      return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, x, bias)

  return jax.tree.map(np.asarray, both(x, bias))


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
