"""Prints the cycles of attention kernels for a register of scores, as libtpu schedules.

  python kernel_schedules.py FOLDER TOPOLOGY LENGTH WIDTH

FOLDER receives libtpu's dump. Rows of LENGTH tokens, heads of WIDTH that are as wide as
base's 12 of 64 together, 129 vectors and 177 targets of each of two examples.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from commentree.models.transformer import ancestor_kernels, attention_kernels
from commentree.models.transformer.kernel_parts import Heads
from commentree.training.tpu_compile import topologies

ROWS, EXAMPLES, JOINED, VECTORS, TARGETS = 4, 2, 768, 129, 177
# With the padding that the kernel adds.
PADDED_VECTORS = 144


def main() -> None:
  """Compiles both kernels and their gradients; prints cycles by name."""
  folder, topology = pathlib.Path(sys.argv[1]), sys.argv[2]
  length, width = int(sys.argv[3]), int(sys.argv[4])
  num_heads = JOINED // width
  os.environ["LIBTPU_INIT_ARGS"] = (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
  )
  device = SingleDeviceSharding(topologies.open_topology(topology).devices[0])
  own_groups = attention_kernels.count_groups(length, num_heads, width, itemsize=2)
  groups = ancestor_kernels.count_groups(
    length, VECTORS, TARGETS, num_heads, width, itemsize=2
  )
  assert own_groups
  assert groups
  own_heads = Heads(width, 1.0, own_groups, False)
  heads = Heads(width, 1.0, groups, False)

  def given(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

  of_rows = given(jnp.bfloat16, ROWS, length, JOINED)
  of_vectors = given(jnp.bfloat16, EXAMPLES, VECTORS, JOINED)

  def own(query, key, value, visible, bias):
    return attention_kernels.attend(query, key, value, visible, bias, own_heads)

  def to_ancestors(query, key, value, visible, bias, target):
    return ancestor_kernels.attend_to_vectors(
      query, key, value, visible, bias, target, heads
    )

  def both(own_operands, ancestor_operands):
    return own(*own_operands).sum() + to_ancestors(*ancestor_operands).sum()

  visible = given(jnp.int8, ROWS, length, length)
  bias = given(jnp.bfloat16, num_heads, length, length)
  sees = given(jnp.bool_, EXAMPLES, TARGETS, VECTORS)
  distances = given(jnp.bfloat16, EXAMPLES, num_heads, TARGETS, VECTORS)
  targets = given(jnp.int32, ROWS, length)
  jax.jit(jax.value_and_grad(both, argnums=(0, 1), allow_int=True)).lower(
    (of_rows, of_rows, of_rows, visible, bias),
    (of_rows, of_vectors, of_vectors, sees, distances, targets),
  ).compile()
  found = {}
  for path in folder.glob("*kernel*schedule-analysis_final_bundles.txt"):
    bundles = re.search(r"total scheduled bundles:\s+(\d+)", path.read_text())
    name = re.search(r"(self|ancestor)_attention_(gradient_)?kernel", path.name)
    assert bundles, path.name
    assert name, path.name
    of_ancestors = name[1] == "ancestor"
    keys = PADDED_VECTORS if of_ancestors else length
    scores = num_heads // (groups if of_ancestors else own_groups) * length * keys
    found[name[0]] = int(bundles[1]) / (scores / 1024)
  print(json.dumps(found))


if __name__ == "__main__":
  main()
