"""Small models and one packed batch, shared by the model's tests."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import forests
from commentree.tests.support.models.small_models import CONFIG, FAMILIES, draw


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
  """Returns the jitted logits of a family's default model: batch -> [B, G, M, V]."""
  model, params = make(**family)
  logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  return lambda batch: np.asarray(logits(params, batch))
