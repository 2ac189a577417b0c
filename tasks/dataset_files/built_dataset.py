"""A dataset of comment trees as `commentree build` writes it, read without TensorFlow.

It is a folder as TFDS has them: shards of records, `dataset_info.json`, and beside
those `CHECKSUMS.json`. What can be told without reading records (a shard that is
missing, or has another size) is reported on opening, the rest at the damaged record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from commentree.errors import StorageError, UserError
from commentree.paths import SCHEMES, SOURCE_SCHEMES, open_path
from commentree.tasks.dataset_files import manifest, tfrecord, tree_record
from commentree.tasks.trees.columns import COLUMNS
from commentree.tasks.trees.comment_tree import CommentTree

_INFO, _FEATURES = "dataset_info.json", "features.json"
_CHECKSUMS = manifest.CHECKSUMS
_MEND = "build the dataset again with `commentree build`, or copy it again"
# What reading JSON of another shape raises; `int` of an infinite number overflows.
_MISSHAPEN = (AttributeError, ArithmeticError, LookupError, TypeError, ValueError)
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass(frozen=True)
class Split:
  """A split's shards, in order.

  Attributes:
    files: their paths.
    lengths: records in each.
    num_bytes: of all records.
  """

  files: tuple[epath.Path, ...]
  lengths: tuple[int, ...]
  num_bytes: int


def find(files: str | Sequence[str]) -> epath.Path | None:
  """The folder of the built dataset that FILES names, or None if it names none.

  That is a folder with a `dataset_info.json`, or the newest version in such folders'
  parent, as TFDS has them.

  Raises:
    UserError: if a built dataset stands among other files.
  """
  paths = [files] if isinstance(files, (str, os.PathLike)) else list(files)
  found = [folder for path in paths if (folder := version_folder(path)) is not None]
  if found and len(paths) > 1:
    raise UserError(
      f"FILES: {found[0]} is a built dataset and stands alone; to join several sources,"
      " give them all to `commentree build`"
    )
  return found[0] if found else None


def version_folder(path: str | os.PathLike[str]) -> epath.Path | None:
  """The folder of a built dataset's newest version, or None if it is no such folder."""
  scheme, is_url, _ = os.fspath(path).partition("://")
  if is_url and scheme in SOURCE_SCHEMES and scheme not in SCHEMES:
    return None  # where sources may lie, and no datasets
  folder = open_path(path).expanduser()
  if "*" in os.fspath(path) or not folder.is_dir():
    return None
  if (folder / _INFO).exists():
    return folder
  versions = {
    tuple(map(int, entry.name.split("."))): entry
    for entry in folder.iterdir()
    if re.fullmatch(r"\d+\.\d+\.\d+", entry.name) and (entry / _INFO).exists()
  }
  return versions[max(versions)] if versions else None


class BuiltDataset:
  """The splits of a built dataset.

  Attributes:
    folder: that of the version.
    name: the dataset's.
    splits: by name; those without records are left out.
    identity: differs for other contents; the same wherever the folder lies.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Reads what the folder says of itself, and looks whether all of it is there.

    Raises:
      UserError: naming the file that is missing, damaged or of another size.
    """
    self.folder = epath.Path(folder)
    info = self._json(_INFO)
    try:
      self.name = str(info["name"])
      self.splits = {
        str(split["name"]): self._split(info, split)
        for split in info.get("splits", ())
        if any(map(int, split["shardLengths"]))
      }
    except _MISSHAPEN as error:
      raise UserError(
        f"{self.folder / _INFO}: is not as TFDS writes it ({error!r}); {_MEND}"
      ) from error
    if info.get("fileFormat", "tfrecord") != "tfrecord":
      raise UserError(
        f"{self.folder}: holds {info['fileFormat']!r} files; only tfrecord is read"
      )
    self._check_features()
    self.identity = self._check_files()

  def _json(self, name: str) -> Any:
    path = self.folder / name
    try:
      return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
      raise UserError(f"{path}: cannot be read ({error}); {_MEND}") from error

  def _split(self, info: Mapping[str, Any], split: Mapping[str, Any]) -> Split:
    lengths = tuple(map(int, split["shardLengths"]))
    template = split.get("filepathTemplate") or _TEMPLATE

    def file(shard: int) -> epath.Path:
      values = {
        "DATASET": info["name"],
        "SPLIT": split["name"],
        "FILEFORMAT": "tfrecord",
        "SHARD_INDEX": f"{shard:05d}",
        "NUM_SHARDS": f"{len(lengths):05d}",
        "SHARD_X_OF_Y": f"{shard:05d}-of-{len(lengths):05d}",
      }
      name = template.format(**values)
      is_name = name == os.path.basename(name) and name.isprintable()
      if not is_name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of a file in this folder")
      return self.folder / name

    files = tuple(map(file, range(len(lengths))))
    return Split(files, lengths, int(split.get("numBytes", 0)))

  def _check_features(self) -> None:
    """Raises UserError unless records have the columns of ours."""
    features = self._json(_FEATURES)
    try:
      names = frozenset(features.get("featuresDict", {}).get("features", {}))
    except (AttributeError, TypeError) as error:
      raise UserError(
        f"{self.folder / _FEATURES}: is not as TFDS writes it ({error!r}); {_MEND}"
      ) from error
    for name in COLUMNS:
      if name not in names:
        raise UserError(
          f"{self.folder / _FEATURES}: names no feature {name!r}: this is no dataset"
          " made by `commentree build`"
        )

  def _check_files(self) -> str:
    """Compares files with what is noted of them; returns the dataset's identity."""
    files = [file for split in self.splits.values() for file in split.files]
    sizes = {}
    for file in files:
      try:
        sizes[file.name] = file.stat().length
      except OSError as error:
        raise UserError(f"{file}: is missing, or cannot be read; {_MEND}") from error
    if not (self.folder / _CHECKSUMS).exists():
      # Written by others: their records are checked as they are read.
      return hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()
    noted = self._noted_sizes()
    for file in files:
      if noted.get(file.name) != sizes[file.name]:
        raise UserError(
          f"{file}: has {sizes[file.name]:,} bytes where {_CHECKSUMS} says"
          f" {noted.get(file.name, 0):,}; {_MEND}"
        )
    return hashlib.sha256((self.folder / _CHECKSUMS).read_bytes()).hexdigest()

  def _noted_sizes(self) -> dict[str, int]:
    try:
      return {
        name: int(noted["bytes"])
        for name, noted in self._json(_CHECKSUMS)["files"].items()
      }
    except _MISSHAPEN as error:
      raise UserError(
        f"{self.folder / _CHECKSUMS}: is damaged ({error!r}); {_MEND}"
      ) from error

  def split(self, name: str) -> Split:
    """A split.

    Raises:
      UserError: if no split of that name has records.
    """
    if name not in self.splits:
      raise UserError(
        f"{self.folder}: has no split {name!r} with trees in it; there are"
        f" {', '.join(self.splits) or 'none'}"
      )
    return self.splits[name]

  def shard_trees(self, name: str, shard: int) -> Iterator[tuple[int, CommentTree]]:
    """Yields a shard's trees, each with its place in the split.

    Raises:
      UserError: naming file and record, if a record is damaged or missing.
      StorageError: if the disk refuses.
    """
    split = self.split(name)
    file, length = split.files[shard], split.lengths[shard]
    first = sum(split.lengths[:shard])
    count = 0
    try:
      with file.open("rb") as stream:
        for record in tfrecord.read(stream):  # type: ignore[arg-type]
          try:
            tree = tree_record.decode(record)
          except tfrecord.DamagedError as error:
            raise tfrecord.DamagedError(f"record {count:,} {error}") from error
          yield first + count, tree
          count += 1
    except tfrecord.DamagedError as error:
      raise UserError(f"{file}: {error}; {_MEND}") from error
    except OSError as error:
      raise StorageError(f"{file}: cannot be read ({error}); {_MEND}") from error
    if count != length:
      raise UserError(f"{file}: holds {count:,} records, not {length:,}; {_MEND}")

  def trees(self, name: str) -> Iterator[CommentTree]:
    """Yields a split's trees, in order; raises as `shard_trees` does."""
    for shard in range(len(self.split(name).files)):
      for _, tree in self.shard_trees(name, shard):
        yield tree
