"""`models` needs neither TensorFlow nor SeqIO, nor anything of `tasks`."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = """
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tensorflow", "seqio", "gin", "t5x"):
      raise ImportError(f"{name} is blocked")
    if name.startswith("commentree.") and name.split(".")[1] in (
      "tasks", "training", "launch"
    ):
      raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())

import importlib, pkgutil
import commentree.models
for module in pkgutil.walk_packages(commentree.models.__path__, "commentree.models."):
  importlib.import_module(module.name)

import jax, jax.numpy as jnp
from commentree.models import batch
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel

model = CommentTreeModel(
  ModelConfig(
    vocab_size=12, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8,
    num_encoder_layers=1, num_decoder_layers=1, dtype="float32",
  )
)
forest = {name: jnp.ones_like(x) for name, x in batch.smallest().items()}
forest["decoder_masked_positions"] *= 0
shapes = {name: x.shape for name, x in forest.items()}
params = model.get_initial_variables(jax.random.key(0), shapes)["params"]

@jax.jit
def step(params):
  loss, gradients = jax.value_and_grad(lambda p: model.loss_fn(p, forest, None)[0])(
    params
  )
  return loss, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

first, params = step(params)
second, params = step(params)
assert second < first, (first, second)
assert not {"tensorflow", "seqio", "gin"} & set(sys.modules)
print("trained")
"""


def test_models_import_and_train_a_step_where_tensorflow_and_seqio_are_blocked():
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM)],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.stdout.strip() == "trained", done.stderr
