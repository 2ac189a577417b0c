"""What an inspection shows, as plain data; see `inspecting` for where it comes from."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Literal

from commentree.settings import NonNegativeInt, PositiveInt, check_fields
from commentree.tasks.forests import forest_layout
from commentree.tasks.forests.forest_layout import ForestLayout, ForestShape
from commentree.tasks.forests.packing import Fill
from commentree.tasks.inspection.labelled_text import LabelledText

TokenKind = Literal["plain", "marker", "masked", "random", "kept"]
Side = Literal["decoder", "encoder"]


@dataclasses.dataclass(frozen=True)
class InspectionConfig:
  """Which trees to look at, and as of which moment of a run.

  Attributes:
    split: 'train' or 'validation'.
    count: number of trees.
    skip: trees to pass over before the first.
    tree_id: the first tree shown is the one of this id, if given.
    seed: of the run, for the masks.
    epoch: pass over the data, from 0; each draws other masks.
    lengths: tokens per row, {'encoder': 128, 'decoder': 128}.
    layout: rows and slots of a forest.
    max_comments: most comments of a tree that are shown.
  """

  split: str = "train"
  count: PositiveInt = 3
  skip: NonNegativeInt = 0
  tree_id: str | None = None
  seed: NonNegativeInt = 0
  epoch: NonNegativeInt = 0
  lengths: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"encoder": 128, "decoder": 128}
  )
  layout: ForestLayout = dataclasses.field(default_factory=ForestLayout)
  max_comments: PositiveInt = 20

  def __post_init__(self):
    check_fields(self)
    forest_layout.row_lengths(self.lengths)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenView:
  """A token of a target or of the post.

  Attributes:
    written: what it is in the text, with a space in front where the text has one;
      nothing if it is a later token of a character of several.
    read: what the model reads in its place, likewise.
    kind: 'marker' for markers and specials; 'masked', 'random' and 'kept' are to be
      predicted and read `<mask>`, a random token, and themselves.
  """

  written: str
  read: str
  kind: TokenKind

  @property
  def space(self) -> str:
    """What stands in front of the token: a space or nothing."""
    return " " if self.written[:1].isspace() else ""

  def texts(self) -> tuple[str, str]:
    """`written` and `read` without the space, and not to be overlooked if hidden."""
    written, read = self.written.strip(), self.read.strip()
    if self.kind in ("plain", "marker"):
      return written, read
    return _visible(written), _visible(read)


def _visible(text: str) -> str:
  """A text that would vanish, or change what stands in front of it, as it is drawn."""
  if not text:
    return "␣"
  return f"◌{text}" if unicodedata.combining(text[0]) else text


@dataclasses.dataclass(frozen=True, slots=True)
class AncestorView:
  """An ancestor that a target sees.

  Attributes:
    comment: its index in the tree; the comment's own for an earlier part of it.
    distance: hops up, 0 for an earlier part of the same comment.
    slot: its encoder slot in the target's forest.
  """

  comment: int
  distance: int
  slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class PartView:
  """A comment, or a chunk of a long one, as a target.

  Attributes:
    forest: index of the forest it is in.
    slot: its target slot there.
    row: its decoder row.
    column: where it begins in the row.
    tokens: as read and, where tokens are hidden, as to be predicted in their places.
    ancestors: what it sees, nearest first.
    shown: tokens of the comment that are read or predicted.
    number_predicted: tokens, labels or numbers to predict.
    predicted: what those are, in order, where it is not what `tokens` hide.
    breaks: places in `tokens` where something begins, and what that is.
  """

  forest: int
  slot: int
  row: int
  column: int
  tokens: tuple[TokenView, ...]
  ancestors: tuple[AncestorView, ...]
  shown: int
  number_predicted: int
  predicted: tuple[TokenView, ...] = ()
  breaks: tuple[tuple[int, str], ...] = ()

  def ancestor_groups(self) -> Iterator[tuple[AncestorView, int]]:
    """Each comment seen, with the number of encoder slots it takes, nearest first."""
    for _, same in itertools.groupby(self.ancestors, lambda seen: seen.comment):
      slots = list(same)
      yield slots[0], len(slots)


@dataclasses.dataclass(frozen=True, slots=True)
class CommentView:
  """A comment of a tree.

  Attributes:
    index: in the tree; the post is 0.
    id: as the source names it.
    parent: index of the comment answered; -1 for the post.
    depth: hops from the post.
    is_last: whether no sibling follows it.
    replies: direct ones.
    author: as the source names them, or None.
    marker: the token that stands for the author; may be empty.
    raw: text as written, of at most 2,000 characters.
    clean: text as tokenised, of at most 2,000 characters.
    left_out: characters of the raw text beyond those.
    changes: what cleaning did, as (operation, text) with 'equal', 'delete' and
      'insert'; empty if it changed nothing but white space.
    tokens_cut: tokens beyond what a run would read.
    context: tokens as context, if it is no target.
    parts: it as a target, one for each chunk; empty for context only.
    labelled: the raw text cut where labels begin and end; empty if it has none.
    label: of the whole comment, as the source has it, or None.
    reply_deleted: whether a reply to it was deleted.
    language: of its text, as the source has it, or None.
    translated: language of its translation, or None.
    saved: nats a token by which its ancestors make it likelier, or None.
    counts: how many of those are lost without an ancestor, by its index.
  """

  index: int
  id: str
  parent: int
  depth: int
  is_last: bool
  replies: int
  author: str | None
  marker: str
  raw: str
  clean: str
  left_out: int
  changes: tuple[tuple[str, str], ...]
  tokens_cut: int
  context: tuple[TokenView, ...]
  parts: tuple[PartView, ...]
  labelled: tuple[LabelledText, ...] = ()
  label: str | None = None
  reply_deleted: bool = False
  language: str | None = None
  translated: str | None = None
  saved: float | None = None
  counts: Mapping[int, float] = dataclasses.field(default_factory=dict)

  def notes(self) -> list[str]:
    """What the source says of the whole comment, in a few words each."""
    notes = [] if self.label is None else [f"label: {self.label}"]
    notes += ["a reply was deleted"] * self.reply_deleted
    for what, language in (("in", self.language), ("translated to", self.translated)):
      notes += [] if language is None else [f"{what} {language}"]
    if self.saved is not None:
      notes.append(f"ancestors save {self.saved:.3f} nats a token")
    return notes

  def counted(self, ancestor: AncestorView) -> str:
    """What is lost without an ancestor, as it is shown; nothing where not known."""
    nats = self.counts.get(ancestor.comment)
    if nats is None or not ancestor.distance:
      return ""
    return f"{round(nats, 3) + 0.0:+.3f}"  # not -0.000


@dataclasses.dataclass(frozen=True)
class TreeView:
  """A tree.

  Attributes:
    id: as the source names it.
    size: comments, the post included.
    max_depth: hops from the post to the farthest comment.
    subtrees: parts it was cut into.
    comments: the first `max_comments` of them, depth first.
  """

  id: str
  size: int
  max_depth: int
  subtrees: int
  comments: tuple[CommentView, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class BlockView:
  """Where a comment stands in packed rows.

  Attributes:
    slot: target or encoder slot, from 1.
    row: the row.
    column: where it begins.
    length: tokens.
    tree: index of the tree in `Inspection.trees`; None for one packed along.
    comment: index of the comment in its tree.
  """

  slot: int
  row: int
  column: int
  length: int
  tree: int | None
  comment: int


@dataclasses.dataclass(frozen=True)
class ForestView:
  """A forest: one example of a batch.

  Attributes:
    decoder: blocks of targets, by slot.
    encoder: blocks of encoded comments, by slot.
    masked: masked positions in use.
    fill: shares of positions with real tokens.
  """

  decoder: tuple[BlockView, ...]
  encoder: tuple[BlockView, ...]
  masked: int
  fill: Fill

  def blocks(self, side: Side) -> tuple[BlockView, ...]:
    """Blocks of one side."""
    return self.decoder if side == "decoder" else self.encoder


@dataclasses.dataclass(frozen=True)
class Inspection:
  """All there is to see.

  Attributes:
    task: name of the task.
    objective: what is predicted.
    config: what was asked for.
    shape: of a forest.
    trees: the trees.
    forests: those that hold the targets shown, filled up with trees that follow.
    fill: over all of them.
    row_each: the same comments in a row each: shares of real tokens, by side.
    ran_out: whether the data ended before the forests were full.
    cleaned: what cleaning replaced in the trees shown, by kind.
    read_counts: (what, what became of it, number) of all that was read on the way.
  """

  task: str
  objective: str
  config: InspectionConfig
  shape: ForestShape
  trees: tuple[TreeView, ...]
  forests: tuple[ForestView, ...]
  fill: Fill
  row_each: Mapping[str, float]
  ran_out: bool
  cleaned: Mapping[str, int]
  read_counts: tuple[tuple[str, str, int], ...]

  @property
  def scored(self) -> bool:
    """Whether it is known what ancestors count."""
    return any(comment.counts for tree in self.trees for comment in tree.comments)

  def labels(self) -> collections.Counter[str]:
    """Number of labels shown, by name."""
    return collections.Counter(
      label.name
      for tree in self.trees
      for comment in tree.comments
      for stretch in comment.labelled
      for label in stretch.opened
      if not label.goes_on
    )

  def parts(self) -> Iterator[PartView]:
    """All targets shown."""
    for tree in self.trees:
      for comment in tree.comments:
        yield from comment.parts

  def to_predict(self) -> tuple[str, str]:
    """How much is to be predicted in the targets shown, and of how many of them."""
    what = {"classify": "label", "tag": "label", "regress": "number"}.get(
      self.objective, "token"
    )
    numbers = [part.number_predicted for part in self.parts()]
    targets = count(sum(number > 0 for number in numbers), "target")
    return count(sum(numbers), what), f"to predict of {targets}"

  def tokens(self) -> collections.Counter[str]:
    """Number of tokens shown in targets, by kind."""
    return collections.Counter(
      token.kind for part in self.parts() for token in part.tokens
    )


# What the page says of each objective but 'mlm' and 'tlm', whose tokens say it.
EXPLAINED = {
  "clm": "the decoder reads the upper line and predicts the lower, each token from"
  " those before it",
  "span_corruption": "spans are taken out and predicted behind the comment: all see"
  " what is in front of ‖, and what is behind it is read in order",
  "regress": "the decoder reads the comment and predicts its number at its first token",
  "classify": "the decoder reads the comment and predicts its label at its first token",
  "tag": "the decoder reads the comment and predicts a label at each token, O where"
  " none is shown",
}


def letter(tree: int) -> str:
  """A tree's name in packed rows: A to Z, then AA."""
  name = ""
  tree += 1
  while tree:
    tree, rest = divmod(tree - 1, 26)
    name = chr(ord("A") + rest) + name
  return name


def count(number: int, one: str, many: str | None = None) -> str:
  """`1 tree`, `2 trees`, `3 replies`."""
  return f"{number:,} {one}" if number == 1 else f"{number:,} {many or one + 's'}"
