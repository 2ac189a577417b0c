"""Pushshift and Arctic Shift dumps: one comment or submission a line, as JSON objects.

A line with a `link_id` is a comment, any other with a `title` or `selftext` a
submission, in the same file or another. Files may be arrays and answers of the
archives' APIs as well (`json_records`). Timestamps may be numbers or strings; ids may
have their `t1_` and `t3_` or not. Ids that are numbers stand for their digits to base
36, as Pushshift's API has given `parent_id` since 2022; what has no `parent_id` answers
the post. Every record is counted once:

    records = comments + trees - trees of which the post is missing

(`ReadCounts.comments`, `ReadCounts.trees` and, in those, `comment_tree.NO_POST`). A
record of unknown kind counts as a comment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

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
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAX_ID = 2**63 - 1


class _Line(msgspec.Struct, gc=False):
  """What is read of a line; other fields are passed over without being decoded."""

  id: Any = None
  link_id: Any = None
  parent_id: Any = None
  author: Any = None
  body: Any = None
  created_utc: Any = None
  score: Any = None
  subreddit: Any = None
  title: Any = None
  selftext: Any = None


def _matches(name: str, head: bytes) -> bool:
  del name
  return any(
    "comments" not in keys
    and ("link_id" in keys or ("title" in keys and "created_utc" in keys))
    for keys in json_records.first_keys(head)
  )


def _rows(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[Row]:
  for fields in json_lines.objects(path, _Line, config, read_counts):
    if fields.link_id is None:
      row = _post(fields, read_counts)
    else:
      row = _comment(fields, read_counts)
    if row is not None:
      yield row


FORMAT = Format("pushshift", (".jsonl", ".ndjson"), _matches, _rows, contiguous=False)


def _comment(fields: _Line, read_counts: ReadCounts) -> Row | None:
  link_id = identifier(_in_base_36(fields.link_id), read_counts)
  tree_id = link_id and link_id.removeprefix(POST_PREFIX)
  if not tree_id:
    read_counts.comments[comment_tree.DROPPED_NO_TREE] += 1
    return None
  return Row(
    tree_id=tree_id,
    is_post=False,
    id=identifier(_in_base_36(fields.id), read_counts),
    parent_id=_parent(fields.parent_id, tree_id, read_counts),
    author=text(fields.author, read_counts),
    text=text(fields.body, read_counts),
    selftext=None,
    created_utc=seconds(fields.created_utc),
    score=votes(fields.score),
    subreddit=text(fields.subreddit, read_counts),
  )


def _parent(value: Any, tree_id: str, read_counts: ReadCounts) -> str | None:
  digits = _in_base_36(value)
  if digits is value:
    return parent(value, read_counts)
  return (POST_PREFIX if digits == tree_id else COMMENT_PREFIX) + digits


def _in_base_36(value: Any) -> Any:
  """A number as an id of Reddit's; any other value as it is."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return value
  if not 0 <= value <= _MAX_ID or value != int(value):
    return value
  rest, digits = int(value), ""
  while rest or not digits:
    rest, digit = divmod(rest, 36)
    digits = _DIGITS[digit] + digits
  return digits


def _post(fields: _Line, read_counts: ReadCounts) -> Row | None:
  if fields.title is None and fields.selftext is None:
    a_comment = fields.body is not None or fields.parent_id is not None
    read_counts.comments[
      comment_tree.DROPPED_NO_TREE if a_comment else comment_tree.DROPPED_NEITHER
    ] += 1
    return None
  ident = identifier(_in_base_36(fields.id), read_counts)
  tree_id = ident and ident.removeprefix(POST_PREFIX)
  if not tree_id:
    read_counts.trees[comment_tree.TREE_NO_ID] += 1
    return None
  return Row(
    tree_id=tree_id,
    is_post=True,
    id=ident,
    parent_id=None,
    author=text(fields.author, read_counts),
    text=text(fields.title, read_counts),
    selftext=text(fields.selftext, read_counts),
    created_utc=seconds(fields.created_utc),
    score=votes(fields.score),
    subreddit=text(fields.subreddit, read_counts),
  )
