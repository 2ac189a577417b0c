"""Tables with a row a comment: CSV, TSV, Parquet, Arrow, and objects of JSON.

    comment_id,post,reply_to,user,content,posted
    p1,p1,,ann,Trains or planes?,2024-03-01T10:00:00
    c1,p1,p1,bob,Trains.,2024-03-01T10:05:00

`TreeConfig.columns` says which column is what; the usual names are guessed
(`tables.columns.GUESSES`). A row whose id is its post's, or that has neither post nor
parent, is a post; a post may also lie in columns beside its comments (`post_title`,
`post_text`). Where there is no column for the post, all files are read once before to
find it by following parents: `prepare`.

Every record is counted once, as in `pushshift`, but for posts that lie beside comments.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing.times import time_of
from commentree.tasks.readers.roots import Roots, format_by_roots, key_of
from commentree.tasks.readers.rows import (
  COMMENT_PREFIX,
  POST_PREFIX,
  identifier,
  label,
  text,
  votes,
)
from commentree.tasks.readers.tables import columns, records
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")
# What exports write for no value.
_NOTHING = frozenset(("", "null", "none", "nan", "na", "n/a", "\\n", "<na>"))


def _matches(name: str, head: bytes) -> bool:
  stem, last = os.path.splitext(name.lower())
  if last in _SUFFIXES or os.path.splitext(stem)[1] in _SUFFIXES:
    return True
  kind = records.kind_of(head)
  if kind in ("parquet", "arrow"):
    return True
  names = records.names_in(head)
  if not {"comments", "replies", "children"}.isdisjoint(names):
    return False
  found = columns.find(names, ())
  # Anything may be called `id` and `text`: only threads have a parent or a post.
  return found is not None and not found.by_role.keys().isdisjoint(("parent", "post"))


def _columns(path: str, config: TreeConfig) -> columns.Columns | None:
  return columns.find(records.names(path, config), config.columns)


def check(paths: Sequence[str], config: TreeConfig) -> list[str]:
  """Says how the tables of a job are read, a line for each kind of table.

  Raises:
    UserError: if a table has no column for ids or texts, or none has a column that the
      settings name.
  """
  lines: dict[str, str] = {}
  known: set[str] = set()
  for path in paths:
    names = records.names(path, config)
    known.update(names)
    found = columns.find(names, config.columns)
    if found is None and names:
      shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
      raise UserError(
        f"{path}: which columns hold ids and texts is not known; name them with"
        " --columns id=… parent=… text=… (TreeConfig.columns in a run), or leave this"
        f" file out; there are {shown}"
      )
    if found is not None:
      columns.check_once(path, names, found)
      lines.setdefault(str(found), path)
  for named in columns.parse(config.columns).values():
    for column in named:
      if known and column not in known:
        raise UserError(
          f"--columns (TreeConfig.columns): {column!r} is no column of {paths[0]}"
          f"{' or the others' if len(paths) > 1 else ''}; there are"
          f" {', '.join(sorted(known)[:20])}"
        )
  return [f"{path}: read as {line}" for line, path in lines.items()]


def prepare(paths: Sequence[str], config: TreeConfig) -> bytes:
  """Finds the posts of all rows by their parents, if a table does not tell them."""
  tables = [(path, _columns(path, config)) for path in paths]
  if all(found is None or "post" in found.by_role for _, found in tables):
    return bytes(Roots.none())
  roots, ignored = Roots.builder(), ReadCounts()  # whoever reads the rows counts
  for path, found in tables:
    if found is None:
      continue
    roles = [role for role in ("id", "parent", "post") if role in found.by_role]
    names = [found.by_role[role] for role in roles]
    for values in records.records(path, names, config, ignored):
      given = dict(zip(roles, values))
      ident, parent, post = _ids(given, ignored)
      above = parent or post
      if ident:
        roots.add(ident, () if above is None or above == ident else (above,))
  return bytes(roots.build())


def _rows(
  roots: Roots, path: str, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  found = _columns(path, config)
  if found is None:
    records.count_file(path, read_counts)
    return
  roles = list(found.by_role)
  beside = any(role.startswith("post_") for role in roles)
  seen: set[int] = set()  # posts beside comments, by their keys
  for values in records.records(path, found.names, config, read_counts):
    given = dict(zip(roles, values))
    row = _row(given, roots, read_counts)
    if row is None:
      continue
    if beside and not row.is_post and (key := key_of(row.tree_id)) not in seen:
      seen.add(key)
      yield _post_beside(row.tree_id, given, row, read_counts)
    yield row


def _aside(path: str) -> bool:
  """Whether a file says what a dataset of Hugging Face is, beside its tables."""
  return os.path.basename(path) in (
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
  )


FORMAT = format_by_roots(
  "table",
  _SUFFIXES,
  _matches,
  aside=_aside,
  check=check,
  prepare=prepare,
  rows=_rows,
)


def _row(given: dict[str, Any], roots: Roots, read_counts: ReadCounts) -> Row | None:
  ident, parent, post = _ids(given, read_counts)
  own = post == ident if post else parent is None or parent == ident
  answers_comment = _begins(given.get("parent"), COMMENT_PREFIX)
  if answers_comment or _begins(given.get("id"), COMMENT_PREFIX):
    own = False  # of Reddit, where a comment may have the id of its post
  if own and ident is None:
    read_counts.comments[comment_tree.DROPPED_NO_ID] += 1
    return None
  if own:
    return _as_post(ident, given, read_counts)
  if post is None:
    if ident is None:
      read_counts.comments[comment_tree.DROPPED_NO_ID] += 1
      return None
    post = roots.of(ident)
    if post is None:
      known = ident in roots
      read_counts.comments[
        comment_tree.DROPPED_CYCLE if known else comment_tree.DROPPED_NO_TREE
      ] += 1
      return None
  parent_id = None
  if parent is not None and (parent != post or answers_comment):
    parent_id = COMMENT_PREFIX + parent
  return Row(
    tree_id=post,
    is_post=False,
    id=ident,
    parent_id=parent_id,
    author=_name(given.get("author"), read_counts),
    text=_written(given, read_counts),
    created_utc=time_of(given.get("time")),
    score=votes(_number(given.get("score"))),
    subreddit=_name(given.get("community"), read_counts),
    label=label(given.get("label"), read_counts),
    language=identifier(given.get("language"), read_counts),
  )


def _as_post(ident: str | None, given: dict[str, Any], read_counts: ReadCounts) -> Row:
  assert ident is not None
  title = given.get("title", given.get("post_title"))
  return Row(
    tree_id=ident,
    is_post=True,
    id=ident,
    author=_name(given.get("author"), read_counts),
    text=text(title, read_counts),
    selftext=text(given.get("text"), read_counts),
    created_utc=time_of(given.get("time")),
    score=votes(_number(given.get("score"))),
    subreddit=_name(given.get("community"), read_counts),
    label=label(given.get("label"), read_counts),
    language=identifier(given.get("language"), read_counts),
  )


def _post_beside(
  tree_id: str, given: dict[str, Any], row: Row, read_counts: ReadCounts
) -> Row:
  return Row(
    tree_id=tree_id,
    is_post=True,
    id=tree_id,
    author=_name(given.get("post_author"), read_counts),
    text=text(given.get("post_title"), read_counts),
    selftext=text(given.get("post_text"), read_counts),
    created_utc=time_of(given.get("post_time")),
    subreddit=row.subreddit,
  )


def _written(given: dict[str, Any], read_counts: ReadCounts) -> str | None:
  written = text(given.get("text"), read_counts)
  return text(given.get("title"), read_counts) if written is None else written


def _ids(
  given: Mapping[str, Any], read_counts: ReadCounts
) -> tuple[str | None, str | None, str | None]:
  """The ids of a row, its parent and its post."""
  above = (given.get("parent"), given.get("post"))
  # Reddit's ids are digits to base 36, `null` and `nan` among them.
  of_reddit = any(_begins(value, (COMMENT_PREFIX, POST_PREFIX)) for value in above)
  ident = _id(given.get("id"), read_counts, any_word=of_reddit)
  parent, post = (_id(value, read_counts) for value in above)
  return ident, parent, post


def _begins(value: Any, prefixes: str | tuple[str, ...]) -> bool:
  return isinstance(value, str) and value.strip().startswith(prefixes)


def written_id(
  value: Any, read_counts: ReadCounts, *, any_word: bool = False
) -> str | None:
  """An id as a table has it; None for what stands for no value.

  Args:
    value: what stands there.
    read_counts: counts what is repaired.
    any_word: whether `null` and the like are ids.
  """
  found = identifier(value, read_counts)
  if found is None or (found.lower() in _NOTHING and not any_word):
    return None
  if found.endswith(".0") and found[:-2].isdigit():  # pandas, of a column with gaps
    found = found[:-2]
  return found


def _id(value: Any, read_counts: ReadCounts, *, any_word: bool = False) -> str | None:
  """An id without a prefix of Reddit's; None for what stands for no value."""
  found = written_id(value, read_counts, any_word=any_word) or ""
  return found.removeprefix(POST_PREFIX).removeprefix(COMMENT_PREFIX) or None


def _name(value: Any, read_counts: ReadCounts) -> str | None:
  return identifier(value, read_counts)


def _number(value: Any) -> Any:
  if isinstance(value, str) and len(value) <= 20:
    try:
      return float(value)
    except ValueError:
      return None
  return value
