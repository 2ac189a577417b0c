"""Tree JSONL: one tree a line, as a JSON object.

    {"id", "title", "selftext", "author",
     "comments": [{"id", "parent_id", "author", "body", "created_utc"}, ...]}

`parent_id` is the tree's id or another comment's; any field may be null, and comments
may come in any order. Read too, where they are there: `score` of either, `created_utc`
and `subreddit` of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import trees
from ..config import TreeConfig
from ..trees import Fates
from . import files, json_lines
from .rows import POST_PREFIX, Format, Row, identifier, seconds, text, votes


def _matches(name: str, head: bytes) -> bool:
  del name
  return b'"comments"' in head


def _rows(path: str, config: TreeConfig, fates: Fates) -> Iterator[Row]:
  for line in files.lines(path, config.max_line_bytes, fates):
    if not line or line.isspace():
      continue
    record = json_lines.parse(line, fates)
    if record is json_lines.BAD:
      fates.trees[json_lines.BAD_JSON] += 1
    else:
      yield from record_rows(record, fates)


FORMAT = Format("tree_jsonl", (".jsonl", ".ndjson"), _matches, _rows, contiguous=True)


def record_rows(record: Any, fates: Fates) -> Iterator[Row]:
  """Yields the rows of one tree, the post's first; any JSON value will do."""
  if not isinstance(record, Mapping):
    fates.trees[trees.TREE_NOT_OBJECT] += 1
    return
  comments = record.get("comments")
  if not isinstance(comments, list):
    fates.trees[trees.TREE_NO_LIST] += 1
    return
  ident = identifier(record.get("id"), fates)
  tree_id = (ident or "").removeprefix(POST_PREFIX)
  if not tree_id:
    fates.trees[trees.TREE_NO_ID] += 1
    fates.comments[trees.DROPPED_WITH_TREE] += len(comments)
    return
  subreddit = text(record.get("subreddit"), fates)
  yield Row(
    tree_id,
    True,
    ident,
    author=text(record.get("author"), fates),
    text=text(record.get("title"), fates),
    selftext=text(record.get("selftext"), fates),
    created_utc=seconds(record.get("created_utc")),
    score=votes(record.get("score")),
    subreddit=subreddit,
  )
  for comment in comments:
    if not isinstance(comment, Mapping):
      fates.comments[trees.DROPPED_NOT_OBJECT] += 1
      continue
    yield Row(
      tree_id,
      False,
      identifier(comment.get("id"), fates),
      parent_id=identifier(comment.get("parent_id"), fates),
      author=text(comment.get("author"), fates),
      text=text(comment.get("body"), fates),
      created_utc=seconds(comment.get("created_utc")),
      score=votes(comment.get("score")),
      subreddit=subreddit,
    )
