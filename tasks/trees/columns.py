"""A comment tree as columns: what SeqIO sources yield and built records hold.

  tree_id      string []     ids         string [N]   parents      int32 [N]
  authors      string [N]    texts       string [N]   created_utc  int64 [N]
  scores       int32 [N]     subreddit   string []

Row 0 is the post; a parent precedes its children; a missing author or subreddit is the
empty string, a missing time -1 and a missing score -2**31. Of the S labelled spans:

  span_comments  int32 [S]   the comment's row
  span_starts    int32 [S]   span_ends  int32 [S]   in code points of its text
  span_labels    string [S]

Of the K comments that have a label, and the R to which a reply was deleted:

  labelled       int32 [K]   the comment's row
  labels         string [K]
  reply_deleted  int32 [R]   the comment's row

Likewise of the L comments whose language is known, and the T that have a translation:

  language_comments  int32 [L]   the comment's row
  languages          string [L]
  translated         int32 [T]   the comment's row
  translation_languages  string [T]   translations  string [T]

Sources add the tree's place among all of its split:

  tree_index   int64 []
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span, Translation

# By feature: its type as NumPy names it, and its rank.
COLUMNS: dict[str, tuple[str, int]] = {
  "tree_id": ("str", 0),
  "subreddit": ("str", 0),
  "ids": ("str", 1),
  "parents": ("int32", 1),
  "authors": ("str", 1),
  "texts": ("str", 1),
  "created_utc": ("int64", 1),
  "scores": ("int32", 1),
  "span_comments": ("int32", 1),
  "span_starts": ("int32", 1),
  "span_ends": ("int32", 1),
  "span_labels": ("str", 1),
  "labelled": ("int32", 1),
  "labels": ("str", 1),
  "reply_deleted": ("int32", 1),
  "language_comments": ("int32", 1),
  "languages": ("str", 1),
  "translated": ("int32", 1),
  "translation_languages": ("str", 1),
  "translations": ("str", 1),
}
TREE_INDEX = "tree_index"
NO_TIME = -1
NO_SCORE = -(2**31)


def to_columns(tree: CommentTree) -> dict[str, Any]:
  """A tree as the columns named above: bytes, lists of bytes, and arrays."""
  comments = tree.comments
  spans = [(row, span) for row, c in enumerate(comments) for span in c.spans]
  labelled = [(row, c.label) for row, c in enumerate(comments) if c.label is not None]
  spoken = [(row, c.language) for row, c in enumerate(comments) if c.language]
  translated = [(row, c.translation) for row, c in enumerate(comments) if c.translation]
  return {
    "tree_id": _bytes(tree.id),
    "subreddit": _bytes(tree.subreddit or ""),
    "ids": [_bytes(c.id) for c in comments],
    "parents": np.array([c.parent for c in comments], np.int32),
    "authors": [_bytes(c.author or "") for c in comments],
    "texts": [_bytes(c.text) for c in comments],
    "created_utc": np.array(
      [NO_TIME if c.created_utc is None else c.created_utc for c in comments], np.int64
    ),
    "scores": np.array(
      [NO_SCORE if c.score is None else c.score for c in comments], np.int32
    ),
    "span_comments": np.array([row for row, _ in spans], np.int32),
    "span_starts": np.array([span.start for _, span in spans], np.int32),
    "span_ends": np.array([span.end for _, span in spans], np.int32),
    "span_labels": [_bytes(span.label) for _, span in spans],
    "labelled": np.array([row for row, _ in labelled], np.int32),
    "labels": [_bytes(label) for _, label in labelled],
    "reply_deleted": np.array(
      [row for row, c in enumerate(comments) if c.reply_deleted], np.int32
    ),
    "language_comments": np.array([row for row, _ in spoken], np.int32),
    "languages": [_bytes(language) for _, language in spoken],
    "translated": np.array([row for row, _ in translated], np.int32),
    "translation_languages": [_bytes(t.language) for _, t in translated],
    "translations": [_bytes(t.text) for _, t in translated],
  }


# Columns with a value for each comment; and by those that name comments, theirs.
_OF_COMMENTS = ("ids", "parents", "authors", "texts", "created_utc", "scores")
_OF_SOME = {
  "span_comments": ("span_starts", "span_ends", "span_labels"),
  "labelled": ("labels",),
  "reply_deleted": (),
  "language_comments": ("languages",),
  "translated": ("translation_languages", "translations"),
}


def _check_shape(columns: Mapping[str, Any]) -> None:
  """Raises a ValueError unless columns are those of a tree."""
  count = len(columns["ids"])
  for name in _OF_COMMENTS:
    if len(columns[name]) != count:
      raise ValueError(f"{count} ids and {len(columns[name])} {name}")
  parents = np.asarray(columns["parents"])
  if not count or parents[0] != -1:
    raise ValueError("no post in front")
  if np.any(parents[1:] < 0) or np.any(parents >= np.arange(count)):
    raise ValueError("a comment whose parent does not stand before it")
  for rows, others in _OF_SOME.items():
    found = np.asarray(columns[rows], np.int64)
    for name in others:
      if len(columns[name]) != len(found):
        raise ValueError(f"{len(found)} {rows} and {len(columns[name])} {name}")
    if np.any(found < 0) or np.any(found >= count):
      raise ValueError(f"{rows} names a comment that is not there")


def from_columns(columns: Mapping[str, Any]) -> CommentTree:
  """The inverse of `to_columns`, from NumPy values.

  Raises:
    ValueError: if they are not the columns of a tree.
  """
  _check_shape(columns)
  texts = [text.decode("utf-8") for text in columns["texts"]]
  spans: dict[int, list[Span]] = collections.defaultdict(list)
  for row, start, end, label in zip(
    columns["span_comments"].tolist(),
    columns["span_starts"].tolist(),
    columns["span_ends"].tolist(),
    columns["span_labels"],
  ):
    if not 0 <= start <= end <= len(texts[row]):
      raise ValueError(f"a span from {start} to {end} of a shorter text")
    spans[row].append(Span(start, end, label.decode("utf-8")))
  labels = {
    int(row): label.decode("utf-8")
    for row, label in zip(columns["labelled"], columns["labels"])
  }
  reply_deleted = frozenset(map(int, columns["reply_deleted"]))
  languages = {
    int(row): language.decode("utf-8")
    for row, language in zip(columns["language_comments"], columns["languages"])
  }
  translations = {
    int(row): Translation(language.decode("utf-8"), text.decode("utf-8"))
    for row, language, text in zip(
      columns["translated"],
      columns["translation_languages"],
      columns["translations"],
    )
  }
  rows = zip(
    columns["ids"],
    columns["parents"].tolist(),
    columns["authors"],
    texts,
    columns["created_utc"].tolist(),
    columns["scores"].tolist(),
  )
  return CommentTree(
    id=columns["tree_id"].decode("utf-8"),
    comments=[
      Comment(
        id=ident.decode("utf-8"),
        parent=parent,
        author=author.decode("utf-8") or None,
        text=text,
        created_utc=None if created == NO_TIME else created,
        score=None if score == NO_SCORE else score,
        spans=tuple(spans[row]) if row in spans else (),
        label=labels.get(row),
        reply_deleted=row in reply_deleted,
        language=languages.get(row),
        translation=translations.get(row),
      )
      for row, (ident, parent, author, text, created, score) in enumerate(rows)
    ],
    subreddit=columns["subreddit"].decode("utf-8") or None,
  )


def _bytes(text: str) -> bytes:
  return text.encode("utf-8", "replace")
