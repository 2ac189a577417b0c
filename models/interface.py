"""The seam between models and trainers: what a model object must offer.

The first part is what T5X asks of a model (it inspects names, so argument names
matter); the second is what our own trainer and evaluator use besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from clu import metrics as clu_metrics

from commentree.models.config import Condition, ModelConfig

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, clu_metrics.Metric]


class Model(Protocol):
  """A model that trains under T5X's trainer and under ours."""

  config: ModelConfig
  module: Any
  optimizer_def: Any

  @property
  def FEATURE_CONVERTER_CLS(self) -> Callable[..., Any]:
    """Makes the SeqIO feature converter."""

  @property
  def input_vocabulary(self) -> Any:
    """Vocabulary of the encoder's tokens."""

  @property
  def output_vocabulary(self) -> Any:
    """Vocabulary of the predicted tokens."""

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Returns `params` and, of the same structure, `params_axes`."""

  def loss_fn(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, Metrics]:
    """Returns the loss to differentiate and the batch's metrics."""

  def eval_fn(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> tuple[Array, Metrics]:
    """Returns loss and metrics without dropout."""

  def predict_batch(
    self, params: PyTree, batch: Batch, rng: Array | None = None
  ) -> Array:
    """Returns predictions, leading axis the batch's."""

  def predict_batch_with_aux(
    self, params: PyTree, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, Mapping[str, Array]]:
    """Returns predictions and what goes with them."""

  def score_batch(self, params: PyTree, batch: Batch) -> Array:
    """Returns log likelihoods, leading axis the batch's."""

  def loss_sums(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, Array, dict[str, Array]]:
    """Returns the summed loss, the weight it sums over, and sums for metrics."""

  def evaluate_batch(
    self, params: PyTree, batch: Batch, condition: Condition
  ) -> dict[str, Array]:
    """Returns per-token results under one of the ancestor conditions.

    Under "true" also `attention`, sums over what cross-attention did, or nothing.
    """

  def recall_sums(self, params: PyTree, batch: Batch) -> dict[str, dict[str, Array]]:
    """Adds up how well threads find their replies, see `CommentTreeModel`."""

  def vector_sums(self, params: PyTree, batch: Batch) -> dict[str, Array]:
    """Returns sums over the vectors that comments were pooled to, if they were."""
