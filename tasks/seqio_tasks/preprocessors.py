"""SeqIO preprocessors: trees to subtrees (cached), objectives on them (every epoch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from commentree.tasks.objectives.masking import MASKING_FEATURES
from commentree.tasks.objectives.objectives import TARGET_TOKENS, Objective, complete
from commentree.tasks.subtrees.subtree_builder import (
  ANNOTATIONS,
  NODE_FEATURES,
  PLACE_FEATURES,
  SUBTREE_FEATURES,
  SubtreeBuilder,
)
from commentree.tasks.trees.columns import TREE_INDEX, from_columns

_SUBTREE_SIGNATURE = {
  **{name: tf.TensorSpec([None], tf.int32) for name in SUBTREE_FEATURES},
  "tree_id": tf.TensorSpec([], tf.string),
}


def trees_to_subtrees(ds: tf.data.Dataset, builder: SubtreeBuilder) -> tf.data.Dataset:
  """Cleans, tokenises and splits trees; one example per subtree.

  Args:
    ds: trees as `columns`. Subtrees have the features of `PLACE_FEATURES` if trees have
      a `TREE_INDEX`: those of our sources do, those of `seqio.TfdsDataSource` do not.
    builder: does the work.
  """
  placed = TREE_INDEX in ds.element_spec

  def subtrees():
    for columns in ds.as_numpy_iterator():
      for number, subtree in enumerate(builder(from_columns(columns))):
        if placed:
          subtree.update(zip(PLACE_FEATURES, (columns[TREE_INDEX], number)))
        yield subtree

  signature = dict(_SUBTREE_SIGNATURE)
  signature |= {name: tf.TensorSpec([None], tf.int32) for name in builder.annotations}
  if placed:
    signature |= {name: tf.TensorSpec([], tf.int64) for name in PLACE_FEATURES}
  return tf.data.Dataset.from_generator(subtrees, output_signature=signature)


def apply_objective(
  ds: tf.data.Dataset,
  sequence_length: Mapping[str, int] | None,
  objective: Objective,
  max_comment_tokens: int,
  written: Sequence[str],
) -> tf.data.Dataset:
  """Adds what the decoder reads and predicts.

  Args:
    ds: subtrees.
    sequence_length: SeqIO's; 'decoder' bounds the tokens of a target that are shown.
    objective: says what is to be predicted.
    max_comment_tokens: the bound when SeqIO gives none.
    written: the features to add: the objective's, and of `objectives.ALL_FEATURES`
      those that other tasks of a mixture have.
  """
  max_length = (sequence_length or {}).get("decoder") or max_comment_tokens
  annotations = (name for name in ANNOTATIONS if name in ds.element_spec)
  read = (*SUBTREE_FEATURES, *annotations)

  def draw(seed, *features):
    subtree = dict(zip(read, features))
    masked = objective(subtree, max_length, int(seed[0]) & 0x7FFFFFFF, 0, int(seed[1]))
    whole = complete(masked)
    return [whole[name] for name in written]

  @seqio.map_over_dataset(num_seeds=1)
  def mask(subtree, seed):
    outputs = tf.numpy_function(
      draw,
      [seed, *(subtree[name] for name in read)],
      [tf.int32] * len(written),
    )
    for output in outputs:
      output.set_shape([None])
    return {**subtree, **dict(zip(written, outputs))}

  return mask(ds)


def output_features(
  vocabulary: seqio.Vocabulary,
  added: Sequence[str] = MASKING_FEATURES,
  annotations: Sequence[str] = (),
  *,
  predicts_tokens: bool = True,
) -> dict[str, seqio.Feature]:
  """The features of a subtree that an objective was at, as SeqIO describes features.

  Args:
    vocabulary: of its tokens.
    added: the features that the objective adds.
    annotations: those of `subtree_builder.ANNOTATIONS` that it has.
    predicts_tokens: whether tokens are what is predicted; labels otherwise.
  """
  numbers = seqio.PassThroughVocabulary(size=0)

  def feature(name: str) -> seqio.Feature:
    text = name in ("tokens", "input_tokens") or (
      name == TARGET_TOKENS and predicts_tokens
    )
    return seqio.Feature(
      vocabulary=vocabulary if text else numbers, add_eos=False, dtype=tf.int32
    )

  names = ("tokens", *added, *NODE_FEATURES, *annotations)
  return {name: feature(name) for name in names}
