"""The comment tree, and how a raw record becomes one whatever it holds.

No input raises: what cannot be used is left out, what can be mended is mended, and
`Fates` counts every comment exactly once, by what became of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .config import TreeConfig

if TYPE_CHECKING:
  import rich.table

POST = 0  # index of the post in `CommentTree.comments`

# What sites put in place of a comment's text; compared in lower case.
_DELETED_TEXTS = frozenset(
  {
    "[deleted]",
    "[removed]",
    "[deleted by user]",
    "[removed by reddit]",
    "[ removed by reddit ]",
    "[ removed by moderator ]",
  }
)
_LONGEST_DELETED_TEXT = 32  # with white space around
_MAX_INT64 = 2**63 - 1

# What can become of a comment...
KEPT = "kept"
KEPT_DELETED = "kept: deleted, as <deleted>"
KEPT_ORPHAN = "kept: parent missing, hung under the post"
SPLICED_DELETED = "spliced out: deleted"
SPLICED_EMPTY = "spliced out: empty"
SPLICED_NO_TEXT = "spliced out: body missing or no text"
DROPPED_NOT_OBJECT = "dropped: not an object"
DROPPED_NO_ID = "dropped: id missing or of a wrong type"
DROPPED_DUPLICATE = "dropped: id seen before in the tree"
DROPPED_SELF_PARENT = "dropped: its own parent"
DROPPED_CYCLE = "dropped: in or below a cycle of parents"
DROPPED_ORPHAN = "dropped: parent missing, or below such a comment"
DROPPED_WITH_TREE = "dropped: its tree has no id"
# ...and of a tree; a line that is none counts here too.
TREE_NO_ID = "skipped: id missing or of a wrong type"
TREE_NO_LIST = "skipped: no list of comments"
TREE_EMPTY = "skipped: no comments left"
TREE_NOT_OBJECT = "skipped: not an object"
# What was mended inside a comment or tree.
MENDED_SURROGATES = "lone surrogates replaced"
MENDED_NUL = "NUL characters removed"


@dataclasses.dataclass(frozen=True, slots=True)
class Comment:
  """A comment, or the post.

  Attributes:
    id: as the source names it.
    parent: index in the tree's `comments`; -1 for the post.
    author: None if unknown or deleted.
    text: as written, valid Unicode without NUL; the post's is its title, an empty
      line and its body, and may be empty.
    created_utc: seconds since 1970, or None.
  """

  id: str
  parent: int
  author: str | None
  text: str
  created_utc: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class CommentTree:
  """A post and the comments below it.

  Attributes:
    id: as the source names it.
    comments: the post first; a parent precedes its children, and siblings stand in
      order of time.
  """

  id: str
  comments: list[Comment]

  def depths(self) -> list[int]:
    """Hops from the post to each comment."""
    depths = [0] * len(self.comments)
    for index, comment in enumerate(self.comments):
      if comment.parent >= 0:
        depths[index] = depths[comment.parent] + 1
    return depths

  def children(self) -> list[list[int]]:
    """Indices of each comment's direct replies, in order."""
    children: list[list[int]] = [[] for _ in self.comments]
    for index, comment in enumerate(self.comments):
      if comment.parent >= 0:
        children[comment.parent].append(index)
    return children


def _counter() -> collections.Counter[str]:
  return collections.Counter()


@dataclasses.dataclass
class Fates:
  """What became of all that was read, counted by reason.

  Attributes:
    comments: each comment read, exactly once.
    trees: each tree, and each line that was none, exactly once.
    mended: repairs; a comment may have several or none.
    files: each file, exactly once.
  """

  comments: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  trees: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  mended: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  files: collections.Counter[str] = dataclasses.field(default_factory=_counter)

  def __iadd__(self, other: Fates) -> Fates:
    """Adds another's counts to these."""
    for field in dataclasses.fields(self):
      getattr(self, field.name).update(getattr(other, field.name))
    return self

  @property
  def kept(self) -> int:
    """Comments that are in a tree now."""
    return sum(n for fate, n in self.comments.items() if fate.startswith(KEPT))

  def total(self) -> int:
    """Comments, trees and files seen: 0 means that nothing was read."""
    return self.comments.total() + self.trees.total() + self.files.total()

  def as_dict(self) -> dict[str, dict[str, int]]:
    """The counts as JSON-able data."""
    return {
      field.name: dict(getattr(self, field.name)) for field in dataclasses.fields(self)
    }

  def table(self) -> rich.table.Table:
    """The counts for a person to read."""
    import rich.table  # here, because settings are checked without it

    table = rich.table.Table("", "what became of it", box=None, pad_edge=False)
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    for field in dataclasses.fields(self):
      counts = getattr(self, field.name)
      for fate, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        share = "" if field.name == "mended" else f"{number / counts.total():.2%}"
        table.add_row(field.name, fate, f"{number:,}", share)
    return table


def is_deleted(text: str) -> bool:
  """Whether a text only stands for one that was taken away."""
  return (
    len(text) <= _LONGEST_DELETED_TEXT
    and "[" in text
    and text.strip().lower() in _DELETED_TEXTS
  )


def build_tree(
  record: Mapping[str, Any], fates: Fates, config: TreeConfig
) -> CommentTree | None:
  """Builds a tree from a record of the tree JSONL form; any JSON value will do.

  Ids are compared as on Reddit: `t3_` marks a post's and `t1_` a comment's, with or
  without. A post without text stays, as the root. Replies whose parent is spliced out
  hang under the nearest living ancestor.

  Args:
    record: `id`, `title`, `selftext`, `author` and `comments`, each of those with
      `id`, `parent_id`, `author`, `body` and `created_utc`.
    fates: gets this tree's counts added to it.
    config: the choices there are.

  Returns:
    The tree, or None if there is nothing in it to learn from.
  """
  if not isinstance(record, Mapping):
    fates.trees[TREE_NOT_OBJECT] += 1
    return None
  raw = record.get("comments")
  tree_id = _identifier(record.get("id"), fates)
  if not isinstance(raw, list):
    fates.trees[TREE_NO_LIST] += 1
    return None
  if tree_id is None:
    fates.trees[TREE_NO_ID] += 1
    fates.comments[DROPPED_WITH_TREE] += len(raw)
    return None
  post = Comment(
    id=tree_id,
    parent=-1,
    author=_author(record.get("author"), fates),
    text=_post_text(record, fates, config),
    created_utc=_time(record.get("created_utc")),
  )
  candidates = _candidates(raw, fates, config)
  comments = _arrange(post, candidates, fates, config)
  if len(comments) == 1 and not (config.target_post and post.text):
    fates.trees[TREE_EMPTY] += 1
    return None
  fates.trees[KEPT] += 1
  return CommentTree(tree_id, comments)


@dataclasses.dataclass(slots=True)
class _Candidate:
  """A comment that can be told from others; its place is not known yet."""

  id: str
  parent_id: str | None
  author: str | None
  text: str
  created_utc: int | None
  fate: str


def _candidates(
  raw: list[Any], fates: Fates, config: TreeConfig
) -> dict[str, _Candidate]:
  """The comments that have an id of their own, by that id without its prefix."""
  candidates: dict[str, _Candidate] = {}
  for entry in raw:
    if not isinstance(entry, Mapping):
      fates.comments[DROPPED_NOT_OBJECT] += 1
      continue
    ident = _identifier(entry.get("id"), fates)
    key = (ident or "").removeprefix("t1_")
    if not ident or not key:
      fates.comments[DROPPED_NO_ID] += 1
      continue
    if key in candidates:
      fates.comments[DROPPED_DUPLICATE] += 1
      continue
    body = entry.get("body")
    text = _text(body, fates)
    if not isinstance(body, str):
      fate = SPLICED_NO_TEXT
    elif not text or text.isspace():
      fate = SPLICED_EMPTY
    elif is_deleted(text):
      fate = SPLICED_DELETED if config.deleted == "splice" else KEPT_DELETED
    else:
      fate = KEPT
    candidates[key] = _Candidate(
      ident,
      _identifier(entry.get("parent_id"), fates),
      _author(entry.get("author"), fates),
      text,
      _time(entry.get("created_utc")),
      fate,
    )
  return candidates


def _arrange(
  post: Comment,
  candidates: dict[str, _Candidate],
  fates: Fates,
  config: TreeConfig,
) -> list[Comment]:
  """Finds every candidate's place, from the post down; counts each one's fate."""
  post_key = post.id.removeprefix("t3_")
  # Replies as the source has them; None stands for the post.
  replies: dict[str | None, list[str]] = collections.defaultdict(list)
  orphans: list[str] = []
  for key, candidate in candidates.items():
    parent = _parent_key(candidate.parent_id, post_key)
    if parent == key:
      candidate.fate = DROPPED_SELF_PARENT
    elif parent is None or parent in candidates:
      replies[parent].append(key)
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
  fates.comments.update(candidate.fate for candidate in candidates.values())
  return _depth_first(post, candidates, living)


def _depth_first(
  post: Comment,
  candidates: dict[str, _Candidate],
  living: Mapping[str | None, list[str]],
) -> list[Comment]:
  """Lists post and living comments, siblings by time and then as they came."""
  place = {key: number for number, key in enumerate(candidates)}

  def time_and_place(key: str) -> tuple[float, int]:
    created = candidates[key].created_utc
    return (math.inf if created is None else created, place[key])

  comments = [post]
  waiting = [(key, POST) for key in living.get(None, ())]
  waiting.sort(key=lambda item: time_and_place(item[0]), reverse=True)
  while waiting:
    key, parent = waiting.pop()
    candidate = candidates[key]
    index = len(comments)
    comments.append(
      Comment(
        candidate.id, parent, candidate.author, candidate.text, candidate.created_utc
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

  A missing parent's key is the empty string, which is nobody's: ids are not empty.
  """
  if parent_id is None:
    return ""
  if parent_id.startswith("t1_"):
    return parent_id[3:]
  if parent_id.startswith("t3_"):
    return None if parent_id[3:] == post_key else ""
  return None if parent_id == post_key else parent_id


def _post_text(record: Mapping[str, Any], fates: Fates, config: TreeConfig) -> str:
  parts = [_text(record.get(field), fates).strip() for field in ("title", "selftext")]
  living = [part for part in parts if part and not is_deleted(part)]
  if not living and config.deleted == "keep":
    return next(filter(None, parts), "")
  return "\n\n".join(living)


def _text(value: object, fates: Fates) -> str:
  """A string as valid Unicode without NUL; empty for whatever else."""
  if not isinstance(value, str):
    return ""
  if not value.isascii():
    try:
      value.encode("utf-8")
    except UnicodeEncodeError:
      fates.mended[MENDED_SURROGATES] += 1
      # Halves that belong together become the character they stand for.
      value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  if "\0" in value:
    fates.mended[MENDED_NUL] += 1
    value = value.replace("\0", "")
  return value


def _identifier(value: object, fates: Fates) -> str | None:
  """An id as a string; numbers count as their digits."""
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value) if abs(value) <= _MAX_INT64 else None
  return _text(value, fates).strip() or None


def _author(value: object, fates: Fates) -> str | None:
  name = _text(value, fates)
  return None if not name or name.isspace() or is_deleted(name) else name


def _time(value: object) -> int | None:
  """Seconds since 1970 from a number or its digits; None if out of range."""
  if isinstance(value, str) and len(value) <= 20:
    try:
      value = float(value)
    except ValueError:
      return None
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  if not 0 <= value <= _MAX_INT64 // 2:  # also false for NaN
    return None
  return int(value)
