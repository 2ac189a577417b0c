"""What makes a folder of records a dataset: metadata, statistics, checksums.

    1.0.0/  NAME-SPLIT.tfrecord-SSSSS-of-NNNNN   features.json   dataset_info.json
            STATS.json   CHECKSUMS.json

TFDS reads the first line; `CHECKSUMS.json` lists every other file with its bytes and
SHA-256, and for records their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from commentree.errors import UserError
from commentree.tasks.dataset_files import folder_commit
from commentree.tasks.trees.columns import COLUMNS

VERSION = "1.0.0"
CHECKSUMS = "CHECKSUMS.json"
STATS = "STATS.json"

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_READ_BYTES = 2**20


def check_name(folder: pathlib.Path) -> str:
  """Returns the name of the dataset in a folder: the folder's.

  Raises:
    UserError: if TFDS would not take it.
  """
  name = folder.name
  if not _NAME.fullmatch(name):
    better = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    if not better[:1].isalpha():
      better = f"trees_{better}".rstrip("_")
    raise UserError(
      f"--out={folder}: a dataset's name is its folder's, of lower-case letters,"
      f" digits and underscores, a letter first; try {folder.with_name(better)}"
    )
  return name


def shard_name(name: str, split: str, shard: int, num_shards: int) -> str:
  """The name of a file of records, as TFDS has it."""
  return f"{name}-{split}.tfrecord-{shard:05}-of-{num_shards:05}"


def join_files(sources: Sequence[pathlib.Path], target: pathlib.Path) -> dict[str, Any]:
  """Puts files end to end; returns the 'bytes' and 'sha256' of what comes out."""
  digest, size = hashlib.sha256(), 0
  with folder_commit.storage_errors(target.parent), open(target, "wb") as out:
    for source in sources:
      with open(source, "rb") as file:
        while block := file.read(_READ_BYTES):
          out.write(block)
          digest.update(block)
          size += len(block)
  return {"bytes": size, "sha256": digest.hexdigest()}


def link_file(source: pathlib.Path, target: pathlib.Path) -> None:
  """Makes a file appear under another name, too, without copying it if possible."""
  with folder_commit.storage_errors(target.parent):
    try:
      os.link(source, target)
    except OSError:  # a file system without links
      shutil.copyfile(source, target)


def write_metadata(
  folder: pathlib.Path, name: str, splits: Mapping[str, Mapping[str, Any]]
) -> None:
  """Writes what TFDS reads a dataset by.

  Args:
    folder: holds the records.
    name: of the dataset.
    splits: by split: 'shard_lengths' and 'record_bytes'.
  """
  # Here, because it takes half a second; TensorFlow it leaves alone.
  import numpy as np
  import tensorflow_datasets as tfds

  kinds = {"str": tfds.features.Text(), "int32": np.int32, "int64": np.int64}
  features = {
    column: tfds.features.Sequence(kinds[kind]) if rank else kinds[kind]
    for column, (kind, rank) in COLUMNS.items()
  }
  with folder_commit.storage_errors(folder):
    tfds.folder_dataset.write_metadata(
      data_dir=folder,
      features=tfds.features.FeaturesDict(features),
      split_infos=[
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=list(facts["shard_lengths"]),
          num_bytes=facts["record_bytes"],
          filename_template=tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=folder, split=split, filetype_suffix="tfrecord"
          ),
        )
        for split, facts in splits.items()
      ],
      version=VERSION,
      check_data=False,
    )


def write_checksums(
  folder: pathlib.Path, known: Mapping[str, Mapping[str, Any]]
) -> None:
  """Writes `CHECKSUMS.json` for a folder whose other files are all there.

  Args:
    folder: the files'.
    known: by file name, 'bytes' and 'sha256' of files that were hashed already, and
      'records' of those that hold any.
  """
  files = {}
  for path in sorted(folder.iterdir()):
    if path.name != CHECKSUMS:
      files[path.name] = dict(known.get(path.name) or _hash(path))
  folder_commit.write_json(folder / CHECKSUMS, {"algorithm": "sha256", "files": files})


def _hash(path: pathlib.Path) -> dict[str, Any]:
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256")
  return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def find_version(folder: pathlib.Path) -> pathlib.Path:
  """The folder of a dataset's files, given that or the one above it.

  Raises:
    UserError: if there is no whole dataset.
  """
  for candidate in (folder, folder / VERSION):
    if (candidate / CHECKSUMS).exists():
      return candidate
  raise UserError(
    f"{folder}: is no dataset made by `commentree build` (no {CHECKSUMS} in it, nor in"
    f" {VERSION}/); a build that was not finished continues when started again"
  )


def check(folder: pathlib.Path) -> dict[str, int]:
  """Compares every file of a dataset with its checksum.

  Args:
    folder: the dataset's, or its version's.

  Returns:
    The numbers of 'files', 'bytes' and 'records'.

  Raises:
    UserError: names every file that is missing, damaged or too much.
  """
  version = find_version(folder)
  try:
    wanted = json.loads((version / CHECKSUMS).read_text("utf-8"))["files"]
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f"{version / CHECKSUMS}: is damaged ({error})") from error
  wrong = []
  for name, facts in wanted.items():
    path = version / name
    if not path.exists():
      wrong.append(f"{name} is missing")
    elif path.stat().st_size != facts["bytes"]:
      wrong.append(f"{name} has {path.stat().st_size:,} bytes, not {facts['bytes']:,}")
    elif _hash(path)["sha256"] != facts["sha256"]:
      wrong.append(f"{name} is damaged: its SHA-256 does not match")
  there = {path.name for path in version.iterdir()} - {CHECKSUMS}
  wrong += [f"{name} does not belong here" for name in sorted(there - wanted.keys())]
  if wrong:
    raise UserError(f"{version}: {'; '.join(wrong)}; copy or build it again")
  return {
    "files": len(wanted),
    "bytes": sum(facts["bytes"] for facts in wanted.values()),
    "records": sum(facts.get("records", 0) for facts in wanted.values()),
  }
