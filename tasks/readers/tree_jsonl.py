"""Tree JSONL: one tree a line, as a JSON object.

    {"id", "title", "selftext", "author",
     "comments": [{"id", "parent_id", "author", "body", "created_utc"}, ...]}

`parent_id` is the tree's id or another comment's; where it is missing or null, the
comment answers the one that it is nested in (under `replies`, `children` or
`comments`), or the post. Any field may be null, and comments may come in any order.
Read too, where they are there: of either `score`, `label`, `language` and `translation`
({"language", "text"}), of the tree `created_utc` and `subreddit`; `text` where there is
no `body` or `selftext`, `replies` or `children` where a tree has no `comments`. Trees
may go on over lines or be the elements of an array (`json_records`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import json_lines, json_records
from commentree.tasks.readers.rows import (
  POST_PREFIX,
  Format,
  identifier,
  label,
  parent,
  seconds,
  text,
  votes,
)
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

REPLIES_PASSED_OVER = "replies that are no list passed over"


class _Comment(msgspec.Struct, gc=False):
  """What is read of a comment; other fields are passed over undecoded."""

  id: Any = None
  parent_id: Any = None
  author: Any = None
  body: Any = None
  text: Any = None
  created_utc: Any = None
  score: Any = None
  label: Any = None
  language: Any = None
  translation: Any = None
  replies: Any = None
  children: Any = None
  comments: Any = None


class _Tree(msgspec.Struct, gc=False):
  """What is read of a line; one that does not fit is read as any JSON value."""

  id: Any = None
  title: Any = None
  selftext: Any = None
  text: Any = None
  author: Any = None
  created_utc: Any = None
  score: Any = None
  subreddit: Any = None
  label: Any = None
  language: Any = None
  translation: Any = None
  replies: Any = None
  children: Any = None
  comments: list[_Comment] | None = None


_COMMENT_FIELDS = frozenset(_Comment.__struct_fields__)
_TREE_FIELDS = frozenset(_Tree.__struct_fields__) - {"comments"}
_decode = msgspec.json.Decoder(_Tree).decode


def _matches(name: str, head: bytes) -> bool:
  del name
  return any("comments" in keys for keys in json_records.first_keys(head))


def _rows(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[Row]:
  for record, _ in json_records.records(path, config, read_counts):
    for rows, _ in line_trees(record, read_counts):
      yield from rows


def line_trees(
  line: bytes, read_counts: ReadCounts
) -> Iterator[tuple[Iterator[Row], int]]:
  """Yields the rows of the trees on a line, each post's first; any bytes will do.

  Args:
    line: with one tree, but for lines that `json_records.on_line` takes apart.
    read_counts: counts what is no tree.

  Yields:
    The rows of a tree, and where it ends on the line.
  """
  try:
    tree = _decode(line)
  except (ValueError, RecursionError):
    if not line or line.isspace():
      return
    for record, end in json_lines.values(line, read_counts):
      if record is json_lines.BAD:
        read_counts.trees[json_lines.BAD_JSON] += 1
      else:
        yield record_rows(record, read_counts), end
  else:
    yield _tree_rows(tree, read_counts), len(line)


FORMAT = Format(
  "tree_jsonl", (".jsonl", ".ndjson", ".json"), _matches, _rows, contiguous=True
)


def record_rows(record: Any, read_counts: ReadCounts) -> Iterator[Row]:
  """Yields the rows of one tree, the post's first; any JSON value will do."""
  if not isinstance(record, Mapping):
    read_counts.trees[comment_tree.TREE_NOT_OBJECT] += 1
    return
  tree = _Tree(**{name: record[name] for name in _TREE_FIELDS & record.keys()})
  comments = record.get("comments")
  if isinstance(comments, list):
    tree.comments = _objects(comments, read_counts)
  yield from _tree_rows(tree, read_counts)


def _objects(values: list[Any], read_counts: ReadCounts) -> list[_Comment]:
  objects = [c for c in values if isinstance(c, Mapping)]
  if len(objects) < len(values):
    read_counts.comments[comment_tree.DROPPED_NOT_OBJECT] += len(values) - len(objects)
  return [
    _Comment(**{name: c[name] for name in _COMMENT_FIELDS & c.keys()}) for c in objects
  ]


def _tree_rows(tree: _Tree, read_counts: ReadCounts) -> Iterator[Row]:
  comments = tree.comments
  if comments is None:
    lists = [v for v in (tree.replies, tree.children) if isinstance(v, list)]
    if not lists:
      read_counts.trees[comment_tree.TREE_NO_LIST] += 1
      return
    comments = [c for values in lists for c in _objects(values, read_counts)]
  ident = identifier(tree.id, read_counts)
  tree_id = (ident or "").removeprefix(POST_PREFIX)
  if not tree_id:
    read_counts.trees[comment_tree.TREE_NO_ID] += 1
    if number := sum(1 for _ in _with_nested(comments, read_counts)):
      read_counts.comments[comment_tree.DROPPED_WITH_TREE] += number
    return
  subreddit = text(tree.subreddit, read_counts)
  translation, into = _translation(tree.translation, read_counts)
  yield Row(
    tree_id=tree_id,
    is_post=True,
    id=ident,
    author=text(tree.author, read_counts),
    text=text(tree.title, read_counts),
    selftext=text(
      tree.selftext if tree.selftext is not None else tree.text, read_counts
    ),
    created_utc=seconds(tree.created_utc),
    score=votes(tree.score),
    subreddit=subreddit,
    label=label(tree.label, read_counts),
    language=identifier(tree.language, read_counts),
    translation=translation,
    translation_language=into,
  )
  for comment, comment_id, parent_id in _with_nested(comments, read_counts):
    translation, into = _translation(comment.translation, read_counts)
    yield Row(
      tree_id=tree_id,
      is_post=False,
      id=comment_id,
      parent_id=parent_id,
      author=text(comment.author, read_counts),
      text=text(
        comment.body if comment.body is not None else comment.text, read_counts
      ),
      selftext=None,
      created_utc=seconds(comment.created_utc),
      score=votes(comment.score),
      subreddit=subreddit,
      label=label(comment.label, read_counts),
      language=identifier(comment.language, read_counts),
      translation=translation,
      translation_language=into,
    )


def _with_nested(
  comments: list[_Comment], read_counts: ReadCounts
) -> Iterator[tuple[_Comment, str | None, str | None]]:
  """Yields comments and those nested in them, each with its id and its parent's."""
  # What to look at, last first, each with the id of what it is nested in.
  waiting: list[tuple[_Comment, str | None]] = [(c, None) for c in reversed(comments)]
  while waiting:
    comment, above = waiting.pop()
    ident = identifier(comment.id, read_counts)
    parent_id = parent(comment.parent_id, read_counts)
    if parent_id is None:
      parent_id = above
    yield comment, ident, parent_id
    nested: list[_Comment] = []
    for values in (comment.replies, comment.children, comment.comments):
      if isinstance(values, list):
        # Elsewhere the same names list ids, which are no comments.
        values = [v for v in values if not isinstance(v, (str, int, float))]
        nested += _objects(values, read_counts)
      elif isinstance(values, Mapping) and values:
        read_counts.repaired[REPLIES_PASSED_OVER] += 1
    waiting += [(c, ident or parent_id) for c in reversed(nested)]


def _translation(value: Any, read_counts: ReadCounts) -> tuple[str | None, str | None]:
  """Text and language of a translation; neither if it lacks one of them."""
  if value is None:
    return None, None
  parts = value if isinstance(value, Mapping) else {}
  language = identifier(parts.get("language"), read_counts)
  translated = text(parts.get("text"), read_counts)
  if not language or not translated or translated.isspace():
    read_counts.repaired[comment_tree.REPAIRED_TRANSLATION] += 1
    return None, None
  return translated, language
