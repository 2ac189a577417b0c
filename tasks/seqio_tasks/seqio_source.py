"""A source of comment trees as SeqIO wants one: an example a tree, as `columns`."""

from __future__ import annotations

from collections.abc import Sequence

import seqio
import tensorflow as tf

from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.trees.columns import COLUMNS, TREE_INDEX, to_columns

_SIGNATURE = {
  name: tf.TensorSpec([None] * rank, tf.string if kind == "str" else tf.as_dtype(kind))
  for name, (kind, rank) in {**COLUMNS, TREE_INDEX: ("int64", 0)}.items()
}


class SeqioTreeSource(seqio.DataSource):
  """Hands a source's trees to SeqIO.

  Attributes:
    trees: the source.
  """

  def __init__(self, trees: TreeSource):
    """Reads nothing yet.

    Args:
      trees: the source.
    """
    self.trees = trees
    super().__init__(splits=trees.splits)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """No: a source has the shards that it has."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """Names of what can be read side by side."""
    return self.trees.list_shards(split)

  def num_input_examples(self, split: str) -> int | None:
    """Trees in a split, if the source knows."""
    return self.trees.num_trees(split)

  # SeqIO hands over its arguments by place.
  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None):  # noqa: FBT002
    """Returns a `tf.data.Dataset` of trees; `shuffle` is left to what is prepared.

    Args:
      split: one of `splits`.
      shuffle: changes nothing.
      seed: changes nothing.
      shard_info: of n shards asked for, the i-th is every n-th of ours from the i-th.
    """
    shards = range(len(self.list_shards(split)))
    if shard_info:
      if shard_info.num_shards > len(shards):
        raise ValueError(
          f"split {split!r} has {len(shards)} shards, not {shard_info.num_shards}; use"
          " tf.data.Dataset.shard"
        )
      shards = shards[shard_info.index :: shard_info.num_shards]

    def examples():
      for shard in shards:
        for index, tree in self.trees.shard_trees(split, shard):
          yield {**to_columns(tree), TREE_INDEX: index}

    return tf.data.Dataset.from_generator(examples, output_signature=_SIGNATURE)
