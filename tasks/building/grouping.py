"""From parts to the rows of one tree after the other, in order of the key.

DuckDB sorts: it reads only the row groups of the parts that a range of keys touches,
and what does not fit its share of memory goes to disk.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa

from ..readers.rows import Row
from ..trees import Span
from .parts import COLUMNS, Part, decode_spans
from .storage import StorageError

# Whoever puts rows into trees in another way must keep to this order.
ORDER = ("key", "tree_id", "is_post DESC", "file", "place")

_ROWS_AT_ONCE = 4_096
_GLOB = re.compile(r"[*?\[]")


@contextlib.contextmanager
def trees_of_rows(
  parts: Sequence[Part],
  first_key: int,
  last_key: int,
  memory_mb: int,
  spill: pathlib.Path,
) -> Iterator[Iterator[tuple[str, Iterator[Row]]]]:
  """Gives an iterator over trees: id and rows, the post's first.

  Of each tree's rows, posts come first, and then earlier files and earlier places.

  Args:
    parts: all there are.
    first_key: the lowest shuffle key wanted.
    last_key: the highest.
    memory_mb: what DuckDB may take.
    spill: a folder for what does not fit; made if need be.

  Raises:
    StorageError: if there is no room to spill to.
  """
  config: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": f"{memory_mb}MB",
    "threads": 1,
    "temp_directory": str(spill),
  }
  query = (
    # By itself DuckDB takes folders named `a=b` for columns, which replace the file's.
    f"SELECT {', '.join(COLUMNS)} FROM read_parquet(?, hive_partitioning = false)"
    f" WHERE key BETWEEN {first_key}::UBIGINT AND {last_key}::UBIGINT"
    f" ORDER BY {', '.join(ORDER)}"
  )
  with duckdb.connect(":memory:", config=config) as connection:
    try:
      if not parts:
        yield iter(())
        return
      paths = [_without_globs(str(part.path)) for part in parts]
      relation = connection.sql(query, params=[paths])
      batches = relation.to_arrow_reader(_ROWS_AT_ONCE)
      rows = itertools.chain.from_iterable(map(_rows, batches))
      yield itertools.groupby(rows, operator.itemgetter(0))
    except (duckdb.Error, pa.ArrowException, OSError) as error:
      raise StorageError(
        f"{spill}: sorting {memory_mb} MB at a time failed"
        f" ({str(error).splitlines()[0]}); free some room on this disk, or raise"
        " --memory, and start again: finished work is kept"
      ) from error


def _without_globs(path: str) -> str:
  """A path as DuckDB reads it by name, whatever characters of a glob it holds."""
  return _GLOB.sub(r"[\g<0>]", path)


def _rows(batch: pa.RecordBatch) -> Iterable[Row]:
  *columns, spans = batch.columns
  decoded: list[tuple[Span, ...]] = [()] * len(spans)
  if spans.null_count < len(spans):
    decoded = list(map(decode_spans, spans.to_pylist()))
  return map(Row, *(column.to_pylist() for column in columns), decoded)
