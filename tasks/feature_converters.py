"""SeqIO's seam to the model: masked pieces in, forests out."""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

from . import packing
from .forest_layout import ForestLayout, resolve
from .masking import MASKING_FEATURES
from .pieces import PIECE_FEATURES

_Spec = seqio.FeatureConverter.FeatureSpec
_RANKS = {
  name: len(dims)
  for name, dims in resolve(ForestLayout(), {"encoder": 8, "decoder": 8})
  .feature_shapes()
  .items()
}


def _dtype(name: str) -> tf.DType:
  return tf.float32 if name == "decoder_loss_weights" else tf.int32


class CommentForestFeatureConverter(seqio.FeatureConverter):
  """Lays masked pieces of trees out as forests of static shape.

  `task_feature_lengths` gives tokens per row, {'encoder': Le, 'decoder': Ld}: a piece
  is ragged and has no length of its own to bound. Forests are packed always.

  Attributes:
    layout: rows and slots.
  """

  TASK_FEATURES = {
    name: _Spec(dtype=tf.int32) for name in (*PIECE_FEATURES, *MASKING_FEATURES)
  }
  MODEL_FEATURES = {
    name: _Spec(dtype=_dtype(name), rank=rank) for name, rank in _RANKS.items()
  }
  PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

  def __init__(
    self,
    pack: bool = True,
    use_custom_packing_ops: bool = False,
    layout: ForestLayout = ForestLayout(),
  ):
    """Takes the keywords that T5X gives; the first two change nothing."""
    del pack, use_custom_packing_ops
    self.layout = layout
    # Our packing is not SeqIO's, which demands features of rank 1.
    super().__init__(pack=False, apply_length_check=False)

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Converts; the row lengths stand in for the lengths of SeqIO's features."""
    self._shape = resolve(self.layout, task_feature_lengths)
    return super().__call__(ds, dict.fromkeys(self.TASK_FEATURES, None))

  def _convert_features(self, ds, task_feature_lengths):
    del task_feature_lengths
    shape = self._shape

    def forests():
      return packing.pack(ds.as_numpy_iterator(), shape, self.layout.lookahead)

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
