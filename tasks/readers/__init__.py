"""Readers of comment trees: one file per source format, and how files are found.

A reader turns one file into `CommentTree`s, streamed, counting what became of
everything in `Fates`. No TensorFlow here, nor anything of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from ..config import TreeConfig
from ..trees import CommentTree, Fates
from . import files, tree_jsonl


@dataclasses.dataclass(frozen=True)
class Reader:
  """A source format.

  Attributes:
    suffixes: endings of its files' names, without that of a compression.
    read: yields the trees of a file.
  """

  suffixes: tuple[str, ...]
  read: Callable[[str, TreeConfig, Fates], Iterator[CommentTree]]


TREE_JSONL = Reader(tree_jsonl.SUFFIXES, tree_jsonl.read)

# The first whose suffix a file has reads it; a file that has none is taken for tree
# JSONL.
READERS = (TREE_JSONL,)


def expand(patterns: str | Sequence[str]) -> list[str]:
  """Lists the files that patterns (files, globs, folders) stand for, in order.

  Raises:
    UserError: if a pattern matches nothing that can be read.
  """
  return files.expand(patterns, [s for reader in READERS for s in reader.suffixes])


def iter_trees(
  patterns: str | Sequence[str], config: TreeConfig, fates: Fates
) -> Iterator[CommentTree]:
  """Yields the trees in files, one at a time, in an order that never changes.

  Args:
    patterns: a file, a glob, a folder, or several of those; `.gz` and `.zst` too.
    config: what to do with what is odd.
    fates: counts what became of every file, tree and comment.

  Raises:
    UserError: before anything is read, if a pattern matches nothing.
  """
  for path in expand(patterns):
    yield from reader_of(path).read(path, config, fates)


def reader_of(path: str) -> Reader:
  """The reader for a file, by its name."""
  name = path.lower()
  for compression in files.COMPRESSIONS:
    name = name.removesuffix(compression)
  for reader in READERS:
    if name.endswith(reader.suffixes):
      return reader
  return TREE_JSONL
