"""SeqIO data sources that yield one comment tree an example, as `columns`."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import seqio
import tensorflow as tf

from . import generated, readers, records
from .columns import COLUMNS, to_columns
from .config import TreeConfig
from .generated_config import GeneratedTreesConfig
from .trees import CommentTree, Fates

SPLITS = ("train", "validation")

_SIGNATURE = {
  name: tf.TensorSpec([None] * rank, tf.string if kind == "str" else tf.as_dtype(kind))
  for name, (kind, rank) in COLUMNS.items()
}


class TreeSource(seqio.DataSource):
  """Comment trees as a SeqIO source; subclasses say where they come from.

  Attributes:
    fates: what became of the comments read since the last split was started.
  """

  def __init__(self):
    self.fates = Fates()
    super().__init__(splits=SPLITS)

  @abc.abstractmethod
  def trees(self, split: str) -> Iterator[CommentTree]:
    """Yields the split's trees, one at a time, in an order that never changes."""

  @abc.abstractmethod
  def signature(self, split: str) -> dict[str, Any]:
    """JSON-able facts that differ whenever the split's trees may differ."""

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """No: a source streams its files as one shard."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """A source streams its files as one shard."""
    return [split]

  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None):
    """Returns a `tf.data.Dataset` of trees; `shuffle` is left to what is prepared."""
    if shard_info and shard_info.num_shards > 1:
      raise ValueError("TreeSource is one shard; use tf.data.Dataset.shard")
    return tf.data.Dataset.from_generator(
      lambda: map(to_columns, self.trees(split)), output_signature=_SIGNATURE
    )


class GeneratedTreesSource(TreeSource):
  """Trees made up on the spot, always the same for the same settings."""

  def __init__(self, config: GeneratedTreesConfig):
    self.config = config
    super().__init__()

  def trees(self, split: str) -> Iterator[CommentTree]:
    """Yields `num_train_trees` trees, or the `num_validation_trees` after those."""
    train = self.config.num_train_trees
    indices = {
      "train": range(train),
      "validation": range(train, train + self.config.num_validation_trees),
    }[split]
    for index in indices:
      yield generated.generate_tree(self.config, self.config.seed, index)

  def signature(self, split: str) -> dict[str, Any]:
    """The generator's settings."""
    return {"generated": records.jsonable(self.config), "split": split}


class TreeFilesSource(TreeSource):
  """Trees in files, held out by a hash of their ids."""

  def __init__(
    self, files: str | Sequence[str], held_out_share: float, config: TreeConfig
  ):
    """Opens nothing yet.

    Args:
      files: a file, a glob, a folder, or several of those.
      held_out_share: share of trees in the 'validation' split.
      config: what to do with deleted comments and the like.
    """
    self.files = files
    self.held_out_share = held_out_share
    self.config = config
    super().__init__()

  def trees(self, split: str) -> Iterator[CommentTree]:
    """Yields the trees whose id hashes into the split."""
    self.fates = Fates()
    for tree in readers.iter_trees(self.files, self.config, self.fates):
      if (id_fraction(tree.id) < self.held_out_share) == (split == "validation"):
        yield tree

  def signature(self, split: str) -> dict[str, Any]:
    """The files' names, sizes and times, and the settings."""
    return {
      "files": records.file_signature(readers.expand(self.files)),
      "held_out_share": self.held_out_share,
      "trees": records.jsonable(self.config),
      "split": split,
    }


def id_fraction(tree_id: str) -> float:
  """A tree's place in [0, 1), by its id alone: the same on every machine."""
  digest = hashlib.blake2b(tree_id.encode("utf-8", "replace"), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64
