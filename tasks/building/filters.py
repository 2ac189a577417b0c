"""Which rows, comments and trees are wanted, and which split a tree belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.order import id_fraction
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts
from commentree.tasks.trees.row import Row

DROPPED_SUBREDDIT = "filtered: subreddit"
DROPPED_IN_LARGE_TREE = "filtered: in a tree of more than max_tree_comments"
DROPPED_IN_LONG_TREE = "filtered: in a tree of more text than max_tree_mb"
DROPPED_IN_TREE = "filtered: in a tree left out"
SPLICED_SCORE = "filtered, spliced out: min_score"
SPLICED_SHORT = "filtered, spliced out: min_words or min_chars"
SPLICED_LONG = "filtered, spliced out: max_words or max_chars"
TREE_SUBREDDIT = "filtered: subreddit"
TREE_LARGE = "filtered: max_tree_comments"
TREE_LONG = "filtered: max_tree_mb"
TREE_TIME = "filtered: time is before or after, or not known"
TREE_FEW = "filtered: min_comments"
TREE_MANY = "filtered: max_comments"
_POST_MISSING = ", post missing"

Judge = Callable[[Row], str | None]


def without_post(fate: str) -> str:
  """The fate of a tree that is left out, and of which no post was read."""
  return fate + _POST_MISSING


def posts_missing(read_counts: ReadCounts) -> int:
  """Trees that no post was read for, kept or not."""
  return sum(
    number
    for fate, number in read_counts.trees.items()
    if fate in comment_tree.NO_POST or fate.endswith(_POST_MISSING)
  )


def of_wanted_subreddits(
  rows: Iterable[Row], config: BuildConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  """Passes on the rows whose subreddit is wanted; counts the others."""
  only, never = frozenset(config.subreddits), frozenset(config.exclude_subreddits)
  for row in rows:
    subreddit = (row.subreddit or "").lower()
    if subreddit in never or (only and subreddit not in only):
      if row.is_post:
        read_counts.trees[TREE_SUBREDDIT] += 1
      elif row.stub is None:
        read_counts.comments[DROPPED_SUBREDDIT] += 1
    else:
      yield row


def comment_judge(config: BuildConfig) -> Judge | None:
  """What tells a comment's fate if it is not wanted; None if all are."""
  bounds = (
    config.min_score,
    config.min_words,
    config.max_words,
    config.min_chars,
    config.max_chars,
  )
  if all(bound is None for bound in bounds):
    return None
  min_score, min_words, max_words, min_chars, max_chars = bounds

  def judge(row: Row) -> str | None:
    text = row.text or ""
    if min_score is not None and row.score is not None and row.score < min_score:
      return SPLICED_SCORE
    if min_chars is not None and len(text) < min_chars:
      return SPLICED_SHORT
    if max_chars is not None and len(text) > max_chars:
      return SPLICED_LONG
    if min_words is not None or max_words is not None:
      words = len(text.split())
      if min_words is not None and words < min_words:
        return SPLICED_SHORT
      if max_words is not None and words > max_words:
        return SPLICED_LONG
    return None

  return judge


def tree_time(tree: CommentTree) -> int | None:
  """When a tree began: its post's time, or its earliest comment's."""
  post = tree.comments[comment_tree.POST].created_utc
  if post is not None:
    return post
  known = [c.created_utc for c in tree.comments if c.created_utc is not None]
  return min(known, default=None)


def tree_fate(tree: CommentTree, config: BuildConfig) -> str | None:
  """A tree's fate if it is not wanted."""
  if config.after is not None or config.before is not None:
    time = tree_time(tree)
    if (
      time is None
      or (config.after is not None and time < config.after)
      or (config.before is not None and time >= config.before)
    ):
      return TREE_TIME
  comments = len(tree.comments) - 1
  if comments < config.min_comments and not (config.trees.target_post and not comments):
    return TREE_FEW
  if config.max_comments is not None and comments > config.max_comments:
    return TREE_MANY
  return None


def leave_out(read_counts: ReadCounts, fate: str) -> None:
  """Turns the read_counts of one tree that was kept into those of one that was not."""
  missing = comment_tree.KEPT_NO_POST in read_counts.trees
  del read_counts.trees[comment_tree.KEPT_NO_POST if missing else comment_tree.KEPT]
  read_counts.trees[without_post(fate) if missing else fate] += 1
  for kept in [
    name for name in read_counts.comments if name.startswith(comment_tree.KEPT)
  ]:
    read_counts.comments[DROPPED_IN_TREE] += read_counts.comments.pop(kept)


def split_of(tree_id: str, tree: CommentTree, config: BuildConfig) -> str:
  """The split of a tree."""
  if config.validation_after is not None:
    time = tree_time(tree)
    if time is None or time < config.validation_after:
      return "train"
    later = config.test_after is not None and time >= config.test_after
    return "test" if later else "validation"
  place = id_fraction(tree_id)
  if place < config.validation_share:
    return "validation"
  if place < config.validation_share + config.test_share:
    return "test"
  return "train"
