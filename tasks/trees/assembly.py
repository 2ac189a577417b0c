"""How rows of any content become a tree.

No input raises: what cannot be used is left out, what can be repaired is repaired, and
`ReadCounts` counts every comment exactly once, by what became of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.trees.comment_tree import (
  DROPPED_CYCLE,
  DROPPED_DUPLICATE,
  DROPPED_NO_ID,
  DROPPED_ORPHAN,
  DROPPED_SELF_PARENT,
  KEPT,
  KEPT_DELETED,
  KEPT_NO_POST,
  KEPT_ORPHAN,
  MORE_IDS,
  POST,
  SPLICED_DELETED,
  SPLICED_EMPTY,
  SPLICED_NO_TEXT,
  TREE_DUPLICATE,
  TREE_EMPTY,
  TREE_EMPTY_NO_POST,
  Comment,
  CommentTree,
  ReadCounts,
  Stub,
  Translation,
  count_stub,
  is_deleted,
  post_text,
)

if TYPE_CHECKING:
  from commentree.tasks.trees.row import Row


def assemble(
  rows: Iterable[Row],
  read_counts: ReadCounts,
  config: TreeConfig,
  unwanted: Callable[[Row], str | None] | None = None,
) -> CommentTree | None:
  """Builds a tree from its rows, which may hold anything.

  Ids are compared as on Reddit: `t3_` marks a post's and `t1_` a comment's, with or
  without. A post without text stays, as the root; so does one that is missing. Replies
  whose parent is spliced out hang under the nearest living ancestor.

  Args:
    rows: at least one, all of one `tree_id`; their order decides which of two equal
      ids counts, and between siblings of the same age. Of posts with unequal ids, that
      of the tree's id is the post, or else the first, and others answer it. Stubs
      count once for each place that they stand in, and not at all once all that they
      list was read.
    read_counts: gets this tree's counts added to it.
    config: the choices there are.
    unwanted: tells the fate of a comment that is to be spliced out though nothing is
      odd about it; None for one that is wanted.

  Returns:
    The tree, or None if there is nothing in it to learn from.
  """
  posts: list[Row] = []
  comment_rows: list[Row] = []
  stub_rows: list[Row] = []
  for row in rows:
    if row.stub is not None:
      stub_rows.append(row)
    elif not row.is_post:
      comment_rows.append(row)
    elif posts and same_post(row, posts[0]):
      read_counts.trees[TREE_DUPLICATE] += 1
    else:
      posts.append(row)
  post_row = next((row for row in posts if is_named(row)), posts[0] if posts else None)
  others = [row for row in posts if post_row and not same_post(row, post_row)]
  if copies := len(posts) - len(others) - (post_row is not None):
    read_counts.trees[TREE_DUPLICATE] += copies
  comment_rows[:0] = [
    row._replace(is_post=False, text=row.selftext, selftext=None) for row in others
  ]
  candidates = _candidates(comment_rows, read_counts, config, unwanted)
  _count_stubs(stub_rows, candidates, read_counts)
  if post_row is None and not comment_rows:
    return None
  post = _post(post_row, comment_rows, config)
  comments = _arrange(post, candidates, read_counts, config)
  missing = post_row is None
  if len(comments) == 1 and not (config.target_post and post.text):
    read_counts.trees[TREE_EMPTY_NO_POST if missing else TREE_EMPTY] += 1
    return None
  read_counts.trees[KEPT_NO_POST if missing else KEPT] += 1
  first = comment_rows[0] if comment_rows else None
  named = post_row if post_row and post_row.subreddit else first
  return CommentTree(post.id, comments, named.subreddit if named else None)


def same_post(row: Row, other: Row) -> bool:
  """Whether two posts of a tree are copies."""
  return _post_key(row) == _post_key(other)


def _post_key(row: Row) -> str:
  return (row.id or row.tree_id).removeprefix("t3_")


def is_named(row: Row) -> bool:
  """Whether a post is that which gave the tree its id."""
  return _post_key(row) == row.tree_id


def _post(row: Row | None, comment_rows: Sequence[Row], config: TreeConfig) -> Comment:
  """The root; without text, and named by its comments, if the post is missing."""
  if row is None:
    return Comment(comment_rows[0].tree_id, -1, None, "", None)
  return Comment(
    id=row.id or row.tree_id,
    parent=-1,
    author=_author(row.author),
    text=post_text(row.text, row.selftext, config),
    created_utc=row.created_utc,
    score=row.score,
    spans=row.spans,
    label=row.label,
    language=row.language,
    translation=_translation(row),
  )


def _translation(row: Row) -> Translation | None:
  if row.translation is None or row.translation_language is None:
    return None
  return Translation(row.translation_language, row.translation)


def _count_stubs(
  rows: Sequence[Row], read: Container[str], read_counts: ReadCounts
) -> None:
  """Counts what is left out and was not read from elsewhere, copies once."""
  places: dict[str, Stub] = {}
  for row in rows:
    stub = Stub.decode(row.stub or "")
    place = row.parent_id or row.id or ""
    before = places.get(place, Stub(0, ()))
    places[place] = Stub(max(stub.number, before.number), before.ids + stub.ids)
  ids: set[str] = set()
  for stub in places.values():
    left = {ident for ident in stub.ids if ident not in read}
    if left or not stub.ids:
      ids |= left
      count_stub(stub._replace(ids=()), read_counts)
  if ids:
    read_counts.missing[MORE_IDS] += len(ids)


@dataclasses.dataclass(slots=True)
class _Candidate:
  """A comment that can be told from others; its place is not known yet."""

  row: Row
  fate: str


def _candidates(
  rows: Sequence[Row],
  read_counts: ReadCounts,
  config: TreeConfig,
  unwanted: Callable[[Row], str | None] | None,
) -> dict[str, _Candidate]:
  """The comments that have an id of their own, by that id without its prefix."""
  candidates: dict[str, _Candidate] = {}
  for row in rows:
    key = (row.id or "").removeprefix("t1_")
    if not key:
      read_counts.comments[DROPPED_NO_ID] += 1
      continue
    if key in candidates:
      read_counts.comments[DROPPED_DUPLICATE] += 1
      continue
    text = row.text
    if text is None:
      fate = SPLICED_NO_TEXT
    elif not text or text.isspace():
      fate = SPLICED_EMPTY
    elif is_deleted(text):
      fate = SPLICED_DELETED if config.deleted == "splice" else KEPT_DELETED
    else:
      fate = (unwanted and unwanted(row)) or KEPT
    candidates[key] = _Candidate(row, fate)
  return candidates


def _arrange(
  post: Comment,
  candidates: dict[str, _Candidate],
  read_counts: ReadCounts,
  config: TreeConfig,
) -> list[Comment]:
  """Finds every candidate's place, from the post down; counts each one's fate."""
  post_key = post.id.removeprefix("t3_")
  # Replies as the source has them; None stands for the post.
  replies: dict[str | None, list[str]] = collections.defaultdict(list)
  orphans: list[str] = []
  lost_reply: set[str | None] = set()
  for key, candidate in candidates.items():
    parent = _parent_key(candidate.row.parent_id, post_key)
    if parent == key:
      candidate.fate = DROPPED_SELF_PARENT
    elif parent is None or parent in candidates:
      replies[parent].append(key)
      if candidate.fate in (SPLICED_DELETED, KEPT_DELETED):
        lost_reply.add(parent)
    else:
      orphans.append(key)
  if config.orphans == "attach":
    for key in orphans:
      if candidates[key].fate == KEPT:
        candidates[key].fate = KEPT_ORPHAN
      replies[None].append(key)
  else:
    for key in _below(orphans, replies):
      candidates[key].fate = DROPPED_ORPHAN

  # From the post down, each candidate's nearest living ancestor.
  living: dict[str | None, list[str]] = collections.defaultdict(list)
  home: dict[str | None, str | None] = {None: None}
  order: list[str | None] = [None]
  for parent in order:  # grows as it goes
    for key in replies.get(parent, ()):
      alive = candidates[key].fate.startswith(KEPT)
      home[key] = key if alive else home[parent]
      if alive:
        living[home[parent]].append(key)
      order.append(key)
  for key, candidate in candidates.items():
    if key not in home and candidate.fate not in (DROPPED_SELF_PARENT, DROPPED_ORPHAN):
      candidate.fate = DROPPED_CYCLE
  read_counts.comments.update(candidate.fate for candidate in candidates.values())
  return _depth_first(post, candidates, living, lost_reply)


def _depth_first(
  post: Comment,
  candidates: dict[str, _Candidate],
  living: Mapping[str | None, list[str]],
  lost_reply: Container[str | None],
) -> list[Comment]:
  """Lists post and living comments, siblings by time and then as they came."""
  place = {key: number for number, key in enumerate(candidates)}

  def time_and_place(key: str) -> tuple[float, int]:
    created = candidates[key].row.created_utc
    return (math.inf if created is None else created, place[key])

  if None in lost_reply:
    post = dataclasses.replace(post, reply_deleted=True)
  comments = [post]
  waiting = [(key, POST) for key in living.get(None, ())]
  waiting.sort(key=lambda item: time_and_place(item[0]), reverse=True)
  while waiting:
    key, parent = waiting.pop()
    row = candidates[key].row
    index = len(comments)
    comments.append(
      Comment(
        id=row.id or key,
        parent=parent,
        author=_author(row.author),
        text=row.text or "",
        created_utc=row.created_utc,
        score=row.score,
        spans=row.spans,
        label=row.label,
        reply_deleted=key in lost_reply,
        language=row.language,
        translation=_translation(row),
      )
    )
    below = living.get(key)
    if below:
      if len(below) > 1:
        below.sort(key=time_and_place, reverse=True)
      waiting += [(child, index) for child in below]
  return comments


def _below(tops: list[str], replies: Mapping[str | None, list[str]]) -> list[str]:
  """The given comments and all that hang below them."""
  found = list(tops)
  for key in found:  # grows as it goes
    found += replies.get(key, ())
  return found


def _parent_key(parent_id: str | None, post_key: str) -> str | None:
  """The parent's key among the candidates, or None for the post.

  A missing parent's key is the empty string, which no comment has: ids are not empty.
  """
  if parent_id is None:
    return None
  if parent_id.startswith("t1_"):
    return parent_id[3:]
  if parent_id.startswith("t3_"):
    return None if parent_id[3:] == post_key else ""
  return None if parent_id == post_key else parent_id


def _author(name: str | None) -> str | None:
  return None if not name or name.isspace() or is_deleted(name) else name
