"""The comment tree, and how rows become one whatever they hold.

No input raises: what cannot be used is left out, what can be mended is mended, and
`Fates` counts every comment exactly once, by what became of it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .config import TreeConfig

if TYPE_CHECKING:
  import rich.table

  from .readers.rows import Row

POST = 0  # index of the post in `CommentTree.comments`

# What sites and archives put in place of a text, white space around it taken off.
# Reddit says why, some of it as a link: "[ Removed by Reddit on account of violating
# the [content policy](/help/contentpolicy). ]".
_DELETED_TEXT = re.compile(
  r"\[\s*(?:(?:comment|post|message)\s)?(?:deleted|removed|unavailable|redacted)"
  r"(?:\sby\s(?:the\s)?(?:user|author|op|mods?|moderators?|admins?|reddit))?\s*\]"
  r"|\[\s*removed\sby\sreddit\s(?:[^\[\]\n]|\[[^\[\]\n]*\]\([^()\n]*\))*\]",
  re.IGNORECASE,
)
_LONGEST_DELETED_TEXT = 300  # with white space around

# Of all comments, more orphans than this come of ids that do not fit.
_ODD_SHARE, _LEAST_ORPHANS = 0.5, 10

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
DROPPED_NO_TREE = "dropped: id of its post missing or of a wrong type"
DROPPED_NEITHER = "dropped: neither a comment nor a post"
# ...and of a tree; a line that is none counts here too.
TREE_NO_ID = "skipped: id missing or of a wrong type"
TREE_NO_LIST = "skipped: no list of comments"
TREE_EMPTY = "skipped: no comments left"
TREE_EMPTY_NO_POST = "skipped: no comments left, post missing"
TREE_NOT_OBJECT = "skipped: not an object"
TREE_DUPLICATE = "dropped: post seen before"
KEPT_NO_POST = "kept: post missing, stands without text"
NO_POST = (KEPT_NO_POST, TREE_EMPTY_NO_POST)  # trees that no post was read for
# What was mended inside a comment or tree.
MENDED_SURROGATES = "lone surrogates replaced"
MENDED_NUL = "NUL characters removed"
MENDED_TRANSLATION = "translation without text or language left out"
# What a source says that it left out.
MORE_STUBS = "stubs (kind: more)"
MORE_IDS = "comments whose ids stubs list"
MORE_COUNT = "comments that stubs say there are"


class Span(NamedTuple):
  """A labelled part of a text: `text[start:end]`, by code points."""

  start: int
  end: int
  label: str


class Translation(NamedTuple):
  """What a comment says, in another language."""

  language: str
  text: str


class Stub(NamedTuple):
  """Comments that a source left out, in one place.

  Attributes:
    number: how many it says there are.
    ids: those that it lists, without `t1_`.
  """

  number: int
  ids: tuple[str, ...]

  def encode(self) -> str:
    """The stub as a row has it."""
    return json.dumps(self)

  @classmethod
  def decode(cls, column: str) -> Stub:
    """The inverse of `encode`."""
    number, ids = json.loads(column)
    return cls(number, tuple(ids))


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
    score: votes, or None.
    spans: labelled parts of `text`, in order of their starts, outer before inner.
    label: what the source says of the whole comment, or None.
    reply_deleted: whether a direct reply to it was deleted or removed, be that reply
      still in the tree or not.
    language: what the source calls the text's language, or None.
    translation: the text in another language, or None.
  """

  id: str
  parent: int
  author: str | None
  text: str
  created_utc: int | None
  score: int | None = None
  spans: tuple[Span, ...] = ()
  label: str | None = None
  reply_deleted: bool = False
  language: str | None = None
  translation: Translation | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CommentTree:
  """A post and the comments below it.

  Attributes:
    id: as the source names it.
    comments: the post first; a parent precedes its children, and siblings stand in
      order of time.
    subreddit: the community it was written in, or None.
  """

  id: str
  comments: list[Comment]
  subreddit: str | None = None

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
    missing: what the source says that it leaves out; in no other count.
    files: each file, exactly once.
  """

  comments: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  trees: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  mended: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  missing: collections.Counter[str] = dataclasses.field(default_factory=_counter)
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

  def told(self) -> str:
    """The commonest fates of trees and comments, in a few words."""
    parts = [
      f"{number:,} {what} {fate}"
      for what, counts in (("trees", self.trees), ("comments", self.comments))
      for fate, number in counts.most_common(3)
    ]
    return "; ".join(parts) or "they hold none"

  def remarks(self) -> list[str]:
    """What the counts say is wrong with the data, a sentence each."""
    orphans = self.comments[KEPT_ORPHAN] + self.comments[DROPPED_ORPHAN]
    share = orphans / max(1, self.comments.total())
    if orphans < _LEAST_ORPHANS or share < _ODD_SHARE:
      return []
    return [
      f"{share:.0%} of the comments answer one that is not there: this looks like ids"
      " of a form other than their parents', not like a dump with holes; compare `id`"
      " and `parent_id` of a few comments (docs/data.md says how they are read)"
    ]

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
        shared = field.name not in ("mended", "missing")
        share = f"{number / counts.total():.2%}" if shared else ""
        table.add_row(field.name, fate, f"{number:,}", share)
    return table


def is_deleted(text: str) -> bool:
  """Whether a text only stands for one that was taken away."""
  return (
    len(text) <= _LONGEST_DELETED_TEXT
    and "[" in text
    and _DELETED_TEXT.fullmatch(text.strip()) is not None
  )


def assemble(
  rows: Iterable[Row],
  fates: Fates,
  config: TreeConfig,
  unwanted: Callable[[Row], str | None] | None = None,
) -> CommentTree | None:
  """Builds a tree from its rows, whatever they hold.

  Ids are compared as on Reddit: `t3_` marks a post's and `t1_` a comment's, with or
  without. A post without text stays, as the root; so does one that is missing. Replies
  whose parent is spliced out hang under the nearest living ancestor.

  Args:
    rows: at least one, all of one `tree_id`; their order decides which of two equal
      ids counts, and between siblings of the same age. Of posts with unequal ids, that
      of the tree's id is the post, or else the first, and others answer it. Stubs
      count once for each place that they stand in, and not at all once all that they
      list was read.
    fates: gets this tree's counts added to it.
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
      fates.trees[TREE_DUPLICATE] += 1
    else:
      posts.append(row)
  post_row = next((row for row in posts if _is_named(row)), posts[0] if posts else None)
  others = [row for row in posts if post_row and not same_post(row, post_row)]
  if copies := len(posts) - len(others) - (post_row is not None):
    fates.trees[TREE_DUPLICATE] += copies
  comment_rows[:0] = [
    row._replace(is_post=False, text=row.selftext, selftext=None) for row in others
  ]
  candidates = _candidates(comment_rows, fates, config, unwanted)
  _count_stubs(stub_rows, candidates, fates)
  if post_row is None and not comment_rows:
    return None
  post = _post(post_row, comment_rows, config)
  comments = _arrange(post, candidates, fates, config)
  missing = post_row is None
  if len(comments) == 1 and not (config.target_post and post.text):
    fates.trees[TREE_EMPTY_NO_POST if missing else TREE_EMPTY] += 1
    return None
  fates.trees[KEPT_NO_POST if missing else KEPT] += 1
  first = comment_rows[0] if comment_rows else None
  named = post_row if post_row and post_row.subreddit else first
  return CommentTree(post.id, comments, named.subreddit if named else None)


def same_post(row: Row, other: Row) -> bool:
  """Whether two posts of a tree are copies."""
  return _post_key(row) == _post_key(other)


def _post_key(row: Row) -> str:
  return (row.id or row.tree_id).removeprefix("t3_")


def _is_named(row: Row) -> bool:
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


def _count_stubs(rows: Sequence[Row], read: Container[str], fates: Fates) -> None:
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
      count_stub(stub._replace(ids=()), fates)
  if ids:
    fates.missing[MORE_IDS] += len(ids)


def count_stub(stub: Stub, fates: Fates) -> None:
  """Counts a stub, and all that it lists."""
  fates.missing[MORE_STUBS] += 1
  if stub.ids:
    fates.missing[MORE_IDS] += len(stub.ids)
  if stub.number:
    fates.missing[MORE_COUNT] += stub.number


@dataclasses.dataclass(slots=True)
class _Candidate:
  """A comment that can be told from others; its place is not known yet."""

  row: Row
  fate: str


def _candidates(
  rows: Sequence[Row],
  fates: Fates,
  config: TreeConfig,
  unwanted: Callable[[Row], str | None] | None,
) -> dict[str, _Candidate]:
  """The comments that have an id of their own, by that id without its prefix."""
  candidates: dict[str, _Candidate] = {}
  for row in rows:
    key = (row.id or "").removeprefix("t1_")
    if not key:
      fates.comments[DROPPED_NO_ID] += 1
      continue
    if key in candidates:
      fates.comments[DROPPED_DUPLICATE] += 1
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
  fates: Fates,
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
  fates.comments.update(candidate.fate for candidate in candidates.values())
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

  comments = [dataclasses.replace(post, reply_deleted=None in lost_reply)]
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

  A missing parent's key is the empty string, which is nobody's: ids are not empty.
  """
  if parent_id is None:
    return None
  if parent_id.startswith("t1_"):
    return parent_id[3:]
  if parent_id.startswith("t3_"):
    return None if parent_id[3:] == post_key else ""
  return None if parent_id == post_key else parent_id


def post_text(title: str | None, selftext: str | None, config: TreeConfig) -> str:
  """A post's title, an empty line and its text; without what was deleted."""
  parts = [(text or "").strip() for text in (title, selftext)]
  living = [part for part in parts if part and not is_deleted(part)]
  if not living and config.deleted == "keep":
    return next(filter(None, parts), "")
  return "\n\n".join(living)


def _author(name: str | None) -> str | None:
  return None if not name or name.isspace() or is_deleted(name) else name
