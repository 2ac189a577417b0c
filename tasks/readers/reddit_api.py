"""Reddit's API and archives in its form: listings, things, answers of `morechildren`.

A thread is `[listing of the post, listing of comments]`; replies are listings nested in
their comment, `""` where there are none. A file is any number of such documents
(`json_records`): listings, arrays of them, single things, answers of `morechildren`,
comment trees of Arctic Shift (`{"data": [...]}`). A comment names its post (`link_id`)
and its parent; where it does not, it stands below what it is nested in. So documents
that hold parts of one thread become one tree.

`kind: more` stands for comments that were left out: they are counted in
`ReadCounts.missing`, copies once, and in nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import json_lines, json_records
from commentree.tasks.readers.rows import (
  COMMENT_PREFIX,
  POST_PREFIX,
  Format,
  identifier,
  parent,
  seconds,
  text,
  votes,
)
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts, Stub
from commentree.tasks.trees.row import Row

NO_LISTING = "skipped: no listing of posts or comments"
REPLIES_PASSED_OVER = "replies that are no listing passed over"

_MAX_COUNT = 10**9  # a stub's count beyond it is none


@dataclasses.dataclass
class _Document:
  """What is known of a document from what was read of it.

  Attributes:
    post_id: the post that stood alone in the listing before: that of the comments in
      the next one.
    tree_id, subreddit: of the last comment.
  """

  post_id: str | None = None
  tree_id: str | None = None
  subreddit: str | None = None


class _Thing(NamedTuple):
  """A JSON value where a post, comment or stub should be, and what it is below."""

  value: Any
  tree_id: str | None
  parent_id: str | None


def _matches(name: str, head: bytes) -> bool:
  del name
  for keys in json_records.first_keys(head):
    if not keys.isdisjoint(("id", "comments", "link_id", "text", "type")):
      continue
    if "data" in keys and b'"kind"' in head:
      return True
    if "json" in keys and b'"things"' in head:
      return True
  return False


def _rows(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[Row]:
  document, group = _Document(), -1
  for record in json_records.records(path, config, read_counts):
    if not record.content or record.content.isspace():
      continue
    found = enumerate(json_lines.values(record.content, read_counts))
    for number, (value, _) in found:
      if value is json_lines.BAD:
        read_counts.trees[json_lines.BAD_JSON] += 1
        continue
      if number or record.group != group:
        document, group = _Document(), record.group
      yield from _value_rows(value, document, read_counts)


FORMAT = Format(
  "reddit_api", (".json", ".jsonl", ".ndjson"), _matches, _rows, contiguous=False
)


def document_rows(value: Any, read_counts: ReadCounts) -> Iterator[Row]:
  """Yields the rows of a document; any JSON value will do."""
  yield from _value_rows(value, _Document(), read_counts)


def _value_rows(
  value: Any, document: _Document, read_counts: ReadCounts
) -> Iterator[Row]:
  for part in value if isinstance(value, list) and value else [value]:
    children = _children(part)
    if children is not None:
      above = document.post_id
      parent_id = POST_PREFIX + above if above else None
      posts: list[str] = []
      for row in _rows_of(children, above, parent_id, document, read_counts):
        if row.is_post:
          posts.append(row.tree_id)
        yield row
      document.post_id = posts[0] if len(posts) == 1 else None
    elif (things := _things(part)) is not None:
      yield from _rows_of(things, None, None, document, read_counts)
    else:
      read_counts.trees[NO_LISTING] += 1


def _rows_of(
  children: list[Any],
  tree_id: str | None,
  parent_id: str | None,
  document: _Document,
  read_counts: ReadCounts,
) -> Iterator[Row]:
  """Yields the rows of things, and of all that is nested in them."""
  # What to look at, last first.
  waiting = [_Thing(value, tree_id, parent_id) for value in reversed(children)]
  while waiting:
    thing = waiting.pop()
    data = thing.value.get("data") if isinstance(thing.value, Mapping) else None
    if not isinstance(data, Mapping):
      read_counts.comments[comment_tree.DROPPED_NOT_OBJECT] += 1
      continue
    kind = _kind(thing.value)
    if kind == "more":
      yield from _stub(data, thing, document, read_counts)
    elif kind == "t3":
      post = _post(data, read_counts)
      if post is not None:
        yield post
    elif kind == "t1":
      row = _comment(data, thing, read_counts)
      waiting += _replies(data, row, thing, read_counts)
      if row.tree_id:
        document.tree_id, document.subreddit = row.tree_id, row.subreddit
        yield row
      else:
        read_counts.comments[comment_tree.DROPPED_NO_TREE] += 1
    else:
      read_counts.comments[comment_tree.DROPPED_NEITHER] += 1


def _kind(value: Any) -> Any:
  return value.get("kind") if isinstance(value, Mapping) else None


def _children(listing: Any) -> list[Any] | None:
  data = listing.get("data") if isinstance(listing, Mapping) else None
  children = data.get("children") if isinstance(data, Mapping) else None
  if not isinstance(children, list) or _kind(listing) == "more":
    return None
  return children


def _things(value: Any) -> list[Any] | None:
  """The things of an answer of `morechildren`, or a single one; None for no such."""
  if _kind(value) in ("t1", "t3", "more"):
    return [value]
  for key in ("json", "data", "things"):
    value = value.get(key, value) if isinstance(value, Mapping) else value
  return value if isinstance(value, list) else None


def _replies(
  data: Mapping[str, Any], row: Row, thing: _Thing, read_counts: ReadCounts
) -> list[_Thing]:
  """What is nested in a comment, last first."""
  replies = data.get("replies")
  if replies is None or replies == "":
    return []
  children = _children(replies)
  if children is None:
    read_counts.repaired[REPLIES_PASSED_OVER] += 1
    return []
  parent_id = thing.parent_id
  if row.id:
    parent_id = COMMENT_PREFIX + row.id.removeprefix(COMMENT_PREFIX)
  tree_id = row.tree_id or None
  return [_Thing(child, tree_id, parent_id) for child in reversed(children)]


def _post(data: Mapping[str, Any], read_counts: ReadCounts) -> Row | None:
  ident = identifier(data.get("id"), read_counts)
  tree_id = (ident or "").removeprefix(POST_PREFIX)
  if not tree_id:
    read_counts.trees[comment_tree.TREE_NO_ID] += 1
    return None
  return Row(
    tree_id=tree_id,
    is_post=True,
    id=ident,
    author=text(data.get("author"), read_counts),
    text=text(data.get("title"), read_counts),
    selftext=text(data.get("selftext"), read_counts),
    created_utc=seconds(data.get("created_utc")),
    score=votes(data.get("score")),
    subreddit=text(data.get("subreddit"), read_counts),
  )


def _comment(data: Mapping[str, Any], thing: _Thing, read_counts: ReadCounts) -> Row:
  """A comment's row; its `tree_id` is empty if that is not known."""
  link_id = identifier(data.get("link_id"), read_counts) or thing.tree_id
  return Row(
    tree_id=(link_id or "").removeprefix(POST_PREFIX),
    is_post=False,
    id=identifier(data.get("id"), read_counts),
    parent_id=parent(data.get("parent_id"), read_counts) or thing.parent_id,
    author=text(data.get("author"), read_counts),
    text=text(data.get("body"), read_counts),
    created_utc=seconds(data.get("created_utc")),
    score=votes(data.get("score")),
    subreddit=text(data.get("subreddit"), read_counts),
  )


def _stub(
  data: Mapping[str, Any], thing: _Thing, document: _Document, read_counts: ReadCounts
) -> Iterator[Row]:
  listed, count = data.get("children"), data.get("count")
  listed = listed if isinstance(listed, list) else []
  ids = [identifier(value, read_counts) for value in listed]
  if isinstance(count, bool) or not isinstance(count, int) or count > _MAX_COUNT:
    count = 0
  stub = Stub(
    max(count, 0), tuple(ident.removeprefix(COMMENT_PREFIX) for ident in ids if ident)
  )
  tree_id = thing.tree_id or document.tree_id
  if tree_id is None:
    comment_tree.count_stub(stub, read_counts)
    return
  yield Row(
    tree_id=tree_id,
    is_post=False,
    id=identifier(data.get("id"), read_counts),
    parent_id=parent(data.get("parent_id"), read_counts) or thing.parent_id,
    subreddit=document.subreddit,
    stub=stub.encode(),
  )
