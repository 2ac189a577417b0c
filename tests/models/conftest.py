"""Small models and one packed batch, shared by the model's tests."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel

from . import forests

CONFIG = ModelConfig(
  vocab_size=29,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=2,
  max_ancestor_distance=3,
  dtype="float32",
)
# What makes CONFIG a model of another family; both kinds of it, as RoBERTa and BERT.
FAMILIES = {
  "t5": {},
  "roberta": {
    "family": "roberta",
    "mlp_activations": ("gelu_exact",),
    "num_positions": 14,
  },
  "bert": {
    "family": "roberta",
    "mlp_activations": ("gelu_exact",),
    "num_positions": 12,
    "position_offset": 0,
    "type_vocab_size": 2,
    "layer_norm_epsilon": 1e-12,
  },
}


@dataclasses.dataclass
class Packed:
  """Two forests and an empty example, side by side as comments and as a batch."""

  forests: list[list[forests.Comment]]
  batch: dict[str, np.ndarray]

  @property
  def shapes(self):
    return {name: feature.shape for name, feature in self.batch.items()}


@pytest.fixture(scope="session")
def packed() -> Packed:
  rng = np.random.default_rng(6)
  layout = forests.Layout()
  drawn = [
    forests.random_forest(rng, sizes, (3, 5), CONFIG.vocab_size, first_tree=first)
    for first, sizes in ((1, (3, 2)), (3, (7,)))
  ]
  examples = [forests.pack(forest, layout) for forest in drawn]
  batch = forests.batch_of(*examples, forests.empty_example(layout))
  return Packed(drawn, batch)


def draw(shapes, seed=0):
  """Draws parameters of given shapes, none of them at a special value (0 or 1)."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    if path[-1].key == "scale":
      return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), jnp.float32)
    name = path[-1].key
    fan_in = {"bias": 4, "salience": 16, "gate": 16}.get(name, 1)
    if name == "kernel":
      fan_in = shape.shape[-2]
    return jnp.asarray(rng.normal(0, fan_in**-0.5, shape.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="session")
def make(packed):
  """Returns (config changes) -> (model, random parameters), cached."""

  @functools.cache
  def build(**changes):
    model = CommentTreeModel(dataclasses.replace(CONFIG, **changes))
    variables = jax.eval_shape(
      lambda: model.get_initial_variables(jax.random.key(0), packed.shapes)
    )
    return model, draw(variables["params"])

  return build


@pytest.fixture(scope="session", params=["t5", "roberta"])
def family(request):
  """Returns the changes that make the default model one of each family."""
  return FAMILIES[request.param]


@pytest.fixture(scope="session")
def logits_of(make, family):
  """Returns the jitted logits of a family's default model: batch -> [B, R, M, V]."""
  model, params = make(**family)
  logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  return lambda batch: np.asarray(logits(params, batch))
