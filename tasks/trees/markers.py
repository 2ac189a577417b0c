"""Marker tokens: what stands in text for something that is not text.

Every marker is a user-defined symbol of the vocabulary. Only `cleaning` and
`author_markers` may put one into a text; `cleaning` defuses those that users wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from commentree.tasks.config.preprocessing import MarkersConfig

if TYPE_CHECKING:
  from commentree.tasks.trees.comment_tree import CommentTree

MASK = "<mask>"
URL = "<url>"
QUOTE_START = "<startq>"
QUOTE_END = "<endq>"
DELETED = "<deleted>"
UNKNOWN_USER = "<unu>"


def user_marker(number: int) -> str:
  """The marker of a tree's `number`-th author; 0 is whoever wrote the post."""
  return f"<user_{number}>"


def all_markers(config: MarkersConfig) -> list[str]:
  """Every marker that a text may hold, in an order that never changes.

  None depends on what is switched on, but for the number of users: a vocabulary
  serves all settings.
  """
  fixed = [MASK, URL, QUOTE_START, QUOTE_END, DELETED, UNKNOWN_USER]
  return fixed + [user_marker(number) for number in range(config.max_users)]


def of_authors(config: MarkersConfig) -> list[str]:
  """The markers that a comment may begin with."""
  if not config.authors:
    return []
  return [UNKNOWN_USER, *map(user_marker, range(config.max_users))]


def author_markers(tree: CommentTree, config: MarkersConfig) -> list[str]:
  """The author's marker of each comment; empty strings if they are switched off.

  Authors are numbered as they first appear in the tree. `<user_0>` is kept for the
  post's author even if that one is unknown, so that it always means the same.
  """
  if not config.authors:
    return [""] * len(tree.comments)
  numbers = {tree.comments[0].author: 0}
  markers = []
  for comment in tree.comments:
    if comment.author is None:
      markers.append(UNKNOWN_USER)
      continue
    number = numbers.setdefault(comment.author, len(numbers))
    markers.append(user_marker(number) if number < config.max_users else UNKNOWN_USER)
  return markers
