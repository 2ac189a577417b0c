"""Where comment trees come from, split by split."""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from commentree.tasks import readers
from commentree.tasks.building.order import id_fraction
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.dataset_files.built_dataset import BuiltDataset
from commentree.tasks.sources import generated
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

SPLITS = ("train", "validation")


class TreeSource(abc.ABC):
  """Comment trees; subclasses say where they come from.

  Attributes:
    splits: the splits there are.
    read_counts: what became of the comments read since the last split was started.
  """

  def __init__(self, splits: Sequence[str] = SPLITS):
    """Names the splits there are."""
    self.read_counts = ReadCounts()
    self.splits = tuple(splits)

  @abc.abstractmethod
  def trees(self, split: str) -> Iterator[CommentTree]:
    """Yields the split's trees, one at a time, in an order that never changes."""

  @abc.abstractmethod
  def signature(self, split: str) -> dict[str, Any]:
    """JSON-able facts that differ whenever the split's trees may differ."""

  def shard_trees(self, split: str, shard: int) -> Iterator[tuple[int, CommentTree]]:
    """Yields the trees of one of `list_shards`, each with its place in the split."""
    del shard
    return enumerate(self.trees(split))

  def list_shards(self, split: str) -> Sequence[str]:
    """Names of what can be read side by side; one, unless a subclass knows better."""
    return [split]

  def num_trees(self, split: str) -> int | None:
    """Trees in a split; None unless a subclass knows without reading them."""
    del split
    return None


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
    return {"generated": dataclasses.asdict(self.config), "split": split}


class TreeFilesSource(TreeSource):
  """Trees in files, held out by a hash of their ids."""

  def __init__(
    self,
    files: str | Sequence[str],
    held_out_share: float,
    config: TreeConfig,
    format_name: str | None = None,
  ):
    """Opens nothing yet.

    Args:
      files: a file, a glob, a folder, or several of those.
      held_out_share: share of trees in the 'validation' split.
      config: what to do with deleted comments and the like.
      format_name: of the files; None to tell it from each.
    """
    self.files = files
    self.format_name = format_name
    self.held_out_share = held_out_share
    self.config = config
    there = (held_out_share < 1, held_out_share > 0)
    super().__init__([split for split, is_there in zip(SPLITS, there) if is_there])

  def trees(self, split: str) -> Iterator[CommentTree]:
    """Yields the trees whose id hashes into the split."""
    self.read_counts = ReadCounts()
    found = readers.iter_trees(
      self.files, self.config, self.read_counts, self.format_name
    )
    for tree in found:
      if (id_fraction(tree.id) < self.held_out_share) == (split == "validation"):
        yield tree

  def signature(self, split: str) -> dict[str, Any]:
    """The files' names, sizes and times, and the settings."""
    return {
      "files": _file_signature(readers.inputs(self.files, self.format_name)),
      "format": self.format_name,
      "held_out_share": self.held_out_share,
      "trees": dataclasses.asdict(self.config),
      "split": split,
    }


class BuiltTreesSource(TreeSource):
  """Trees of a dataset made by `commentree build`, with its own splits and shards."""

  def __init__(self, folder: str | os.PathLike[str]):
    """Looks whether all that belongs to the dataset is there.

    Args:
      folder: holds a `dataset_info.json`.

    Raises:
      UserError: if something is missing or damaged.
    """
    self.dataset = BuiltDataset(folder)
    super().__init__(splits=tuple(self.dataset.splits))

  def trees(self, split: str) -> Iterator[CommentTree]:
    """Yields the split's trees, shard by shard."""
    return self.dataset.trees(split)

  def signature(self, split: str) -> dict[str, Any]:
    """The dataset's identity, wherever it lies."""
    return {"built": self.dataset.identity, "split": split}

  def list_shards(self, split: str) -> Sequence[str]:
    """Names of the split's files."""
    return [file.name for file in self.dataset.split(split).files]

  def shard_trees(self, split: str, shard: int) -> Iterator[tuple[int, CommentTree]]:
    """Yields the trees in one file, each with its place in the split."""
    return self.dataset.shard_trees(split, shard)

  def num_trees(self, split: str) -> int:
    """Trees in a split."""
    return sum(self.dataset.split(split).lengths)


def _file_signature(paths: Sequence[str]) -> list[tuple[str, int, int]]:
  """Name, bytes and modification time (ns) of each file: what a fingerprint takes."""
  stats = [(path, os.stat(path)) for path in paths]
  return [(os.path.abspath(p), s.st_size, s.st_mtime_ns) for p, s in stats]
