"""A small built dataset."""

import itertools

import numpy as np

from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.dataset_files import manifest, tfrecord, tree_record
from commentree.tasks.sources import generated

NAME = "small_forum"
CONFIG = GeneratedTreesConfig(num_train_trees=60, num_validation_trees=20)


def trees(first=0, count=60):
  return [
    generated.generate_tree(CONFIG, CONFIG.seed, index)
    for index in range(first, first + count)
  ]


def write(parent, splits, shards=3, checksums=True):
  """Writes `parent`/NAME/1.0.0 of trees by split; returns the folder of NAME."""
  folder = parent / NAME / "1.0.0"
  folder.mkdir(parents=True)
  infos = {}
  for split, wanted in splits.items():
    bounds = np.linspace(0, len(wanted), shards + 1).astype(int)
    records = [tree_record.encode(tree) for tree in wanted]
    for shard, (start, end) in enumerate(itertools.pairwise(bounds)):
      path = folder / manifest.shard_name(NAME, split, shard, shards)
      path.write_bytes(b"".join(map(tfrecord.frame, records[start:end])))
    infos[split] = {
      "shard_lengths": np.diff(bounds).tolist(),
      "record_bytes": sum(map(len, records)),
    }
  manifest.write_metadata(folder, NAME, infos)
  if checksums:
    manifest.write_checksums(folder, {})
  return folder.parent


def flip(path, offset):
  """Flips a bit of a file."""
  data = bytearray(path.read_bytes())
  data[offset] ^= 1
  path.chmod(0o644)
  path.write_bytes(data)
