"""Settings of reading, cleaning and annotating trees: plain data, importable fast."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from msgspec import Meta

from commentree.errors import UserError
from commentree.settings import PositiveInt, Share, check_fields, check_names
from commentree.tasks.config.objective import ObjectiveConfig

Deleted = Literal["splice", "keep"]
Orphans = Literal["attach", "drop"]
BareTrees = Literal["outside", "left_out"]
LongComments = Literal["truncate", "chunk"]
LabelSource = Literal["none", "label", "subreddit", "deleted_next"]
NumberSource = Literal["none", "label", "score"]
NumberTransform = Literal["none", "log"]

HELD_OUT_SHARE = 0.1
"""Of the trees, held out by a hash of their ids unless a setting says otherwise: the
same of files that a run reads and of datasets that are built, so that both hold out the
same trees. So many that a corpus of some dozens of trees has some; of large ones, less
does."""

UTTERANCE_META, CONVERSATION_META = "meta.", "conversation.meta."
"""What begins `TreeConfig.label_from`."""

SEQUENCE_ENDS = 2
"""Tokens that `SubtreeConfig.sequence_ends` puts around the words of a comment."""


@dataclasses.dataclass(frozen=True)
class TreeConfig:
  """What becomes of what is odd in a tree.

  Attributes:
    deleted: 'splice' takes deleted and removed comments out and hangs their replies
      under the nearest living ancestor; 'keep' leaves them in place as `<deleted>`.
    orphans: replies to a comment that is not in the tree: 'attach' hangs them under
      the post, the nearest ancestor known; 'drop' leaves them out, and what is below.
    target_post: whether the post itself is to be predicted.
    max_line_bytes: lines longer than this are skipped, so that a file without line
      ends cannot fill the memory.
    max_comment_chars: the text of a comment, a post's title and its text are cut to so
      many characters.
    columns: which columns of tables hold what, `role=column` each, such as
      ('id=comment_id', 'text=content'); the usual names are guessed. See docs/data.md.
    label_from: of ConvoKit corpora, what holds a comment's label: 'meta.KEY' in the
      `meta` of its utterance, 'conversation.meta.KEY' in that of its conversation. A
      key of a mapping within follows a further dot.
  """

  deleted: Deleted = "splice"
  orphans: Orphans = "attach"
  target_post: bool = False
  max_line_bytes: PositiveInt = 64 * 2**20
  max_comment_chars: PositiveInt = 1_000_000
  columns: tuple[str, ...] = ()
  label_from: str | None = None

  def __post_init__(self):
    check_fields(self)
    given = self.label_from
    if given is not None and not (
      isinstance(given, str)
      and any(
        given.startswith(owner) and given != owner
        for owner in (UTTERANCE_META, CONVERSATION_META)
      )
    ):
      raise UserError(
        f"TreeConfig.label_from = {given!r}: must be {UTTERANCE_META}KEY or"
        f" {CONVERSATION_META}KEY, such as 'meta.politeness'"
      )


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
  """Which steps of cleaning are taken; see `cleaning` for what each does.

  Attributes:
    html_entities: see `cleaning`, as for all that follow.
    urls: whether addresses become a marker.
    footnotes: whether footnotes and their marks go.
    quotes: whether quoted lines stand between markers.
    whitespace: whether white space is squeezed.
    copied_quotations: words of the shortest run that is taken out of a comment because
      a comment above it has the same: see `copied_quotations`. 0 takes out none, since
      such quotations are part of what people write; 6 was used to measure what
      ancestors are worth beyond what can be copied from them.
  """

  html_entities: bool = True
  urls: bool = True
  footnotes: bool = True
  quotes: bool = True
  whitespace: bool = True
  copied_quotations: Annotated[int, Meta(ge=0, le=100)] = 0

  def __post_init__(self):
    check_fields(self)


@dataclasses.dataclass(frozen=True)
class MarkersConfig:
  """Which author markers there are.

  Attributes:
    authors: whether comments begin with their author's marker.
    max_users: authors of a tree that have a marker of their own; all others share
      one. The vocabulary holds a subtree for each.
  """

  authors: bool = True
  max_users: Annotated[int, Meta(ge=0, le=10_000)] = 32

  def __post_init__(self):
    check_fields(self)


@dataclasses.dataclass(frozen=True)
class LabelsConfig:
  """Which labelled spans of comments become labels of their tokens.

  Attributes:
    names: labels to keep, such as ('claim', 'premise'); of their k-th, the first token
      is labelled 2k + 1 and the others 2k + 2, and 0 is what is outside. None by
      default, and then subtrees have no labels.
    bare_trees: what the tokens of trees are in which nothing has such a label:
      'outside', like any others (the default, for a corpus that was annotated
      throughout); or 'left_out', labelled -1, on which nothing is trained.
  """

  names: tuple[str, ...] = ()
  bare_trees: BareTrees = "outside"

  def __post_init__(self):
    check_fields(self)
    check_names("LabelsConfig", "names", self.names, "label")


@dataclasses.dataclass(frozen=True)
class CommentLabelsConfig:
  """What each comment is labelled with as a whole.

  Attributes:
    source: 'label' for the labels in the data; 'subreddit' for the community of the
      comment's tree; 'deleted_next' for whether a direct reply to it was deleted (as
      in Zhang et al., "Conversations Gone Awry", 2018); 'none' for no labels.
    names: the labels, as the data spell them: the k-th is class k, any other none. For
      'deleted_next' they are ('kept', 'deleted'), or two names of your own.
  """

  source: LabelSource = "none"
  names: tuple[str, ...] = ()

  def __post_init__(self):
    check_fields(self)
    check_names("CommentLabelsConfig", "names", self.names, "label")
    names = self.names
    if self.source == "deleted_next":
      names = names or ("kept", "deleted")
      if len(names) != 2:
        raise UserError(
          f"CommentLabelsConfig.names = {names!r}: 'deleted_next' has two classes, no"
          " reply deleted and one deleted"
        )
    elif self.source == "none":
      if names:
        raise UserError(
          f"CommentLabelsConfig.names = {names!r}: set CommentLabelsConfig.source to"
          " where labels come from: 'label', 'subreddit' or 'deleted_next'"
        )
    elif not names:
      raise UserError(
        f"CommentLabelsConfig.names is missing: name the labels that {self.source!r}"
        " may have, such as ('for', 'against')"
      )
    object.__setattr__(self, "names", names)


@dataclasses.dataclass(frozen=True)
class CommentNumbersConfig:
  """What number each comment has.

  A model learns (t(x) - mean) / standard_deviation of a number x, t being the
  transform; what it predicts is told as x again.

  Attributes:
    source: 'score' for the votes in the data; 'label' for its labels, read as numbers;
      'none' for no numbers.
    transform: 'log' for sign(x) log(1 + |x|), which few numbers far from all others,
      such as votes, do not rule; 'none' for x itself.
    mean: of the transformed numbers, about; the first lines of a run tell it.
    standard_deviation: likewise.
  """

  source: NumberSource = "none"
  transform: NumberTransform = "none"
  mean: float = 0.0
  standard_deviation: Annotated[float, Meta(ge=1e-9)] = 1.0

  def __post_init__(self):
    check_fields(self)
    if self.source == "none" and not self.keeps_numbers:
      raise UserError(
        "CommentNumbersConfig.source = 'none': set it to where numbers come from,"
        " 'label' or 'score'"
      )

  @property
  def keeps_numbers(self) -> bool:
    """Whether numbers are learnt as they are."""
    constants = (self.mean, self.standard_deviation)
    return self.transform == "none" and constants == (0, 1)

  def transformed(self, number: float) -> float:
    """The transform of a number."""
    if self.transform == "none":
      return number
    return math.copysign(math.log1p(abs(number)), number)

  def restored(self, learnt: float) -> float:
    """The number that a model learns as `learnt`; infinite where it is too large."""
    number = self.mean + self.standard_deviation * learnt
    if self.transform == "none" or not math.isfinite(number):
      return number
    try:
      return math.copysign(math.expm1(abs(number)), number)
    except OverflowError:
      return math.copysign(math.inf, number)


@dataclasses.dataclass(frozen=True)
class DiscourseMarkersConfig:
  """Masking that prefers words by which texts hang together, such as `however`.

  Attributes:
    file: phrases, one a line; 'english' for the list that comes with commentree; None
      to treat all words alike.
    share: share of the masked tokens that come from such phrases where a comment has
      enough of them.
  """

  file: str | None = None
  share: Share = 0.5

  def __post_init__(self):
    check_fields(self)
    if self.file is not None and not (isinstance(self.file, str) and self.file):
      raise UserError(
        f"DiscourseMarkersConfig.file = {self.file!r}: must be a file's name or"
        " 'english', in quotes"
      )


def most_context(max_ancestors: int) -> int:
  """Returns how many nodes a target's context may take: what it sees, and the post."""
  return max(max_ancestors, 2)


@dataclasses.dataclass(frozen=True)
class SubtreeConfig:
  """How trees become subtrees.

  Attributes:
    max_tree_size: most nodes in a subtree, context included.
    max_ancestors: most ancestors a comment can see; those nearest, and the post. If 1,
      its parent.
    max_comment_tokens: tokens after which a comment is cut.
    long_comments: 'truncate' drops what is beyond; 'chunk' makes further nodes of it,
      each seeing the comment's earlier chunks at distance 0.
    sequence_ends: whether each comment stands between the vocabulary's beginning and
      end of a sequence, as RoBERTa and BERT were trained: see `sequence_ends`. They
      count as two of its tokens.
  """

  max_tree_size: Annotated[int, Meta(ge=2)] = 64
  max_ancestors: PositiveInt = 16
  max_comment_tokens: Annotated[int, Meta(ge=4)] = 128
  long_comments: LongComments = "truncate"
  sequence_ends: bool = False

  def __post_init__(self):
    check_fields(self)
    context = most_context(self.max_ancestors)
    if self.max_tree_size <= context:
      raise UserError(
        f"SubtreeConfig.max_tree_size = {self.max_tree_size}: must exceed the {context}"
        " comments of a deep comment's context (SubtreeConfig.max_ancestors ="
        f" {self.max_ancestors}), which leave no room for the comment"
      )

  @property
  def room(self) -> int:
    """Most tokens of a node but for the ends of a sequence."""
    return self.max_comment_tokens - SEQUENCE_ENDS * self.sequence_ends


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
  """Which share of a comment's tokens to predict, and what stands in their place.

  Attributes:
    rate: share of a comment's maskable tokens, rounded, at least one token.
    mask_share: share of the chosen tokens replaced by `<mask>`.
    random_share: share replaced by a random token; the rest stays as it is.
    whole_words: whether all tokens of a word are chosen together. Never more tokens
      than `rate` allows, and fewer where no further word fits; a comment of which no
      word does has single tokens chosen.
  """

  rate: Share = 0.15
  mask_share: Share = 0.8
  random_share: Share = 0.1
  whole_words: bool = False

  def __post_init__(self):
    check_fields(self)
    if self.rate == 0:
      raise UserError("MaskingConfig.rate = 0: nothing would be predicted; try 0.15")
    if self.mask_share + self.random_share > 1 + 1e-9:
      raise UserError(
        "MaskingConfig.mask_share + MaskingConfig.random_share ="
        f" {self.mask_share + self.random_share:g}: must not exceed 1"
      )


@dataclasses.dataclass(frozen=True)
class PreprocessingConfig:
  """How a task turns trees into masked subtrees.

  Attributes:
    trees: what becomes of what is odd in a tree.
    cleaning: which steps of cleaning are taken.
    markers: author markers.
    subtrees: how trees are cut.
    masking: which tokens are predicted.
    labels: labels of tokens.
    discourse: words that are masked first.
    comment_labels: labels of comments.
    comment_numbers: numbers of comments.
    objective: what is predicted.
  """

  trees: TreeConfig = TreeConfig()
  cleaning: CleaningConfig = CleaningConfig()
  markers: MarkersConfig = MarkersConfig()
  subtrees: SubtreeConfig = SubtreeConfig()
  masking: MaskingConfig = MaskingConfig()
  labels: LabelsConfig = LabelsConfig()
  discourse: DiscourseMarkersConfig = DiscourseMarkersConfig()
  comment_labels: CommentLabelsConfig = CommentLabelsConfig()
  comment_numbers: CommentNumbersConfig = CommentNumbersConfig()
  objective: ObjectiveConfig = ObjectiveConfig()

  @property
  def objective_names(self) -> tuple[str, ...]:
    """The objective's name, alone."""
    return (self.objective.name,)
