"""The comment tree, and what became of all that trees were made of."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from typing import TYPE_CHECKING, NamedTuple

from commentree.tasks.config.preprocessing import TreeConfig

if TYPE_CHECKING:
  import rich.console
  import rich.table


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
# ...and of a tree; lines that are not trees are counted here too.
TREE_NO_ID = "skipped: id missing or of a wrong type"
TREE_NO_LIST = "skipped: no list of comments"
TREE_EMPTY = "skipped: no comments left"
TREE_EMPTY_NO_POST = "skipped: no comments left, post missing"
TREE_NOT_OBJECT = "skipped: not an object"
TREE_DUPLICATE = "dropped: post seen before"
KEPT_NO_POST = "kept: post missing, stands without text"
NO_POST = (KEPT_NO_POST, TREE_EMPTY_NO_POST)  # trees that no post was read for
# What was repaired inside a comment or tree.
REPAIRED_SURROGATES = "lone surrogates replaced"
REPAIRED_NUL = "NUL characters removed"
REPAIRED_TRANSLATION = "translation without text or language left out"
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
class ReadCounts:
  """What became of all that was read, counted by reason.

  Attributes:
    comments: each comment read, exactly once.
    trees: each tree, and each line that was none, exactly once.
    repaired: repairs; a comment may have several or none.
    missing: what the source says that it leaves out; in no other count.
    files: each file, exactly once.
  """

  comments: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  trees: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  repaired: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  missing: collections.Counter[str] = dataclasses.field(default_factory=_counter)
  files: collections.Counter[str] = dataclasses.field(default_factory=_counter)

  def __iadd__(self, other: ReadCounts) -> ReadCounts:
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
    """The commonest read_counts of trees and comments, in a few words."""
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

  def tell(self, console: rich.console.Console) -> None:
    """Prints the counts, and what they say is wrong with the data."""
    console.print(self.table())
    for remark in self.remarks():
      console.print(f"warning: {remark}", soft_wrap=True)

  def table(self) -> rich.table.Table:
    """The counts for a person to read."""
    import rich.table  # here, because settings are checked without it

    table = rich.table.Table("", "what became of it", box=None, pad_edge=False)
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    for field in dataclasses.fields(self):
      counts = getattr(self, field.name)
      for fate, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        shared = field.name not in ("repaired", "missing")
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


def post_text(title: str | None, selftext: str | None, config: TreeConfig) -> str:
  """A post's title, an empty line and its text; without what was deleted."""
  parts = [(text or "").strip() for text in (title, selftext)]
  living = [part for part in parts if part and not is_deleted(part)]
  if not living and config.deleted == "keep":
    return next(filter(None, parts), "")
  return "\n\n".join(living)


def count_stub(stub: Stub, read_counts: ReadCounts) -> None:
  """Counts a stub, and all that it lists."""
  read_counts.missing[MORE_STUBS] += 1
  if stub.ids:
    read_counts.missing[MORE_IDS] += len(stub.ids)
  if stub.number:
    read_counts.missing[MORE_COUNT] += stub.number
