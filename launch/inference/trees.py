"""The trees to answer for, in units that can be read from any place in them.

A unit's *position* is a number that only its own kind understands; 0 is its beginning.
The trees behind a position are the same whenever they are read.
"""

from __future__ import annotations

import abc
import dataclasses
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

from etils import epath

from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.dataset_files import built_dataset, tfrecord, tree_record
from commentree.tasks.dataset_files.built_dataset import BuiltDataset
from commentree.tasks.readers import tree_jsonl
from commentree.tasks.readers.parsing import files, json_records, text_encodings, unread
from commentree.tasks.readers.rows import Format, bounded
from commentree.tasks.trees import assembly, comment_tree
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

STDIN = "-"

_BLOCK_BYTES = 2**18


class Unit(abc.ABC):
  """A part of the input that is read by itself.

  Attributes:
    name: what to call it.
  """

  name: str

  @property
  @abc.abstractmethod
  def size(self) -> int:
    """Its bytes, as they lie on disk."""

  @abc.abstractmethod
  def read(
    self, position: int, read_counts: ReadCounts
  ) -> Iterator[tuple[CommentTree, int]]:
    """Yields the trees behind a position, each with the position behind it.

    Args:
      position: where to begin.
      read_counts: counts what became of what is read.
    """

  @abc.abstractmethod
  def share(self, position: int) -> float | None:
    """Returns the share of the unit before a position; None if that is not known."""


@dataclasses.dataclass(frozen=True)
class Lines(Unit):
  """A file of tree JSONL that is not compressed; positions are bytes."""

  name: str
  config: TreeConfig

  @property
  def size(self) -> int:
    """Its bytes, as they lie on disk."""
    return os.path.getsize(self.name)

  def read(
    self, position: int, read_counts: ReadCounts
  ) -> Iterator[tuple[CommentTree, int]]:
    """Yields the trees, one a line; as `Unit.read`."""
    limit = self.config.max_line_bytes
    found = position > 0
    with open(self.name, "rb") as file:
      file.seek(position)
      while line := file.readline(limit + 1):
        start = file.tell() - len(line)
        content = line.removesuffix(b"\n")
        if len(content) > limit or files.is_heavy(content):
          read_counts.trees[files.LINE_TOO_LONG] += 1
          while line and not line.endswith(b"\n"):
            line = file.readline(_BLOCK_BYTES)
          continue
        for tree, end in trees_of_line(content, self.config, read_counts):
          found = True
          yield tree, file.tell() if end == len(content) else start + end
    read_counts.files[files.READ if found else files.NOTHING_FOUND] += 1
    if not found:
      unread.warn(self.name, tree_jsonl.FORMAT.name)

  def share(self, position: int) -> float | None:
    """Returns the share of its bytes."""
    return position / max(1, self.size)


def trees_of_line(
  line: bytes, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[tuple[CommentTree, int]]:
  """Yields the tree on a line of tree JSONL, or several; and where each ends there."""
  for found, end in tree_jsonl.line_trees(line, read_counts):
    rows = list(bounded(found, config, read_counts))
    tree = assembly.assemble(rows, read_counts, config) if rows else None
    if tree is not None:
      yield tree, end


@dataclasses.dataclass(frozen=True)
class File(Unit):
  """A file of any other kind whose trees stand together; positions are trees."""

  name: str
  format: Format
  config: TreeConfig

  @property
  def size(self) -> int:
    """Its bytes, as they lie on disk."""
    return os.path.getsize(self.name)

  def read(
    self, position: int, read_counts: ReadCounts
  ) -> Iterator[tuple[CommentTree, int]]:
    """Yields the trees; as `Unit.read`."""
    found = readers.trees_of_file(self.name, self.format, self.config, read_counts)
    return _numbered(found, position)

  def share(self, position: int) -> float | None:
    """Returns None, but for the beginning."""
    return None if position else 0.0


@dataclasses.dataclass(frozen=True)
class Scattered(Unit):
  """Files whose comments lie apart from their posts; positions are trees."""

  name: str
  paths: tuple[str, ...]
  format_name: str | None
  config: TreeConfig

  @property
  def size(self) -> int:
    """Its bytes, as they lie on disk."""
    return sum(map(os.path.getsize, self.paths))

  def read(
    self, position: int, read_counts: ReadCounts
  ) -> Iterator[tuple[CommentTree, int]]:
    """Yields the trees; as `Unit.read`."""
    found = readers.iter_trees(self.paths, self.config, read_counts, self.format_name)
    return _numbered(found, position)

  def share(self, position: int) -> float | None:
    """Returns None, but for the beginning."""
    return None if position else 0.0


def _numbered(
  found: Iterator[CommentTree], position: int
) -> Iterator[tuple[CommentTree, int]]:
  numbered = ((tree, number) for number, tree in enumerate(found, 1))
  return itertools.islice(numbered, position, None)


@dataclasses.dataclass(frozen=True)
class Shard(Unit):
  """A file of a built dataset; positions are bytes."""

  name: str
  file: epath.Path

  @property
  def size(self) -> int:
    """Its bytes, as they lie on disk."""
    return int(self.file.stat().length)

  def read(
    self, position: int, read_counts: ReadCounts
  ) -> Iterator[tuple[CommentTree, int]]:
    """Yields the trees; as `Unit.read`.

    Raises:
      UserError: naming the record that is damaged.
    """
    try:
      with self.file.open("rb") as stream:
        stream.seek(position)
        for record in tfrecord.read(stream):  # type: ignore[arg-type]
          tree = tree_record.decode(record)
          read_counts.comments[comment_tree.KEPT] += len(tree.comments) - 1
          read_counts.trees[comment_tree.KEPT] += 1
          yield tree, stream.tell()
    except tfrecord.DamagedError as error:
      raise UserError(
        f"{self.file}: {error}, from byte {position:,} on; build the dataset again"
      ) from error

  def share(self, position: int) -> float | None:
    """Returns the share of its bytes."""
    return position / max(1, self.size)


@dataclasses.dataclass(frozen=True)
class Stdin(Unit):
  """Tree JSONL from standard input, which can be read once; positions are trees."""

  config: TreeConfig
  name: str = STDIN

  @property
  def size(self) -> int:
    """Its bytes, as they lie on disk."""
    return 0

  def read(
    self, position: int, read_counts: ReadCounts
  ) -> Iterator[tuple[CommentTree, int]]:
    """Yields the trees; as `Unit.read`."""
    stdin = cast(io.BufferedReader, sys.stdin.buffer)
    blocks = iter(lambda: stdin.read1(_BLOCK_BYTES), b"")
    records = json_records.of_blocks(
      text_encodings.to_utf8(blocks), self.config, read_counts
    )
    found = (
      tree
      for record, _ in records
      for tree, _ in trees_of_line(record, self.config, read_counts)
    )
    return _numbered(found, position)

  def share(self, position: int) -> float | None:
    """Returns None, but for the beginning."""
    return None if position else 0.0


@dataclasses.dataclass(frozen=True)
class Input:
  """All that is to be read.

  Attributes:
    units: in order.
    signature: JSON-able; differs where the trees may differ. None if that cannot be
      told, of standard input.
  """

  units: tuple[Unit, ...]
  signature: Any

  def trees(self) -> Iterator[CommentTree]:
    """Yields all trees, in order."""
    for unit in self.units:
      for tree, _ in unit.read(0, ReadCounts()):
        yield tree


def find(
  patterns: Sequence[str],
  config: TreeConfig,
  format_name: str | None = None,
  split: str | None = None,
) -> Input:
  """Finds what patterns stand for; reads nothing but how files begin.

  Args:
    patterns: files, globs, folders; the folder of a built dataset; or `-` alone.
    config: what to do with what is odd.
    format_name: of all files; None to tell it from each.
    split: of a built dataset; None for all, in the order it has them.

  Raises:
    UserError: if there is nothing to be read.
  """
  if STDIN in patterns:
    if len(patterns) > 1:
      raise UserError("--input=-: standard input stands alone; leave out the files")
    return Input((Stdin(config),), None)
  built = built_dataset.find(patterns)
  if built is not None:
    return _shards(BuiltDataset(built), split)
  if split is not None:
    raise UserError(f"--split={split}: only datasets of `commentree build` have splits")
  formats = readers.formats_of(patterns, config, format_name)
  units: list[Unit] = []
  for path, format_ in formats.items():
    if format_ is tree_jsonl.FORMAT and _is_plain(path):
      units.append(Lines(path, config))
    elif format_.contiguous:
      units.append(File(path, format_, config))
  scattered = tuple(path for path, format_ in formats.items() if not format_.contiguous)
  if scattered:
    units.append(Scattered(scattered[0], scattered, format_name, config))
  return Input(tuple(units), _signature(readers.inputs(patterns, format_name)))


def check_there_is(word: str, flag: str, found: Input) -> None:
  """Makes sure that some comment has a word; reads until one does.

  Raises:
    UserError: if none does.
  """
  for tree in found.trees():
    if any(word in comment.text for comment in tree.comments):
      return
  raise UserError(
    f"no comment of --input holds {word!r}: put it into the texts, or name another word"
    f" by {flag}"
  )


def _is_plain(path: str) -> bool:
  """Whether a file surely is not compressed, and holds a tree a line."""
  head = files.head(path, json_records.LONGEST_HEAD_BYTES)
  with open(path, "rb") as file:
    start = file.read(len(head))
  return head[:1] == b"{" and start == head and json_records.is_lines(head)


def _signature(paths: Sequence[str]) -> list[Any]:
  """Name, bytes and time of change of each file; not where it lies."""
  found = [(os.path.basename(path), os.stat(path)) for path in paths]
  return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def _shards(dataset: BuiltDataset, split: str | None) -> Input:
  names = list(dataset.splits) if split is None else [split]
  units = [
    Shard(file.name, file) for name in names for file in dataset.split(name).files
  ]
  return Input(tuple(units), {"built": dataset.identity, "splits": names})
