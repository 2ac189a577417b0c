"""What readers make of every source format: rows, each a post or a comment.

A reader takes out of its format what there is to know of a comment, makes text of ids
and whole numbers of times, and says which tree the comment belongs to; it judges
nothing. Where the rows of a tree lie apart, as in a Pushshift dump, whoever wants trees
groups them: in memory (`readers.iter_trees`), out of core or on a cluster (`building`).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files, unread
from commentree.tasks.trees.comment_tree import (
  DROPPED_NO_TREE,
  REPAIRED_NUL,
  REPAIRED_SURROGATES,
  TREE_NO_ID,
  ReadCounts,
  Stub,
  count_stub,
  post_text,
)
from commentree.tasks.trees.row import Row

POST_PREFIX, COMMENT_PREFIX = "t3_", "t1_"

CUT = "text longer than max_comment_chars cut"
LABEL_LEFT_OUT = "labels that are lists or objects left out"
NAME_LEFT_OUT = "names of more than 1,000 characters left out"
_ROW_BYTES = 160
MAX_NAME_CHARS = 1_000  # of an id, an author, a subreddit, a label, a language

_MAX_INT64 = 2**63 - 1
_MAX_NUMBER = 10**76  # of an id; Arrow's decimals have no more digits
_MAX_INT32 = 2**31 - 1

_NAMES = (
  "id",
  "parent_id",
  "author",
  "subreddit",
  "label",
  "language",
  "translation_language",
)


def _never(path: str) -> bool:
  del path
  return False


def _nothing(path: str) -> list[str]:
  del path
  return []


def _no_remark(paths: Sequence[str], config: TreeConfig) -> list[str]:
  del paths, config
  return []


@dataclasses.dataclass(frozen=True)
class Format:
  """A source format; `readers.FORMATS` holds one for each.

  Attributes:
    name: what `--format` calls it.
    suffixes: endings of its files' names without that of a compression, by which files
      are found in a folder.
    matches: whether a file of this name whose contents begin so (uncompressed, in
      UTF-8, 64 KiB or more) looks like one.
    rows: reads a file; all that is wrong with it is counted in the `ReadCounts`.
    contiguous: whether the rows of a tree follow each other, the post's first, even if
      nothing is known of the post. Otherwise they may lie anywhere in any file.
    takes: whether a file in a folder is one whatever its ending, by its path.
    aside: whether a file in a folder is there for another one's sake, by its path.
    beside: which files are read along with one, by its path.
    check: looks at all files of a job before any is read; returns lines that say how
      they are read, and raises `UserError` if they cannot be.
    prepare: where a row's tree is not told beside it: reads all files of a job, given
      in order, and returns what `prepared` needs to know of them.
    prepared: from those bytes, returns the format whose `rows` know each row's tree;
      raises `ValueError` for bytes that `prepare` never returns.
  """

  name: str
  suffixes: tuple[str, ...]
  matches: Callable[[str, bytes], bool]
  rows: Callable[[str, TreeConfig, ReadCounts], Iterator[Row]]
  contiguous: bool
  takes: Callable[[str], bool] = _never
  aside: Callable[[str], bool] = _never
  beside: Callable[[str], list[str]] = _nothing
  check: Callable[[Sequence[str], TreeConfig], list[str]] = _no_remark
  prepare: Callable[[Sequence[str], TreeConfig], bytes] | None = None
  prepared: Callable[[bytes], Format] | None = None

  def read(
    self, path: str, config: TreeConfig, read_counts: ReadCounts
  ) -> Iterator[Row]:
    """Yields a file's `rows`, none larger than `config` allows; warns of no row."""
    before = read_counts.files[files.READ]
    found = bounded(self.rows(path, config, read_counts), config, read_counts)
    first = next(found, None)
    if first is not None:
      yield first
      yield from found
    elif read_counts.files[files.READ] > before:
      unread.warn(path, self.name)
      read_counts.files[files.NOTHING_FOUND] += 1
      read_counts.files[files.READ] -= 1
      read_counts.files += Counter()  # without what is zero


def memory_bytes(row: Row) -> int:
  """About what a row takes in memory, the labels of its spans left out."""
  return _ROW_BYTES + sum(map(sys.getsizeof, row))


def bounded(
  rows: Iterable[Row], config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  """Passes rows on, so that none is larger than settings allow.

  Args:
    rows: of a reader.
    config: says how long a text may be; longer ones are cut.
    read_counts: counts what is cut; rows left out because their tree's id is too long;
      and stubs that are too large to be compared with what was read.
  """
  limit, name_limit = config.max_comment_chars, MAX_NAME_CHARS
  for row in rows:
    if (
      len(row.text or "") > limit
      or len(row.selftext or "") > limit
      or len(row.translation or "") > limit
      or len(row.stub or "") > limit
      or len(row.tree_id) > name_limit
      or len(row.id or "") > name_limit
      or len(row.parent_id or "") > name_limit
      or len(row.author or "") > name_limit
      or len(row.subreddit or "") > name_limit
      or len(row.label or "") > name_limit
      or len(row.language or "") > name_limit
      or len(row.translation_language or "") > name_limit
    ):
      if row.stub is not None:
        count_stub(Stub.decode(row.stub), read_counts)
        continue
      if len(row.tree_id) > name_limit:
        if row.is_post:
          read_counts.trees[TREE_NO_ID] += 1
        else:
          read_counts.comments[DROPPED_NO_TREE] += 1
        continue
      row = _cut(row, config, read_counts)
    yield row


def _cut(row: Row, config: TreeConfig, read_counts: ReadCounts) -> Row:
  limit = config.max_comment_chars
  changes: dict[str, Any] = {}
  for name in ("text", "selftext", "translation"):
    value = getattr(row, name)
    if value is not None and len(value) > limit:
      changes[name] = value[:limit]
      read_counts.repaired[CUT] += 1
  for name in _NAMES:
    if len(getattr(row, name) or "") > MAX_NAME_CHARS:
      changes[name] = "" if name == "parent_id" else None  # whose None is the post
      read_counts.repaired[NAME_LEFT_OUT] += 1
  cut = row._replace(**changes)
  if row.spans and not changes.keys().isdisjoint(("text", "selftext")):
    if row.is_post:
      # Where the title was cut, it is unknown where spans lie.
      end = -1 if "text" in changes else len(post_text(cut.text, cut.selftext, config))
    else:
      end = limit
    cut = cut._replace(spans=tuple(span for span in row.spans if span.end <= end))
  return cut


def text(value: object, read_counts: ReadCounts) -> str | None:
  """A string as valid Unicode without NUL; None for anything else."""
  if not isinstance(value, str):
    return None
  if not value.isascii():
    try:
      value.encode("utf-8")
    except UnicodeEncodeError:
      read_counts.repaired[REPAIRED_SURROGATES] += 1
      # Halves that belong together become the character they stand for.
      value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  if "\0" in value:
    read_counts.repaired[REPAIRED_NUL] += 1
    value = value.replace("\0", "")
  return value


def identifier(value: object, read_counts: ReadCounts) -> str | None:
  """An id as a string; numbers count as their digits."""
  if isinstance(value, str):
    if value.isascii() and value.isprintable():
      return value.strip() or None
    return (text(value, read_counts) or "").strip() or None
  if isinstance(value, float) and value.is_integer():  # of a table with gaps
    value = int(value)
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value) if abs(value) < _MAX_NUMBER else None
  return None


def parent(value: object, read_counts: ReadCounts) -> str | None:
  """A parent's id, as `Row.parent_id` has it."""
  if value is None or value == "":
    return None
  return identifier(value, read_counts) or ""


def label(value: object, read_counts: ReadCounts) -> str | None:
  """A label as a string: whole numbers as their digits, others as JSON has them."""
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, float) and not value.is_integer():
    return repr(value) if math.isfinite(value) else None
  if isinstance(value, (Mapping, list, tuple)):
    read_counts.repaired[LABEL_LEFT_OUT] += 1
  return identifier(value, read_counts)


def seconds(value: object) -> int | None:
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


def votes(value: object) -> int | None:
  """A score as a whole number; None if it is none."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  return int(value) if abs(value) <= _MAX_INT32 else None  # NaN: None
