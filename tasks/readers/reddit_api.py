"""Listings as Reddit's API returns them: of a thread, of posts, of comments.

A file is one JSON document, over any number of lines, or one document a line. A thread
is `[listing of the post, listing of comments]`; replies are listings nested in their
comment, `""` where there are none. A comment names its post (`link_id`) and its parent;
where it does not, it stands below what it is nested in. So documents that hold parts of
one thread become one tree.

`kind: more` stands for comments that were left out: they are counted in
`Fates.missing`, and in nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .. import trees
from ..config import TreeConfig
from ..trees import Fates
from . import files, json_lines
from .rows import (
  COMMENT_PREFIX,
  POST_PREFIX,
  Format,
  Row,
  identifier,
  seconds,
  text,
  votes,
)

NO_LISTING = "skipped: no listing of posts or comments"
REPLIES_PASSED_OVER = "replies that are no listing passed over"
MORE_STUBS = "stubs (kind: more)"
MORE_IDS = "comments whose ids stubs list"
MORE_COUNT = "comments that stubs say there are"

_BEGINNING = re.compile(rb'\s*(?:\[\s*)?\{\s*"(?:kind|data)"\s*:')
_MAX_COUNT = 10**9  # a stub's count beyond it is none


class _Thing(NamedTuple):
  """A JSON value where a post, comment or stub should be, and what it is below."""

  value: Any
  tree_id: str | None
  parent_id: str | None


def _matches(name: str, head: bytes) -> bool:
  del name
  head = head.removeprefix(b"\xef\xbb\xbf")
  return _BEGINNING.match(head) is not None and b'"kind"' in head


def _rows(path: str, config: TreeConfig, fates: Fates) -> Iterator[Row]:
  for document in _documents(path, config, fates):
    yield from document_rows(document, fates)


FORMAT = Format(
  "reddit_api", (".json", ".jsonl", ".ndjson"), _matches, _rows, contiguous=False
)


def _documents(path: str, config: TreeConfig, fates: Fates) -> Iterator[Any]:
  """Yields the JSON values of a file: of each line, or of all lines together."""
  begun: list[bytes] = []  # lines, as long as they may be parts of one document
  size = 0
  by_line = too_long = False
  for line in files.lines(path, config.max_line_bytes, fates):
    if too_long or not line or line.isspace():
      continue
    if not by_line:
      document = json_lines.parse(line, Fates()) if _closed(line) else json_lines.BAD
      # A document that goes on has lines that are values, too, but no listings.
      by_line = document is not json_lines.BAD and (not begun or _is_listing(document))
      if not by_line:
        size += len(line)
        begun.append(line)
        if size > config.max_line_bytes:
          too_long = True
          begun.clear()
          fates.trees[files.FILE_TOO_LONG] += 1
        continue
      for earlier in begun:
        yield from _parsed(earlier, fates)
      begun.clear()
    yield from _parsed(line, fates)
  if begun:
    yield from _parsed(b"\n".join(begun), fates)


def _closed(line: bytes) -> bool:
  """Whether a line may be a whole document; cheap."""
  return line.strip()[-1:] in (b"}", b"]")


def _parsed(content: bytes, fates: Fates) -> Iterator[Any]:
  document = json_lines.parse(content, fates)
  if document is json_lines.BAD:
    fates.trees[json_lines.BAD_JSON] += 1
  else:
    yield document


def _is_listing(value: Any) -> bool:
  parts = value if isinstance(value, list) else [value]
  return bool(parts) and all(_kind(part) == "Listing" for part in parts)


def document_rows(document: Any, fates: Fates) -> Iterator[Row]:
  """Yields the rows of a document; any JSON value will do."""
  parts = document if isinstance(document, list) else [document]
  listings = [part for part in parts if _children(part) is not None]
  if not listings:
    things = [part for part in parts if _kind(part) in ("t1", "t3", "more")]
    if not things:
      fates.trees[NO_LISTING] += 1
      return
    listings = [{"data": {"children": things}}]
  post_id: str | None = None
  for listing in listings:
    parent = POST_PREFIX + post_id if post_id else None
    # What to look at, last first.
    waiting = [_Thing(v, post_id, parent) for v in reversed(_children(listing) or [])]
    posts = []
    while waiting:
      thing = waiting.pop()
      data = thing.value.get("data") if isinstance(thing.value, Mapping) else None
      if not isinstance(data, Mapping):
        fates.comments[trees.DROPPED_NOT_OBJECT] += 1
        continue
      kind = _kind(thing.value)
      if kind == "more":
        _count_stub(data, fates)
      elif kind == "t3":
        row = _post(data, fates)
        if row is not None:
          posts.append(row.tree_id)
          yield row
      elif kind == "t1":
        row = _comment(data, thing, fates)
        waiting += _replies(data, row, thing, fates)
        if row.tree_id:
          yield row
        else:
          fates.comments[trees.DROPPED_NO_TREE] += 1
      else:
        fates.comments[trees.DROPPED_NEITHER] += 1
    # A post alone in its listing is that of the comments in the next one.
    post_id = posts[0] if len(posts) == 1 else None


def _kind(value: Any) -> Any:
  return value.get("kind") if isinstance(value, Mapping) else None


def _children(listing: Any) -> list[Any] | None:
  data = listing.get("data") if isinstance(listing, Mapping) else None
  children = data.get("children") if isinstance(data, Mapping) else None
  if not isinstance(children, list) or _kind(listing) == "more":
    return None
  return children


def _replies(
  data: Mapping[str, Any], row: Row, thing: _Thing, fates: Fates
) -> list[_Thing]:
  """What is nested in a comment, last first."""
  replies = data.get("replies")
  if replies is None or replies == "":
    return []
  children = _children(replies)
  if children is None:
    fates.mended[REPLIES_PASSED_OVER] += 1
    return []
  parent = thing.parent_id
  if row.id:
    parent = COMMENT_PREFIX + row.id.removeprefix(COMMENT_PREFIX)
  tree_id = row.tree_id or None
  return [_Thing(child, tree_id, parent) for child in reversed(children)]


def _post(data: Mapping[str, Any], fates: Fates) -> Row | None:
  ident = identifier(data.get("id"), fates)
  tree_id = (ident or "").removeprefix(POST_PREFIX)
  if not tree_id:
    fates.trees[trees.TREE_NO_ID] += 1
    return None
  return Row(
    tree_id,
    True,
    ident,
    author=text(data.get("author"), fates),
    text=text(data.get("title"), fates),
    selftext=text(data.get("selftext"), fates),
    created_utc=seconds(data.get("created_utc")),
    score=votes(data.get("score")),
    subreddit=text(data.get("subreddit"), fates),
  )


def _comment(data: Mapping[str, Any], thing: _Thing, fates: Fates) -> Row:
  """A comment's row; its `tree_id` is empty if that is not known."""
  link_id = identifier(data.get("link_id"), fates) or thing.tree_id
  return Row(
    (link_id or "").removeprefix(POST_PREFIX),
    False,
    identifier(data.get("id"), fates),
    parent_id=identifier(data.get("parent_id"), fates) or thing.parent_id,
    author=text(data.get("author"), fates),
    text=text(data.get("body"), fates),
    created_utc=seconds(data.get("created_utc")),
    score=votes(data.get("score")),
    subreddit=text(data.get("subreddit"), fates),
  )


def _count_stub(data: Mapping[str, Any], fates: Fates) -> None:
  fates.missing[MORE_STUBS] += 1
  ids = data.get("children")
  if isinstance(ids, list) and ids:
    fates.missing[MORE_IDS] += len(ids)
  count = data.get("count")
  if isinstance(count, int) and 0 < count <= _MAX_COUNT:
    fates.missing[MORE_COUNT] += count
