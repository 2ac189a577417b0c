"""Which column of a table holds what: as settings say, or guessed by common names.

Names are compared without case, spaces, dashes, underscores and byte order marks. A
name with a dot is a field of a structure: `user.screen_name`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from commentree.errors import UserError, suggestion

# By role, the usual names, the likeliest first.
GUESSES: Mapping[str, tuple[str, ...]] = {
  "id": (
    "id_str",
    "id",
    "comment_id",
    "message_id",
    "tweet_id",
    "status_id",
    "utterance_id",
    "reply_id",
    "msg_id",
    "post_id",
    "submission_id",
  ),
  "parent": (
    "parent",
    "parent_id",
    "parent_comment_id",
    "parent_message_id",
    "reply_to",
    "reply_to_id",
    "replied_to",
    "in_reply_to_status_id_str",
    "in_reply_to_status_id",
    "in_reply_to_tweet_id",
    "in_reply_to_id",
    "in_reply_to",
    "in_response_to_tweet_id",
    "response_to",
  ),
  "post": (
    "post",
    "post_id",
    "link_id",
    "submission_id",
    "story_id",
    "thread",
    "thread_id",
    "topic_id",
    "conversation_id",
    "conversation_id_str",
    "discussion_id",
    "message_tree_id",
    "tree_id",
    "root",
    "root_id",
  ),
  "text": (
    "text",
    "full_text",
    "body",
    "content",
    "comment",
    "comment_text",
    "comment_body",
    "message",
    "selftext",
    "tweet",
  ),
  "author": (
    "user.screen_name",
    "user.username",
    "author.username",
    "author.name",
    "author",
    "author_name",
    "user",
    "username",
    "user_name",
    "screen_name",
    "speaker",
    "by",
    "from",
    "author_id",
    "user_id",
  ),
  "time": (
    "created_utc",
    "created_at",
    "created",
    "time",
    "timestamp",
    "date",
    "datetime",
    "posted",
    "posted_at",
    "published",
    "published_at",
    "created_date",
  ),
  "title": ("title", "subject", "headline"),
  "score": ("score", "votes", "upvotes", "ups", "likes", "points"),
  "label": ("label", "stance", "class"),
  "community": ("subreddit", "community", "forum", "board", "newsgroup", "channel"),
  "language": ("language", "lang"),
  "post_title": (
    "post_title",
    "submission_title",
    "thread_title",
    "topic_title",
    "link_title",
    "conversation_title",
  ),
  "post_text": ("post_text", "post_body", "submission_text", "submission_selftext"),
  "post_author": ("post_author", "submission_author", "thread_author"),
  "post_time": ("post_created_utc", "post_time", "post_date"),
}
ROLES = tuple(GUESSES)

_SQUEEZED = re.compile(r"[\s_\ufeff-]+")


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns of one table that are read.

  Attributes:
    by_role: the column of each role that the table has.
  """

  by_role: Mapping[str, str]

  @property
  def names(self) -> list[str]:
    """The columns, in the order of their roles."""
    return list(self.by_role.values())

  def __str__(self) -> str:
    return ", ".join(f"{role}={name}" for role, name in self.by_role.items())


def parse(
  given: Sequence[str],
  roles: Sequence[str] = ROLES,
  where: str = "--columns (TreeConfig.columns)",
) -> dict[str, list[str]]:
  """Returns the columns that settings name, by role.

  Args:
    given: `role=column` each, as in `TreeConfig.columns`; a role may have several.
    roles: that there are.
    where: the columns are given, for messages.

  Raises:
    UserError: if one is not of this form, or its role is unknown.
  """
  named: dict[str, list[str]] = {}
  for pair in given:
    role, equals, column = (part.strip() for part in pair.partition("="))
    if not equals or not column:
      raise UserError(f"{where}: {pair!r} must be role=column, such as id=key")
    if role not in roles:
      raise UserError(
        f"{where}: {role!r} is no role; there are"
        f" {', '.join(roles)}{suggestion(role, roles)}"
      )
    named.setdefault(role, []).append(column)
  return named


def find(names: Sequence[str], given: Sequence[str]) -> Columns | None:
  """Returns the columns to read of a table; None if it has no ids or no texts.

  Args:
    names: of all its columns.
    given: as in `parse`; a role whose columns this table lacks is guessed.
  """
  found = match(names, parse(given), ROLES)
  if "id" not in found.by_role or not {"text", "title"} & found.by_role.keys():
    return None
  return found


def match(
  names: Sequence[str], named: Mapping[str, Sequence[str]], roles: Sequence[str]
) -> Columns:
  """Returns which of a table's columns have a role.

  Args:
    names: of all its columns.
    named: from `parse`; a role whose columns this table lacks is guessed.
    roles: that columns may have.
  """
  taken = {column for columns in named.values() for column in columns}
  squeezed: dict[str, str] = {}
  for name in names:
    squeezed.setdefault(_squeeze(name), name)
  by_role: dict[str, str] = {}
  for role in roles:
    own = next((column for column in named.get(role, ()) if column in names), None)
    if own is None:
      free = (squeezed.get(_squeeze(guess)) for guess in GUESSES[role])
      own = next((name for name in free if name and name not in taken), None)
    if own is not None:
      by_role[role] = own
      taken.add(own)
  return Columns(by_role)


def check_once(path: str, names: Sequence[str], found: Columns) -> None:
  """Makes sure that what is read of a table is one column each.

  Args:
    path: the table, for the message.
    names: of all its columns.
    found: those to be read.

  Raises:
    UserError: if two columns have the name of one of them.
  """
  for role, name in found.by_role.items():
    if names.count(name) > 1:
      raise UserError(
        f"{path}: {names.count(name)} columns are called {name!r}, which is read as"
        f" {role}: rename all but one of them"
      )


def _squeeze(name: str) -> str:
  return _SQUEEZED.sub("", name).lower()
