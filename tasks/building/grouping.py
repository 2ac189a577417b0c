"""From parts to the rows of one tree after the other, in order of the key.

DuckDB sorts: it reads only the row groups of the parts that a range of keys touches,
and what does not fit its share of memory goes to disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import operator
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa

from commentree.errors import StorageError
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.parts import COLUMNS, ROW_BYTES, RowPart, decode_spans
from commentree.tasks.trees.comment_tree import Span
from commentree.tasks.trees.row import Row

# Whoever puts rows into trees in another way must keep to this order.
ORDER = ("key", "tree_id", "is_post DESC", "file", "place")

_ROWS_AT_ONCE = 2_048  # as DuckDB has them
# Posts of another id than the tree's become comments; see `assembly.assemble`.
_IS_POST = "is_post AND coalesce(id, tree_id) IN (tree_id, 't3_' || tree_id)"
_GLOB = re.compile(r"[*?\[]")


class SortMemoryError(Exception):
  """DuckDB needs more memory for a sort than it was given."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """How large a tree may be.

  Attributes:
    comments: its comments that were read; and as many stubs.
    text_bytes: all text of its rows, in UTF-8.
  """

  comments: int
  text_bytes: int

  @classmethod
  def of(cls, config: BuildConfig) -> Limits:
    """The limits that settings give."""
    return cls(config.max_tree_comments, config.max_tree_mb * 2**20)


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A tree that is beyond the limits: the numbers of its rows, which were not read."""

  posts: int
  comments: int


TreeRows = Iterator[Row] | TooLarge


@contextlib.contextmanager
def trees_of_rows(
  parts: Sequence[RowPart],
  first_key: int,
  last_key: int,
  memory_mb: int,
  spill: pathlib.Path,
  limits: Limits | None,
) -> Iterator[Iterator[tuple[int, str, TreeRows]]]:
  """Gives an iterator over trees: key, id and rows.

  Of each tree's rows, posts come first, and then earlier files and earlier places.

  Args:
    parts: all there are.
    first_key: the lowest shuffle key wanted.
    last_key: the highest.
    memory_mb: what DuckDB may take.
    spill: a folder for what does not fit; made if need be.
    limits: how large a tree may be; None if none can be larger.

  Raises:
    SortMemoryError: if the rows of these keys are too many for so much memory.
    StorageError: if there is no room to spill to.
  """
  if not parts:
    yield iter(())
    return
  config: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": f"{memory_mb}MB",
    "threads": 1,
    "temp_directory": str(spill),
  }
  paths = [_without_globs(str(part.path)) for part in parts]
  source = (
    # By itself DuckDB takes folders named `a=b` for columns, which replace the file's.
    "FROM read_parquet(?, hive_partitioning = false)"
    f" WHERE key BETWEEN {first_key}::UBIGINT AND {last_key}::UBIGINT"
  )
  with (
    _errors_in_one_line(spill, memory_mb),
    duckdb.connect(":memory:", config=config) as connection,
  ):
    too_large: list[tuple[int, str, TooLarge]] = []
    if limits is not None:
      found = connection.execute(
        f"SELECT key, tree_id, count_if({_IS_POST}),"
        f" count_if(NOT ({_IS_POST}) AND stub IS NULL) AS comments"
        f" {source} GROUP BY key, tree_id"
        f" HAVING greatest(comments, count(stub)) > {limits.comments}"
        f" OR sum({ROW_BYTES}) > {limits.text_bytes} ORDER BY key, tree_id",
        [paths],
      )
      too_large = [(key, name, TooLarge(*n)) for key, name, *n in found.fetchall()]
    if too_large:
      connection.execute("CREATE TABLE too_large (tree_id VARCHAR)")
      connection.executemany(
        "INSERT INTO too_large VALUES (?)", [[tree_id] for _, tree_id, _ in too_large]
      )
      source += " AND tree_id NOT IN (FROM too_large)"
    relation = connection.sql(
      f"SELECT key, {', '.join(COLUMNS)} {source} ORDER BY {', '.join(ORDER)}",
      params=[paths],
    )
    batches = relation.to_arrow_reader(_ROWS_AT_ONCE)
    rows = itertools.chain.from_iterable(map(_rows, _sorted(batches, spill, memory_mb)))
    grouped = (
      (*key_and_id, map(operator.itemgetter(1), of_tree))
      for key_and_id, of_tree in itertools.groupby(rows, _key_and_id)
    )
    yield heapq.merge(grouped, too_large, key=operator.itemgetter(0, 1))


def _without_globs(path: str) -> str:
  """A path as DuckDB reads it by name, also with characters of a glob in it."""
  return _GLOB.sub(r"[\g<0>]", path)


def _key_and_id(row: tuple[int, Row]) -> tuple[int, str]:
  return row[0], row[1].tree_id


def _sorted(
  batches: pa.RecordBatchReader, spill: pathlib.Path, memory_mb: int
) -> Iterator[pa.RecordBatch]:
  with _errors_in_one_line(spill, memory_mb):
    yield from batches


@contextlib.contextmanager
def _errors_in_one_line(spill: pathlib.Path, memory_mb: int) -> Iterator[None]:
  try:
    yield
  except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
    first, _, more = str(error).partition("\n")
    # DuckDB calls it out of memory, too, where there is no room to spill to.
    if "temp_directory" not in more and (
      isinstance(error, MemoryError | duckdb.OutOfMemoryException)
      or "Out of Memory" in first
    ):
      raise SortMemoryError(first) from error
    raise StorageError(
      f"{spill}: sorting {memory_mb} MB at a time failed ({first}); free some room on"
      " this disk and start again: finished work is kept"
    ) from error


def _rows(batch: pa.RecordBatch) -> Iterable[tuple[int, Row]]:
  keys, *columns, spans = batch.columns
  decoded: list[tuple[Span, ...]] = [()] * len(spans)
  if spans.null_count < len(spans):
    decoded = list(map(decode_spans, spans.to_pylist()))
  rows = map(Row, *(column.to_pylist() for column in columns), decoded)
  return zip(keys.to_pylist(), rows)
