"""A small built dataset, its metadata written by TFDS itself."""

import itertools
import json

import numpy as np
import tensorflow_datasets as tfds

from commentree.tasks import generated
from commentree.tasks.building import tfrecord, tree_record
from commentree.tasks.columns import COLUMNS
from commentree.tasks.generated_config import GeneratedTreesConfig

NAME = "small_forum"
CONFIG = GeneratedTreesConfig(num_train_trees=60, num_validation_trees=20)


def trees(first=0, count=60):
  return [
    generated.generate_tree(CONFIG, CONFIG.seed, index)
    for index in range(first, first + count)
  ]


def features():
  kinds = {"str": tfds.features.Text(), "int32": np.int32, "int64": np.int64}
  return tfds.features.FeaturesDict(
    {
      name: tfds.features.Sequence(kinds[kind]) if rank else kinds[kind]
      for name, (kind, rank) in COLUMNS.items()
    }
  )


def write(parent, splits, shards=3, checksums=True):
  """Writes `parent`/NAME/1.0.0 of trees by split; returns the folder of NAME."""
  folder = parent / NAME / "1.0.0"
  folder.mkdir(parents=True)
  infos, noted = [], {}
  for split, wanted in splits.items():
    bounds = np.linspace(0, len(wanted), shards + 1).astype(int)
    for shard, (start, end) in enumerate(itertools.pairwise(bounds)):
      records = [tree_record.encode(tree) for tree in wanted[start:end]]
      path = folder / f"{NAME}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"
      path.write_bytes(b"".join(map(tfrecord.frame, records)))
      noted[path.name] = {"bytes": path.stat().st_size}
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=np.diff(bounds).tolist(),
        num_bytes=sum(len(tree_record.encode(tree)) for tree in wanted),
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features(),
    split_infos=infos,
    filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  )
  if checksums:
    (folder / "CHECKSUMS.json").write_text(json.dumps({"files": noted}))
  return folder.parent


def flip(path, offset):
  """Flips a bit of a file."""
  data = bytearray(path.read_bytes())
  data[offset] ^= 1
  path.chmod(0o644)
  path.write_bytes(data)
