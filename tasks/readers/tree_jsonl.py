"""Tree JSONL: one tree a line, as a JSON object.

    {"id", "title", "selftext", "author",
     "comments": [{"id", "parent_id", "author", "body", "created_utc"}, ...]}

`parent_id` is the tree's id or another comment's; any field may be null, and comments
may come in any order. Read too, where they are there: of either `score`, `label`,
`language` and `translation` ({"language", "text"}), of the tree `created_utc` and
`subreddit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .. import trees
from ..config import TreeConfig
from ..trees import Fates
from . import files, json_lines
from .rows import POST_PREFIX, Format, Row, identifier, label, seconds, text, votes


class _Comment(msgspec.Struct, gc=False):
  """What is read of a comment; other fields are passed over undecoded."""

  id: Any = None
  parent_id: Any = None
  author: Any = None
  body: Any = None
  created_utc: Any = None
  score: Any = None
  label: Any = None
  language: Any = None
  translation: Any = None


class _Tree(msgspec.Struct, gc=False):
  """What is read of a line; one that does not fit is read as any JSON value."""

  id: Any = None
  title: Any = None
  selftext: Any = None
  author: Any = None
  created_utc: Any = None
  score: Any = None
  subreddit: Any = None
  label: Any = None
  language: Any = None
  translation: Any = None
  comments: list[_Comment] | None = None


_COMMENT_FIELDS = frozenset(_Comment.__struct_fields__)
_TREE_FIELDS = frozenset(_Tree.__struct_fields__) - {"comments"}
_decode = msgspec.json.Decoder(_Tree).decode


def _matches(name: str, head: bytes) -> bool:
  del name
  return b'"comments"' in head


def _rows(path: str, config: TreeConfig, fates: Fates) -> Iterator[Row]:
  for line in files.lines(path, config.max_line_bytes, fates):
    yield from line_rows(line, fates)


def line_rows(line: bytes, fates: Fates) -> Iterator[Row]:
  """Yields the rows of the tree on a line, the post's first; any bytes will do."""
  try:
    tree = _decode(line)
  except (ValueError, RecursionError):
    if not line or line.isspace():
      return
    record = json_lines.parse(line, fates)
    if record is json_lines.BAD:
      fates.trees[json_lines.BAD_JSON] += 1
    else:
      yield from record_rows(record, fates)
  else:
    yield from _tree_rows(tree, fates)


FORMAT = Format("tree_jsonl", (".jsonl", ".ndjson"), _matches, _rows, contiguous=True)


def record_rows(record: Any, fates: Fates) -> Iterator[Row]:
  """Yields the rows of one tree, the post's first; any JSON value will do."""
  if not isinstance(record, Mapping):
    fates.trees[trees.TREE_NOT_OBJECT] += 1
    return
  comments = record.get("comments")
  tree = _Tree(**{name: record[name] for name in _TREE_FIELDS & record.keys()})
  if isinstance(comments, list):
    objects = [c for c in comments if isinstance(c, Mapping)]
    if len(objects) < len(comments):
      fates.comments[trees.DROPPED_NOT_OBJECT] += len(comments) - len(objects)
    tree.comments = [
      _Comment(**{name: c[name] for name in _COMMENT_FIELDS & c.keys()})
      for c in objects
    ]
  yield from _tree_rows(tree, fates)


def _tree_rows(tree: _Tree, fates: Fates) -> Iterator[Row]:
  comments = tree.comments
  if comments is None:
    fates.trees[trees.TREE_NO_LIST] += 1
    return
  ident = identifier(tree.id, fates)
  tree_id = (ident or "").removeprefix(POST_PREFIX)
  if not tree_id:
    fates.trees[trees.TREE_NO_ID] += 1
    if comments:
      fates.comments[trees.DROPPED_WITH_TREE] += len(comments)
    return
  subreddit = text(tree.subreddit, fates)
  translation, into = _translation(tree.translation, fates)
  yield Row(
    tree_id,
    True,
    ident,
    author=text(tree.author, fates),
    text=text(tree.title, fates),
    selftext=text(tree.selftext, fates),
    created_utc=seconds(tree.created_utc),
    score=votes(tree.score),
    subreddit=subreddit,
    label=label(tree.label, fates),
    language=identifier(tree.language, fates),
    translation=translation,
    translation_language=into,
  )
  for comment in comments:
    translation, into = _translation(comment.translation, fates)
    yield Row(
      tree_id,
      False,
      identifier(comment.id, fates),
      identifier(comment.parent_id, fates),
      text(comment.author, fates),
      text(comment.body, fates),
      None,
      seconds(comment.created_utc),
      votes(comment.score),
      subreddit,
      label(comment.label, fates),
      identifier(comment.language, fates),
      translation,
      into,
    )


def _translation(value: Any, fates: Fates) -> tuple[str | None, str | None]:
  """Text and language of a translation; neither if it lacks one of them."""
  if value is None:
    return None, None
  parts = value if isinstance(value, Mapping) else {}
  language = identifier(parts.get("language"), fates)
  translated = text(parts.get("text"), fates)
  if not language or not translated or translated.isspace():
    fates.mended[trees.MENDED_TRANSLATION] += 1
    return None, None
  return translated, language
