"""SeqIO's seam to the model: masked subtrees in, forests out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from commentree.errors import UserError
from commentree.tasks.forests import packing
from commentree.tasks.forests.forest_layout import (
  FLOAT_FEATURES,
  ForestLayout,
  ForestShape,
  resolve,
  row_lengths,
)
from commentree.tasks.objectives.masking import MASKING_FEATURES
from commentree.tasks.objectives.objectives import (
  NODE_FEATURES,
  TARGET_TOKENS,
  optional_features_of,
)
from commentree.tasks.subtrees.subtree_builder import (
  LANGUAGES,
  SUBTREE_FEATURES,
  TREE_ID,
  Subtree,
)

_Spec = seqio.FeatureConverter.FeatureSpec
# Features that subtrees have by their objective or their data.
_OPTIONAL = (TARGET_TOKENS, *NODE_FEATURES, LANGUAGES)


def _dtype(name: str) -> tf.DType:
  return tf.float32 if name in FLOAT_FEATURES else tf.int32


def _model_features(optional_features: tuple[str, ...]) -> dict[str, Any]:
  """Features of a forest that has these optional ones."""
  shape = resolve(
    ForestLayout(), {"encoder": 8, "decoder": 8}, optional_features=optional_features
  )
  return {
    name: _Spec(dtype=_dtype(name), rank=len(dims))
    for name, dims in shape.feature_shapes().items()
  }


class CommentForestFeatureConverter(seqio.FeatureConverter):
  """Lays masked subtrees of trees out as forests of static shape.

  `task_feature_lengths` gives tokens per row, {'encoder': Le, 'decoder': Ld}: a subtree
  is ragged and has no length of its own to bound. Forests have the optional features
  that go with those of the subtrees.

  Attributes:
    layout: rows and slots.
  """

  TASK_FEATURES = {
    name: _Spec(dtype=tf.int32) for name in (*SUBTREE_FEATURES, *MASKING_FEATURES)
  }
  MODEL_FEATURES = _model_features(())
  PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

  def __init__(
    self,
    *,
    pack: bool = True,
    use_custom_packing_ops: bool = False,
    layout: ForestLayout = ForestLayout(),
  ):
    """Takes the keywords that T5X gives.

    Args:
      pack: as many subtrees in a forest as it holds; if False, one, so that T5X's
        inference knows which subtree an answer is for.
      use_custom_packing_ops: changes nothing.
      layout: rows and slots.
    """
    del use_custom_packing_ops
    self.layout = layout
    self._packs_subtrees = pack
    # Our packing is not SeqIO's, which demands features of rank 1.
    super().__init__(pack=False, apply_length_check=False)

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Converts; the row lengths stand in for the lengths of SeqIO's features."""
    self.TASK_FEATURES = {
      **type(self).TASK_FEATURES,
      **{name: _Spec(dtype=tf.int32) for name in _OPTIONAL if name in ds.element_spec},
    }
    if TREE_ID in ds.element_spec:  # SeqIO's mixtures drop it
      self.TASK_FEATURES[TREE_ID] = _Spec(dtype=tf.string, rank=0)
    self._shape = self.forest_shape(ds.element_spec, task_feature_lengths)
    self.MODEL_FEATURES = _model_features(self._shape.optional_features)
    return super().__call__(ds, dict.fromkeys(self.TASK_FEATURES, None))

  def forest_shape(
    self, features: Mapping[str, Any], task_feature_lengths: Mapping[str, int]
  ) -> ForestShape:
    """Returns the shape of forests whose subtrees have these features.

    Raises:
      UserError: if the row lengths are not usable.
    """
    _, length = row_lengths(task_feature_lengths)
    layout = self.layout
    if TARGET_TOKENS in features:
      # All tokens of a comment may be predicted; they fit at any share.
      groups = layout.masked_groups or layout.decoder_rows
      layout = dataclasses.replace(
        layout,
        masked_groups=groups,
        masked_per_group=layout.masked_per_group
        or layout.decoder_rows // groups * length,
      )
    return resolve(
      layout, task_feature_lengths, optional_features=optional_features_of(features)
    )

  def _convert_features(self, ds, task_feature_lengths):
    del task_feature_lengths
    shape = self._shape

    def forests():
      subtrees = ds.as_numpy_iterator()
      if self._packs_subtrees:
        return packing.pack(subtrees, shape, self.layout.lookahead)
      return (_forest_of(subtree, shape) for subtree in subtrees)

    return tf.data.Dataset.from_generator(
      forests,
      output_signature={
        name: tf.TensorSpec(dims, _dtype(name))
        for name, dims in shape.feature_shapes().items()
      },
    )

  def get_model_feature_lengths(self, task_feature_lengths):
    """First dimension of each feature, once the converter was called."""
    del task_feature_lengths
    return {name: dims[0] for name, dims in self._shape.feature_shapes().items()}


def _forest_of(subtree: Subtree, shape: ForestShape) -> packing.Forest:
  """Returns a forest of one subtree, empty if nothing in it is masked."""
  forests = list(packing.pack([subtree], shape, lookahead=1))
  if len(forests) > 1:
    raise UserError(
      f"ForestLayout: a subtree takes {len(forests)} forests, but each must have one of"
      " its own: give it more rows or masked_per_group, or SubtreeConfig.max_tree_size"
      " fewer comments"
    )
  return forests[0] if forests else packing.empty_forest(shape)
