"""The parameters that a model would have: names, shapes and logical axes."""

import jax
from flax.linen import partitioning

from commentree.models.batch import FEATURE_AXES
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel

VOCAB_SIZE = 32128


def parameters(**settings):
  """Returns name -> (shape, logical axes) of a model, drawing nothing."""
  model = CommentTreeModel(ModelConfig(vocab_size=VOCAB_SIZE, **settings))
  shapes = {name: (2,) * len(axes) for name, axes in FEATURE_AXES.items()}
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  axes = partitioning.get_axis_names(variables["params_axes"])
  table = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
    names = axes
    for key in path:
      names = names[key.key]
    table[".".join(key.key for key in path)] = (leaf.shape, tuple(names))
  return table
