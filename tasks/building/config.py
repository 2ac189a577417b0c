"""Settings of a build: all that decides, with the input, what bytes come out."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import msgspec

from commentree.errors import UserError
from commentree.settings import NonNegativeInt, PositiveInt, Share, check_fields
from commentree.tasks.config.preprocessing import HELD_OUT_SHARE, TreeConfig

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class BuildConfig:
  """What goes into a dataset, and where.

  Times are seconds since 1970; a tree's time is its post's, or its earliest comment's
  where the post has none. None means no bound.

  Attributes:
    seed: of the shuffle.
    validation_share: of the trees, by a hash of their ids.
    test_share: of the trees, by the same hash.
    validation_after: trees of this time and later are held out, instead of a share.
    test_after: of those, the ones of this time and later are the test split.
    subreddits: only these, in lower case; empty for all.
    exclude_subreddits: never these, in lower case.
    after: only trees of this time and later.
    before: only trees earlier than this.
    min_score: comments with fewer votes are spliced out; votes unknown are enough.
    min_words: comments with fewer words are spliced out.
    max_words: comments with more words are spliced out.
    min_chars: comments with fewer characters are spliced out.
    max_chars: comments with more characters are spliced out.
    min_comments: trees that have fewer in the end are left out.
    max_comments: trees that have more in the end are left out.
    max_tree_comments: trees for which more than this were read are left out: a tree
      is held in memory to be built.
    max_tree_mb: trees for which more text than this was read, in MB of UTF-8, are left
      out, too.
    shard_mb: a shard has at most so much text, before anything is filtered.
    format: name of all files' format; None to tell it from each.
    trees: what becomes of what is odd in a tree.
  """

  seed: NonNegativeInt = 0
  validation_share: Share = HELD_OUT_SHARE
  test_share: Share = 0.0
  validation_after: int | None = None
  test_after: int | None = None
  subreddits: tuple[str, ...] = ()
  exclude_subreddits: tuple[str, ...] = ()
  after: int | None = None
  before: int | None = None
  min_score: int | None = None
  min_words: int | None = None
  max_words: int | None = None
  min_chars: int | None = None
  max_chars: int | None = None
  min_comments: NonNegativeInt = 1
  max_comments: int | None = None
  max_tree_comments: PositiveInt = 100_000
  max_tree_mb: PositiveInt = 32
  shard_mb: PositiveInt = 128
  format: str | None = None
  trees: TreeConfig = TreeConfig()

  def __post_init__(self):
    check_fields(self)
    if self.validation_share + self.test_share > 1:
      raise UserError(
        f"validation_share = {self.validation_share} and test_share ="
        f" {self.test_share}: are more than 1 together"
      )
    if self.test_after is not None and self.validation_after is None:
      raise UserError("test_after is of use only with validation_after: give both")
    for low_field, high_field in (
      ("after", "before"),
      ("validation_after", "test_after"),
      ("min_words", "max_words"),
      ("min_chars", "max_chars"),
      ("min_comments", "max_comments"),
    ):
      low, high = getattr(self, low_field), getattr(self, high_field)
      if low is not None and high is not None and low > high:
        raise UserError(
          f"{low_field} = {low} and {high_field} = {high}: leave nothing between them"
        )

  def splits(self) -> tuple[str, ...]:
    """The splits that there may be, in order."""
    if self.validation_after is not None:
      wanted = (True, True, self.test_after is not None)
    else:
      both = self.validation_share + self.test_share
      wanted = (both < 1, self.validation_share > 0, self.test_share > 0)
    return tuple(split for split, there in zip(SPLITS, wanted) if there)

  def as_dict(self) -> dict[str, Any]:
    """As JSON has it."""
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(self)))
