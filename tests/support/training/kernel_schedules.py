"""Prints the cycles of attention kernels for a register of scores, as libtpu schedules.

  python kernel_schedules.py FOLDER

FOLDER receives libtpu's dump. Base's attention on v5e: rows of 128 tokens, 12 heads of
64, 129 vectors and 177 targets of each of two examples.
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

ROWS, EXAMPLES, LENGTH, HEADS, WIDTH, VECTORS, TARGETS = 4, 2, 128, 12, 64, 129, 177
# With the padding that the kernel adds.
PADDED_VECTORS = 144


def main() -> None:
  """Compiles both kernels and their gradients; prints cycles by name."""
  folder = pathlib.Path(sys.argv[1])
  os.environ["LIBTPU_INIT_ARGS"] = (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
  )
  device = SingleDeviceSharding(topologies.open_topology("v5e:1x1").devices[0])
  heads = Heads(WIDTH, 1.0, 1, False)

  def given(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

  joined = HEADS * WIDTH
  of_rows = given(jnp.bfloat16, ROWS, LENGTH, joined)
  of_vectors = given(jnp.bfloat16, EXAMPLES, VECTORS, joined)

  def own(query, key, value, visible, bias):
    return attention_kernels.attend(query, key, value, visible, bias, heads)

  def to_ancestors(query, key, value, visible, bias, target):
    return ancestor_kernels.attend_to_vectors(
      query, key, value, visible, bias, target, heads
    )

  def both(own_operands, ancestor_operands):
    return own(*own_operands).sum() + to_ancestors(*ancestor_operands).sum()

  visible = given(jnp.int8, ROWS, LENGTH, LENGTH)
  bias = given(jnp.bfloat16, HEADS, LENGTH, LENGTH)
  sees = given(jnp.bool_, EXAMPLES, TARGETS, VECTORS)
  distances = given(jnp.bfloat16, EXAMPLES, HEADS, TARGETS, VECTORS)
  targets = given(jnp.int32, ROWS, LENGTH)
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
    keys = PADDED_VECTORS if name[1] == "ancestor" else LENGTH
    found[name[0]] = int(bundles[1]) / (HEADS * LENGTH * keys / 1024)
  print(json.dumps(found))


if __name__ == "__main__":
  main()
