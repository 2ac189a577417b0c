"""A row: a post or a comment as its source has it, before there is a tree."""

from __future__ import annotations

from typing import NamedTuple

from commentree.tasks.trees.comment_tree import Span


class Row(NamedTuple):
  """A post or a comment, as its source has it.

  Texts are valid Unicode without NUL. Ids are as the source names them; those of
  Reddit may have their prefix or not (see `assembly.assemble`).

  Attributes:
    tree_id: id of the post, always without `t3_`: rows of equal `tree_id` are a tree.
    is_post: whether this is the post.
    id: its own; None for a comment that has none, or none that is an id.
    parent_id: of what a comment answers; None if the source names nothing, and then it
      answers the post; empty if what the source names is no id.
    author: None if unknown; may still say `[deleted]`.
    text: a comment's body, None without one; a post's title.
    selftext: a post's text below the title.
    created_utc: seconds since 1970, or None.
    score: votes, or None.
    subreddit: the community it was written in, or None.
    label: what the source says of the whole comment, such as its stance, or None.
    language: of the text, as the source calls it, or None.
    translation: the text (a post's title and text) in another language, or None.
    translation_language: which; None if there is no translation.
    stub: if the row is no comment but stands for some that the source left out, what
      is known of them: see `comment_tree.Stub`. Its id, and what it answers, tell
        copies of
      it from others.
    spans: labelled parts of a comment's `text`, or of what `comment_tree.post_text`
      makes of a post.
  """

  tree_id: str
  is_post: bool
  id: str | None
  parent_id: str | None = None
  author: str | None = None
  text: str | None = None
  selftext: str | None = None
  created_utc: int | None = None
  score: int | None = None
  subreddit: str | None = None
  label: str | None = None
  language: str | None = None
  translation: str | None = None
  translation_language: str | None = None
  stub: str | None = None
  spans: tuple[Span, ...] = ()
