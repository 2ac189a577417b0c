"""What a dataset holds, in numbers: counted exactly, shard by shard, and added up."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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

  def __iadd__(self, other: Statistics) -> Statistics:
    """Adds another's counts to these."""
    for name, counts in other.measures.items():
      self.measures[name].update(counts)
    for name in ("years", "subreddit_trees", "subreddit_comments"):
      getattr(self, name).update(getattr(other, name))
    for name in ("label_comments", "label_posts"):
      for label, number in getattr(other, name).items():
        count_label(getattr(self, name), label, number)
    return self

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
    }

  @classmethod
  def from_dict(cls, facts: Mapping[str, Any]) -> Statistics:
    """The inverse of `as_dict`."""
    return cls(
      measures={
        name: collections.Counter(dict(pairs))
        for name, pairs in facts["measures"].items()
      },
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
  """Mean, percentiles and a histogram by powers of two, of numbers and their counts.

  A percentile p is the least number that at least p % of all do not exceed. The
  histogram's key `a-b` stands for the numbers from a to b.
  """
  total = sum(counts.values())
  if not total:
    return {"number": 0}
  values = sorted(counts)
  reached = np.cumsum([counts[value] for value in values])
  histogram: dict[str, int] = {}
  for value in values:
    bits = value.bit_length()
    name = "0" if not bits else f"{2 ** (bits - 1)}-{2**bits - 1}"
    histogram["1" if bits == 1 else name] = histogram.get(name, 0) + counts[value]
  return {
    "number": total,
    "mean": round(sum(v * n for v, n in counts.items()) / total, 3),
    **{
      f"p{p}": values[int(np.searchsorted(reached, -(-total * p // 100)))]
      for p in PERCENTILES
    },
    "max": values[-1],
    "histogram": histogram,
  }


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
    self._starts.append(len(self._parents))
    self._parents += columns["parents"].tolist()
    self._texts += columns["texts"]
    self._bytes += sum(map(len, columns["texts"]))
    self._chars += [len(comment.text) for comment in tree.comments]
    self._times.append(columns["created_utc"])
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
    for name, values in (
      ("tree_comments", sizes - 1),
      ("tree_depth", np.array(self._deepest)),
      ("comment_words", _count_words(self._texts)[is_comment]),
      ("comment_chars", np.array(self._chars)[is_comment]),
      ("comment_depth", np.array(self._depths)[is_comment]),
      ("comment_replies", replies[is_comment]),
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
