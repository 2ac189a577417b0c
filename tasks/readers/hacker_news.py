"""Hacker News: one item a line, as its API and exports of it have them.

    {"id", "type", "by", "time", "text", "parent", "kids", "title", "url", "score",
     "dead", "deleted"}

A comment knows its parent only, so all files are read once before to find every one's
story: `prepare`. If an item on the way up is not there, what hangs below it is a tree
whose post is missing. Texts are HTML and become plain. Lines add up as those of
`pushshift` do.
"""

from __future__ import annotations

import array
import bisect
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import json_lines, json_records
from commentree.tasks.readers.roots import NO_ROOT, topmost
from commentree.tasks.readers.rows import (
  COMMENT_PREFIX,
  POST_PREFIX,
  Format,
  seconds,
  text,
  votes,
)
from commentree.tasks.trees import character_references, comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

DROPPED_POLL_OPTION = "dropped: an option of a poll"

_MAX_ID = 2**32 - 1
_POST_TYPES = ("story", "job", "poll")
_DELETED, _DEAD = "[deleted]", "[removed]"


class _Item(msgspec.Struct, gc=False):
  """What is read of a line."""

  id: Any = None
  type: Any = None
  by: Any = None
  time: Any = None
  text: Any = None
  parent: Any = None
  title: Any = None
  score: Any = None
  dead: Any = None
  deleted: Any = None


class _Link(msgspec.Struct, gc=False):
  """What is read of a line to find out who hangs below whom."""

  id: Any = None
  parent: Any = None


def _matches(name: str, head: bytes) -> bool:
  del name
  return any(
    {"id", "type"} <= keys
    and not keys.isdisjoint(("by", "kids", "parent", "descendants", "deleted"))
    and keys.isdisjoint(("comments", "link_id", "kind"))
    for keys in json_records.first_keys(head)
  )


class Roots:
  """Which item every other one hangs below, in 8 bytes of memory an item.

  While it is made, it takes about 40.
  """

  def __init__(self, ids: Sequence[int], parents: Sequence[int]):
    """Works out the roots.

    Args:
      ids: of items, from 1 to 2**32 - 1; of equal ones the first counts.
      parents: theirs; 0 for none, or one that is not among `ids`.
    """
    import numpy as np  # here, because settings are checked without it

    own, tops = topmost(np.asarray(ids, np.uint32), np.asarray(parents, np.uint32))
    self._ids = array.array("I", own.tobytes())
    self._roots = array.array("I", tops.tobytes())

  @classmethod
  def from_bytes(cls, data: bytes) -> Roots:
    """The inverse of `bytes(roots)`.

    Raises:
      ValueError: if no roots are written so.
    """
    if len(data) % 8:
      raise ValueError(f"{len(data)} bytes are no table of items")
    roots = cls.__new__(cls)
    roots._ids, roots._roots = array.array("I"), array.array("I")
    roots._ids.frombytes(data[: len(data) // 2])
    roots._roots.frombytes(data[len(data) // 2 :])
    return roots

  def __bytes__(self) -> bytes:
    """The ids in order and then their roots, 4 bytes each."""
    return self._ids.tobytes() + self._roots.tobytes()

  def of(self, ident: int) -> int | None:
    """The root of an item; `NO_ROOT` in or below a cycle, None for no such item."""
    place = bisect.bisect_left(self._ids, ident)
    if place == len(self._ids) or self._ids[place] != ident:
      return None
    return self._roots[place]


def find_roots(paths: Sequence[str], config: TreeConfig) -> Roots:
  """Finds the roots of all items in files."""
  ids, parents = array.array("I"), array.array("I")
  ignored = ReadCounts()  # whoever reads the rows counts
  for path in paths:
    for link in json_lines.objects(path, _Link, config, ignored):
      ident = _item_id(link.id)
      if ident:
        ids.append(ident)
        parents.append(_item_id(link.parent) or 0)
  return Roots(ids, parents)


def prepare(paths: Sequence[str], config: TreeConfig) -> bytes:
  """Finds the roots of all items in files; returns them for `prepared`."""
  return bytes(find_roots(paths, config))


def prepared(roots: bytes) -> Format:
  """Returns the format that reads files whose roots `prepare` found.

  Raises:
    ValueError: if `prepare` never returns such bytes.
  """
  return _format(Roots.from_bytes(roots))


def _rows(
  roots: Roots, path: str, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  for item in json_lines.objects(path, _Item, config, read_counts):
    row = _row(item, roots, read_counts)
    if row is not None:
      yield row


def _unprepared(
  path: str, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  """Of a file that holds whole trees."""
  return _rows(find_roots([path], config), path, config, read_counts)


def _format(roots: Roots | None) -> Format:
  return Format(
    "hacker_news",
    (".jsonl", ".ndjson"),
    _matches,
    _unprepared if roots is None else functools.partial(_rows, roots),
    contiguous=False,
    prepare=prepare if roots is None else None,
    prepared=prepared if roots is None else None,
  )


FORMAT = _format(None)


def _item_id(value: Any) -> int | None:
  """An id: a number, or its digits; None if it is none."""
  if (
    isinstance(value, str) and len(value) <= 10 and value.isascii() and value.isdigit()
  ):
    value = int(value)
  if not isinstance(value, int) or isinstance(value, bool):
    return None
  return value if 0 < value <= _MAX_ID else None


def _row(item: _Item, roots: Roots, read_counts: ReadCounts) -> Row | None:
  ident = _item_id(item.id)
  if item.type in _POST_TYPES or (item.type is None and item.title is not None):
    if ident is None:
      read_counts.trees[comment_tree.TREE_NO_ID] += 1
      return None
    return _post(str(ident), item, read_counts)
  if item.type == "pollopt":
    read_counts.comments[DROPPED_POLL_OPTION] += 1
    return None
  parent = _item_id(item.parent)
  if item.type not in (None, "comment") or (item.type is None and parent is None):
    read_counts.comments[comment_tree.DROPPED_NEITHER] += 1
    return None
  if ident is None:
    read_counts.comments[comment_tree.DROPPED_NO_ID] += 1
    return None
  root = roots.of(ident) if parent else None
  if root is None or root == NO_ROOT:
    itself = parent == ident
    cyclic = comment_tree.DROPPED_SELF_PARENT if itself else comment_tree.DROPPED_CYCLE
    read_counts.comments[comment_tree.DROPPED_NO_TREE if root is None else cyclic] += 1
    return None
  written = plain(item.text, read_counts)
  if item.deleted is True:
    written = _DELETED
  elif item.dead is True:
    written = _DEAD
  return Row(
    tree_id=str(root),
    is_post=False,
    id=str(ident),
    parent_id=f"{POST_PREFIX if parent == root else COMMENT_PREFIX}{parent}",
    author=text(item.by, read_counts),
    text=written,
    created_utc=seconds(item.time),
    score=votes(item.score),
  )


def _post(ident: str, item: _Item, read_counts: ReadCounts) -> Row:
  gone = item.deleted is True or item.dead is True
  title = text(item.title, read_counts)
  return Row(
    tree_id=ident,
    is_post=True,
    id=ident,
    author=text(item.by, read_counts),
    text=None if gone or title is None else character_references.unescape(title),
    selftext=None if gone else plain(item.text, read_counts),
    created_utc=seconds(item.time),
    score=votes(item.score),
  )


# Possessive: a tag that nothing closes is looked at once, not once for each letter.
_TAG = re.compile(r"<(/?)([a-zA-Z]++)([^<>]*+)>")
_HREF = re.compile(r"""\bhref\s*+=\s*+(?:"([^"]*+)"|'([^']*+)')""", re.IGNORECASE)


def plain(value: object, read_counts: ReadCounts) -> str | None:
  """HTML as plain text: paragraphs apart, links as their addresses, code as it is."""
  written = text(value, read_counts)
  if written is None:
    return None
  if "<" in written:
    pieces: list[str] = []
    place, in_link = 0, False
    for tag in _TAG.finditer(written):
      if not in_link:
        pieces.append(written[place : tag.start()])
      place = tag.end()
      name, ends = tag[2].lower(), bool(tag[1])
      if name == "p" and not ends:
        pieces.append("\n\n")
      elif name == "br" or (name == "pre" and not ends):
        pieces.append("\n")
      elif name == "a" and not ends:
        address = _HREF.search(tag[3])
        if address:  # what the link shows is its address, cut short
          pieces.append(address[1] if address[1] is not None else address[2])
          in_link = True
      elif name == "a":
        in_link = False
    if not in_link:
      pieces.append(written[place:])
    written = "".join(pieces)
  if "&" in written:
    written = character_references.unescape(written)
  return written.strip()
