"""The model as T5X's gin files make it; T5X itself is not imported.

`gin/t5x/*.gin` bind what is here, and run it under T5X's train.py, eval.py, infer.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import jax

from commentree.errors import UserError
from commentree.launch import assemble_run
from commentree.models.batch import smallest
from commentree.models.config import ModelConfig
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.seqio_tasks import registry
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary
from commentree.training import partitioning
from commentree.training.config import DEFAULT_AXIS_RULES, MeshAxes

# T5X's own rules know these; ours come after them.
_T5X_AXES = frozenset(
  ("batch", "vocab", "embed", "mlp", "heads", "kv", "joined_kv", "layers", "length")
) | {"relpos_buckets"}


def comment_tree_model(
  mixture_or_task_name: str,
  config: ModelConfig,
  optimizer_def: Any,
  layout: ForestLayout = ForestLayout(),
  loss_normalizing_factor: float | None = None,
  decoding_config: DecodingConfig | None = None,
) -> CommentTreeModel:
  """Makes a model for T5X.

  Args:
    mixture_or_task_name: a registered task of comment trees, or mixture of such, for
      its vocabulary.
    config: architecture and loss.
    optimizer_def: makes the optimizer; ours (`training.t5x_optimizer`) or T5X's.
    layout: rows and slots of a forest.
    loss_normalizing_factor: see `CommentTreeModel`.
    decoding_config: makes T5X's `infer.py` write replies by its mode 'predict', with a
      model trained by the objective `clm`.

  Raises:
    UserError: if there is no such task, or a parameter has an axis that no rule knows
      or not as many as dimensions, of which T5X would say nothing.
  """
  task = registry.get_parts(mixture_or_task_name)[0].task
  model = CommentTreeModel(
    assemble_run.with_sizes(config, task),
    input_vocabulary=TokenizerVocabulary(task.tokenizer),
    optimizer_def=optimizer_def,
    feature_converter_cls=functools.partial(
      CommentForestFeatureConverter, layout=layout
    ),
    loss_normalizing_factor=loss_normalizing_factor,
    decoding_config=decoding_config,
  )
  check_axes(model)
  return model


class LossesOnly:
  """Stands where T5X's eval.py wants a SeqIO evaluator: forests have no texts to score.

  What is measured is measured by `training_evaluator_cls`: loss and accuracy.
  """

  def __init__(
    self,
    *,
    mixture_or_task_name: str,
    feature_converter: CommentForestFeatureConverter,
    sequence_length: Mapping[str, int],
    **unused: Any,
  ):
    """Takes the keywords that T5X gives a `seqio.Evaluator`."""
    del unused
    self.eval_tasks = [part.task for part in registry.get_parts(mixture_or_task_name)]
    features = self.eval_tasks[0].output_features
    shape = feature_converter.forest_shape(features, sequence_length)
    self.model_feature_shapes = shape.feature_shapes()

  def evaluate(self, **unused: Any) -> tuple[Future[dict[str, Any]], None]:
    """Returns no metrics."""
    del unused
    nothing: Future[dict[str, Any]] = Future()
    nothing.set_result({})
    return nothing, None

  def close(self) -> None:
    """Does nothing."""


def check_axes(model: CommentTreeModel) -> None:
  """Raises UserError unless every parameter has a known axis for each dimension."""
  shapes = {name: feature.shape for name, feature in smallest().items()}
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(rng=jax.random.key(0), input_shapes=shapes)
  )
  known = {axis for axis, _ in DEFAULT_AXIS_RULES}
  names_of = partitioning.axis_names(variables["params_axes"])
  for name, leaf in partitioning.flatten_names(variables["params"]).items():
    names = names_of.get(name, ())
    unknown = [axis for axis in names if axis is not None and axis not in known]
    if len(names) != len(leaf.shape) or unknown:
      raise UserError(
        f"parameter {name} of shape {leaf.shape} has the logical axes {names}: name one"
        f" for each dimension, of {', '.join(sorted(known))}"
      )


def additional_axis_rules() -> tuple[tuple[str, MeshAxes], ...]:
  """Returns rules for the axes that T5X does not know: whole on every device."""
  return tuple((axis, None) for axis, _ in DEFAULT_AXIS_RULES if axis not in _T5X_AXES)
