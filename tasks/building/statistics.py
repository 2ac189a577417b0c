"""What a dataset holds, in numbers: counted exactly, shard by shard, and added up."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from commentree.tasks.subtrees import comment_numbers
from commentree.tasks.trees.comment_tree import CommentTree

PERCENTILES = (50, 90, 99)
TOP_SUBREDDITS = 50
TOP_LABELS = 20
NO_SUBREDDIT = "(none)"
OTHER_LABELS = "(others)"
NO_YEAR = "(unknown)"

# Trees are gathered until there are so many comments, or bytes of them, to be counted
# at once; of words, so many bytes.
_COMMENTS_AT_ONCE = 8_192
_BYTES_AT_ONCE = 2**22
_WORD_BYTES_AT_ONCE = 2**20
_SECONDS_OF_DAY = 86_400
# Labels may be any texts; those seen first are counted, further ones as `OTHER_LABELS`.
_MOST_LABELS = 1_000

# By measure: what one number of it stands for.
MEASURES = {
  "tree_comments": "comments of a tree, the post left out",
  "tree_depth": "hops from the post to a tree's deepest comment",
  "comment_words": "words of a comment, parted by ASCII white space",
  "comment_chars": "characters (code points) of a comment",
  "comment_depth": "hops from the post to a comment",
  "comment_replies": "direct replies to a comment",
  "comment_score": "score of a comment that has one",
}

_IS_SPACE = np.zeros(256, np.bool_)
_IS_SPACE[list(b" \t\n\r\f\v")] = True


def _counts() -> collections.Counter[Any]:
  return collections.Counter()


@dataclasses.dataclass
class Statistics:
  """Counts of trees and comments.

  Attributes:
    measures: by measure, how often each number occurs.
    years: comments by the year of their writing.
    subreddit_trees: trees by subreddit.
    subreddit_comments: comments by subreddit.
    label_comments: comments by label, those without one left out.
    label_posts: posts by label.
    label_numbers: of comments whose label is a finite number: how many they are, the
      sum of the numbers, and that of their squares.
  """

  measures: dict[str, collections.Counter[int]] = dataclasses.field(
    default_factory=lambda: {name: _counts() for name in MEASURES}
  )
  years: collections.Counter[str] = dataclasses.field(default_factory=_counts)
  subreddit_trees: collections.Counter[str] = dataclasses.field(default_factory=_counts)
  subreddit_comments: collections.Counter[str] = dataclasses.field(
    default_factory=_counts
  )
  label_comments: collections.Counter[str] = dataclasses.field(default_factory=_counts)
  label_posts: collections.Counter[str] = dataclasses.field(default_factory=_counts)
  label_numbers: tuple[float, float, float] = (0, 0, 0)

  def __iadd__(self, other: Statistics) -> Statistics:
    """Adds another's counts to these."""
    for name, counts in other.measures.items():
      self.measures[name].update(counts)
    for name in ("years", "subreddit_trees", "subreddit_comments"):
      getattr(self, name).update(getattr(other, name))
    for name in ("label_comments", "label_posts"):
      for label, number in getattr(other, name).items():
        count_label(getattr(self, name), label, number)
    self.add_numbers(*other.label_numbers)
    return self

  def add_numbers(self, *moments: float) -> None:
    """Adds a number of labels, their sum and that of their squares."""
    count, total, squares = map(sum, zip(self.label_numbers, moments, strict=True))
    self.label_numbers = (count, total, squares)

  def as_dict(self) -> dict[str, Any]:
    """All counts as JSON-able data."""
    return {
      "measures": {
        name: sorted(counts.items()) for name, counts in self.measures.items()
      },
      "years": dict(self.years),
      "subreddit_trees": dict(self.subreddit_trees),
      "subreddit_comments": dict(self.subreddit_comments),
      "label_comments": dict(self.label_comments),
      "label_posts": dict(self.label_posts),
      "label_numbers": self.label_numbers,
    }

  @classmethod
  def from_dict(cls, facts: Mapping[str, Any]) -> Statistics:
    """The inverse of `as_dict`."""
    return cls(
      measures={
        name: collections.Counter(dict(pairs))
        for name, pairs in facts["measures"].items()
      },
      label_numbers=tuple(facts["label_numbers"]),
      **{
        name: collections.Counter(facts[name])
        for name in (
          "years",
          "subreddit_trees",
          "subreddit_comments",
          "label_comments",
          "label_posts",
        )
      },
    )

  def summary(self) -> dict[str, Any]:
    """What `STATS.json` says: distributions, years, largest subreddits, labels."""
    largest = sorted(
      self.subreddit_comments.items(), key=lambda item: (-item[1], item[0])
    )
    return {
      "distributions": {
        name: distribution(counts) for name, counts in self.measures.items()
      },
      "comments_by_year": dict(sorted(self.years.items())),
      "subreddits": len(self.subreddit_trees),
      "top_subreddits": {
        name: {"trees": self.subreddit_trees[name], "comments": comments}
        for name, comments in largest[:TOP_SUBREDDITS]
      },
      "labels": self._labels(),
      "label_numbers": self._label_numbers(),
    }

  def _label_numbers(self) -> dict[str, float]:
    """How many comments have a number for a label, and which."""
    count, total, squares = self.label_numbers
    if not count:
      return {"number": 0}
    mean = total / count
    deviation = math.sqrt(max(0.0, squares / count - mean**2))
    return {
      "number": int(count),
      "mean": float(f"{mean:.6g}"),
      "standard_deviation": float(f"{deviation:.6g}"),
    }

  def _labels(self) -> dict[str, dict[str, int]]:
    """Comments and posts of the commonest labels, and of all others together."""
    both = self.label_comments + self.label_posts
    others = both.pop(OTHER_LABELS, 0)
    largest = sorted(both, key=lambda label: (-both[label], label))
    found = {
      label: {
        "comments": self.label_comments[label],
        "posts": self.label_posts[label],
      }
      for label in largest[:TOP_LABELS]
    }
    if others or len(largest) > TOP_LABELS:
      found[OTHER_LABELS] = {
        kind: counts.total() - sum(named[kind] for named in found.values())
        for kind, counts in (
          ("comments", self.label_comments),
          ("posts", self.label_posts),
        )
      }
    return found


def count_label(counts: collections.Counter[str], label: str, number: int = 1) -> None:
  """Adds to a label's count, of which there are not more than can be held."""
  if label not in counts and len(counts) >= _MOST_LABELS:
    label = OTHER_LABELS
  counts[label] += number


def distribution(counts: Mapping[int, int]) -> dict[str, Any]:
  """Mean, spread, percentiles and a histogram, of numbers and their counts.

  A percentile p is the least number that at least p % of all do not exceed. The
  histogram is by powers of two: its key `a-b` stands for the numbers from a to b, `-a`
  and `-b--a` for negative ones.
  """
  total = sum(counts.values())
  if not total:
    return {"number": 0}
  values = sorted(counts)
  reached = np.cumsum([counts[value] for value in values])
  histogram: dict[str, int] = {}
  for value in values:
    name = _power_of_two(value)
    histogram[name] = histogram.get(name, 0) + counts[value]
  mean = sum(v * n for v, n in counts.items()) / total
  squares = sum((v - mean) ** 2 * n for v, n in counts.items())
  return {
    "number": total,
    "mean": round(mean, 3),
    "standard_deviation": round(math.sqrt(squares / total), 3),
    **{
      f"p{p}": values[int(np.searchsorted(reached, -(-total * p // 100)))]
      for p in PERCENTILES
    },
    "max": values[-1],
    "histogram": histogram,
  }


def _power_of_two(value: int) -> str:
  """The bar of a histogram that a number is counted in."""
  if abs(value) < 2:
    return str(value)
  high = 2 ** abs(value).bit_length() - 1
  low = (high + 1) // 2
  return f"{low}-{high}" if value > 0 else f"-{high}--{low}"


class Counting:
  """Counts trees that are given one after the other."""

  def __init__(self):
    self._statistics = Statistics()
    self._forget()

  def _forget(self) -> None:
    self._texts: list[bytes] = []
    self._bytes = 0
    self._chars: list[int] = []
    self._parents: list[int] = []
    self._times: list[np.ndarray] = []
    self._scores: list[int | None] = []
    self._starts: list[int] = []
    self._depths: list[int] = []
    self._deepest: list[int] = []

  def add(self, tree: CommentTree, columns: Mapping[str, Any]) -> None:
    """Counts a tree.

    Args:
      tree: the tree.
      columns: the same as columns, in which texts are bytes already.
    """
    size = len(tree.comments)
    name = tree.subreddit or NO_SUBREDDIT
    self._statistics.subreddit_trees[name] += 1
    self._statistics.subreddit_comments[name] += size - 1
    for comment in tree.comments:
      if comment.label is not None:
        is_post = comment.parent < 0
        count_label(
          self._statistics.label_posts if is_post else self._statistics.label_comments,
          comment.label,
        )
        number = math.nan if is_post else comment_numbers.read(comment.label)
        if math.isfinite(number):
          self._statistics.add_numbers(1, number, number**2)
    self._starts.append(len(self._parents))
    self._parents += columns["parents"].tolist()
    self._texts += columns["texts"]
    self._bytes += sum(map(len, columns["texts"]))
    self._chars += [len(comment.text) for comment in tree.comments]
    self._times.append(columns["created_utc"])
    self._scores += [comment.score for comment in tree.comments]
    depths = tree.depths()
    self._depths += depths
    self._deepest.append(max(depths))
    if len(self._parents) >= _COMMENTS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
      self._count()

  def result(self) -> Statistics:
    """The counts of all trees so far."""
    self._count()
    return self._statistics

  def _count(self) -> None:
    """Counts what was gathered; posts are no comments."""
    if not self._starts:
      return
    starts = np.array(self._starts)
    number = len(self._parents)
    sizes = np.diff(np.append(starts, number))
    is_comment = np.ones(number, np.bool_)
    is_comment[starts] = False
    parents = np.array(self._parents) + np.repeat(starts, sizes)
    replies = np.bincount(parents[is_comment], minlength=number)
    times = np.concatenate(self._times)[is_comment]
    scores = [
      score
      for score, counts in zip(self._scores, is_comment, strict=True)
      if counts and score is not None
    ]
    for name, values in (
      ("tree_comments", sizes - 1),
      ("tree_depth", np.array(self._deepest)),
      ("comment_words", _count_words(self._texts)[is_comment]),
      ("comment_chars", np.array(self._chars)[is_comment]),
      ("comment_depth", np.array(self._depths)[is_comment]),
      ("comment_replies", replies[is_comment]),
      ("comment_score", np.array(scores, np.int64)),
    ):
      numbers, counts = np.unique(values, return_counts=True)
      found = dict(zip(numbers.tolist(), counts.tolist()))
      self._statistics.measures[name].update(found)
    self._statistics.years.update(_count_years(times))
    self._forget()


def _count_words(texts: Sequence[bytes]) -> np.ndarray:
  """The number of words in each text."""
  found: list[np.ndarray] = []
  first = held = 0
  for number, text in enumerate(texts):
    held += len(text)
    if held >= _WORD_BYTES_AT_ONCE or number == len(texts) - 1:
      found.append(_count_words_at_once(texts[first : number + 1]))
      first, held = number + 1, 0
  return np.concatenate(found)


def _count_words_at_once(texts: Sequence[bytes]) -> np.ndarray:
  # Every text begins behind a space, so that no word spans two.
  together = np.frombuffer(b"".join(b" " + text for text in texts), np.uint8)
  is_space = _IS_SPACE[together]
  begins = np.flatnonzero(is_space[:-1] & ~is_space[1:])
  lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
  ends = np.cumsum(lengths)
  return np.searchsorted(begins, ends - 1) - np.searchsorted(begins, ends - lengths)


def _count_years(times: np.ndarray) -> dict[str, int]:
  known = times[times >= 0]
  days = np.minimum(known // _SECONDS_OF_DAY, 2_932_896)  # to the end of year 9999
  years, counts = np.unique(
    days.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64) + 1970,
    return_counts=True,
  )
  found = {str(year): count for year, count in zip(years.tolist(), counts.tolist())}
  if len(known) < len(times):
    found[NO_YEAR] = len(times) - len(known)
  return found
