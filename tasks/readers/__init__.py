"""Readers of comment trees: one file per source format, and how files are found.

A format's reader turns a file into `Row`s, streamed, counting what became of everything
else in `ReadCounts`; a new format is one file and one entry in `FORMATS`. No TensorFlow
here, nor anything of the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from commentree.errors import UserError, suggestion
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import (
  cmv_modes,
  convokit,
  hacker_news,
  mail,
  oasst,
  pushshift,
  reddit_api,
  table,
  tree_jsonl,
)
from commentree.tasks.readers.parsing import files, json_records
from commentree.tasks.readers.rows import Format, memory_bytes
from commentree.tasks.trees import assembly
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts
from commentree.tasks.trees.row import Row

# The first that a file looks like reads it; the last if it looks like none.
FORMATS = (
  reddit_api.FORMAT,
  cmv_modes.FORMAT,
  convokit.FORMAT,
  oasst.FORMAT,
  pushshift.FORMAT,
  hacker_news.FORMAT,
  mail.FORMAT,
  table.FORMAT,
  tree_jsonl.FORMAT,
)

_log = logging.getLogger(__name__)

# How far a file is looked at to tell its format; farther if that does not tell it, or
# if its first record continues.
_HEAD_BYTES = (2**16, 2**20)
# Files of comments apart from their posts are grouped in memory up to this size.
_MAX_GROUPED_BYTES = 256 * 2**20
# ...and as long as their rows take no more memory than this.
_MAX_ROWS_BYTES = 2 * 2**30


def expand(patterns: str | Sequence[str]) -> list[str]:
  """Lists the files that patterns (files, globs, folders) stand for, in order.

  Raises:
    UserError: if a pattern matches nothing that can be read.
  """
  suffixes = dict.fromkeys(s for format_ in FORMATS for s in format_.suffixes)
  return files.expand(
    patterns,
    list(suffixes),
    lambda path: any(format_.aside(path) for format_ in FORMATS),
    lambda path: any(format_.takes(path) for format_ in FORMATS),
  )


def inputs(patterns: str | Sequence[str], name: str | None = None) -> list[str]:
  """All files that are read for patterns: those, and what lies beside them.

  Args:
    patterns: a file, a glob, a folder, or several of those.
    name: the format of all files; None to tell it from each.

  Raises:
    UserError: if a pattern matches nothing, or there is no format of that name.
  """
  paths = expand(patterns)
  more = {other for path in paths for other in format_of(path, name).beside(path)}
  return sorted(more.union(paths))


def check_name(name: str) -> Format:
  """Returns the format of a name.

  Raises:
    UserError: if it is missing.
  """
  for format_ in FORMATS:
    if format_.name == name:
      return format_
  known = ", ".join(format_.name for format_ in FORMATS)
  hint = suggestion(name, known.split(", "))
  raise UserError(f"format {name!r}: is not known; there are {known}{hint}")


def format_of(path: str, name: str | None = None) -> Format:
  """The format of a file, by its name and what it begins with.

  Args:
    path: the file.
    name: the format's, if it is known.

  Raises:
    UserError: if there is no format of that name.
  """
  if name is not None:
    return check_name(name)
  for size in _HEAD_BYTES:
    head = files.head(path, size)
    farther = len(head) == size != _HEAD_BYTES[-1]
    if farther and not json_records.has_whole_record(head):
      continue
    for format_ in FORMATS:
      if format_.matches(path, head):
        return format_
    if not farther:
      break
  return FORMATS[-1]


def formats_of(
  patterns: str | Sequence[str], config: TreeConfig, name: str | None = None
) -> dict[str, Format]:
  """The files that patterns stand for, in order, each with the format that reads it.

  All that one job reads should be asked for at once: comments of one file may be known
  by what another holds.

  Args:
    patterns: a file, a glob, a folder, or several of those.
    config: what to do with what is odd.
    name: the format of all files; None to tell it from each.

  Raises:
    UserError: if a pattern matches nothing, there is no format of that name, or a file
      cannot be read as its format.
  """
  formats = {path: format_of(path, name) for path in expand(patterns)}
  for remark in remarks(formats, config):
    _log.info("%s", remark)
  for format_ in FORMATS:
    paths = [path for path, own in formats.items() if own is format_]
    if paths and format_.prepare is not None and format_.prepared is not None:
      prepared = format_.prepared(format_.prepare(paths, config))
      formats.update(dict.fromkeys(paths, prepared))
  return formats


def remarks(formats: Mapping[str, Format], config: TreeConfig) -> list[str]:
  """Says how files are read, where that is guessed.

  Args:
    formats: of all files of a job, by their paths.
    config: what to do with what is odd.

  Raises:
    UserError: if a file cannot be read as its format.
  """
  lines: list[str] = []
  for format_ in FORMATS:
    paths = [path for path, own in formats.items() if own.name == format_.name]
    if paths:
      lines += format_.check(paths, config)
  return lines


def iter_trees(
  patterns: str | Sequence[str],
  config: TreeConfig,
  read_counts: ReadCounts,
  format_name: str | None = None,
) -> Iterator[CommentTree]:
  """Yields the trees in files, one at a time, in an order that never changes.

  Args:
    patterns: a file, a glob, a folder, or several of those, compressed or not.
    config: what to do with what is odd.
    read_counts: counts what became of every file, tree and comment.
    format_name: of all the files; None to tell it from each.

  Raises:
    UserError: if a pattern matches nothing, or the files hold comments apart from their
      posts and are too large to be grouped in memory; before anything is read, where
      their size tells that.
  """
  formats = formats_of(patterns, config, format_name)
  scattered = [path for path, format_ in formats.items() if not format_.contiguous]
  size = sum(map(os.path.getsize, scattered))
  if size > _MAX_GROUPED_BYTES:
    raise _too_large_error(scattered[0], size)
  for path, format_ in formats.items():
    if format_.contiguous:
      yield from trees_of_file(path, format_, config, read_counts)
  together: dict[str, list[Row]] = {}
  held = 0
  for path in scattered:
    for row in formats[path].read(path, config, read_counts):
      together.setdefault(row.tree_id, []).append(row)
      held += memory_bytes(row)
      if held > _MAX_ROWS_BYTES:
        raise _too_large_error(path, held)
  for rows in together.values():
    tree = assembly.assemble(rows, read_counts, config)
    if tree is not None:
      yield tree


def _too_large_error(path: str, size: int) -> UserError:
  return UserError(
    f"{path}: holds comments apart from their posts, in {size / 2**20:,.0f} MB and more"
    " that are too much to be grouped in memory; make trees of them first with"
    " `commentree build`"
  )


def trees_of_file(
  path: str, format_: Format, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[CommentTree]:
  """Yields the trees of one file of a contiguous format, in order.

  Args:
    path: the file.
    format_: its format, from `formats_of`.
    config: what to do with what is odd.
    read_counts: counts what became of all that is read.
  """
  for rows in _split_at_posts(format_.read(path, config, read_counts)):
    tree = assembly.assemble(rows, read_counts, config)
    if tree is not None:
      yield tree


def _split_at_posts(rows: Iterable[Row]) -> Iterator[list[Row]]:
  """Cuts a contiguous format's rows into those of one tree each."""
  of_tree: list[Row] = []
  for row in rows:
    if row.is_post and of_tree:
      yield of_tree
      of_tree = []
    of_tree.append(row)
  if of_tree:
    yield of_tree
