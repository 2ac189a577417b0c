"""Of a table with mistakes all else is read, and what is lost is counted and told."""

import gzip

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from commentree.tasks.readers.parsing import files
from commentree.tasks.readers.tables import arrow, records
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.tasks.readers.test_tables import (
  NAMES,
  THREAD,
  as_arrow,
  trees_of,
)


def test_a_quotation_mark_without_its_partner_costs_no_other_line(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text(
    "id,parent,text\n"
    "p,,post\n"
    'a,p,"never closed\n'
    'b,p,"fine, too"\n'
    'c,p,"of two\nlines"\n'
    "d,p,too,many,fields\n"
    "\n"
    'e,p,a "word" within\n'
    'f,p,"also never closed\n'
  )
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert sorted(c.text for c in tree.comments) == [
    'a "word" within',
    "also never closed\n",
    "fine, too",
    "never closed\n",
    "of two\nlines",
    "post",
  ]
  assert counts.repaired[records.REPAIRED_QUOTES] == 2
  assert counts.comments[records.DROPPED_BAD_RECORD] == 1


def test_time_does_not_grow_faster_than_a_file_of_open_quotations(count_calls):
  lines = ["id,parent,text\n", *(f'{i},p,"open\n' for i in range(300))]
  found = records.csv_records(count_calls(iter(lines)), 3, {}, ReadCounts())
  assert len(list(found)) == 301
  assert count_calls.number == len(lines) + 1


@pytest.fixture
def count_calls():
  """Counts how often a line is asked for, the second reading left out."""

  class Counted:
    number = 0

    def __call__(self, lines):
      def counted():
        for line in lines:
          self.number += 1
          yield line
        self.number += 1

      return counted()

  return Counted()


def test_bytes_that_are_no_utf8_cost_one_character(tmp_path):
  path = tmp_path / "t.csv"
  path.write_bytes(b"id,parent,text\np,,caf\xe9\nc,p,reply\n")
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert tree.comments[0].text == "caf\ufffd"
  assert counts.repaired[comment_tree.REPAIRED_SURROGATES] == 1


def test_a_line_that_is_too_long_is_counted(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("id,parent,text\np,,post\n" + "x" * 500_000 + "\nc,p,reply\n")
  counts = ReadCounts()
  (tree,) = trees_of(path, counts, max_line_bytes=1_000)
  assert len(tree.comments) == 2
  assert counts.comments[files.DROPPED_LINE_TOO_LONG] == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_counted_and_named(tmp_path, kind, caplog):
  path = tmp_path / f"t.{kind}"
  if kind == "parquet":
    columns_ = {name: list(column) for name, column in zip(NAMES, zip(*THREAD))}
    pq.write_table(pa.table(columns_), path)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
  else:
    as_arrow(path, THREAD)
    path.write_bytes(path.read_bytes()[:-200])
  counts = ReadCounts()
  trees_of(path, counts)
  assert counts.files[files.DAMAGED] == 1
  assert str(path) in caplog.text


def test_a_damaged_group_of_rows_costs_no_other_one(tmp_path, caplog):
  rows = [("p", "p", None, "o", "post", "1")]
  rows += [(f"c{i}", "p", "p", "a", f"text {i * 7919}", "2") for i in range(3_999)]
  path = tmp_path / "t.parquet"
  table = pa.table({name: list(col) for name, col in zip(NAMES, zip(*rows))})
  pq.write_table(table, path, row_group_size=500, use_dictionary=False)
  page = pq.read_metadata(path).row_group(2).column(4).data_page_offset
  content = bytearray(path.read_bytes())
  content[page : page + 400] = bytes([255]) * 400
  path.write_bytes(content)
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert len(tree.comments) == 3_500
  assert counts.missing == {arrow.MISSING_ROWS: 500}
  assert counts.files == {files.DAMAGED: 1}
  assert "; 500 rows of it were not read, the others were" in caplog.text


def test_a_table_that_is_packed_is_said_to_be(tmp_path, caplog):
  path = tmp_path / "t.parquet.gz"
  pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), path)
  path.write_bytes(gzip.compress(path.read_bytes()))
  trees_of(path)
  assert "it is packed as a whole; unpack it" in caplog.text


@pytest.mark.parametrize("kind", ["parquet", "parquet.gz", "feather"])
def test_a_table_without_its_end_is_called_damaged(tmp_path, kind):
  path = tmp_path / f"t.{kind}"
  table = pa.table({name: list(col) for name, col in zip(NAMES, zip(*THREAD))})
  if kind == "feather":
    feather.write_feather(table, path)
    path.write_bytes(path.read_bytes()[:-20])
  else:
    pq.write_table(table, path)
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(whole) if kind.endswith("gz") else whole[:-10])
  counts = ReadCounts()
  assert not trees_of(path, counts)
  assert counts.files == {files.DAMAGED: 1}
