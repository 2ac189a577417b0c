"""Tables are read as what they hold: CSV, TSV, Parquet, Arrow and objects of JSON."""

import csv
import decimal
import gzip
import io
import json
import os
import random
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files, times
from commentree.tasks.readers.tables import arrow, columns, records
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts

NAMES = ("comment_id", "thread", "reply_to", "user", "content", "posted")
THREAD = [
  ("p1", "p1", None, "ann", "Tea or coffee?", "2024-03-01T10:00:00"),
  ("c1", "p1", "p1", "bob", 'Tea. "Green", if any.', "2024-03-01T10:05:00Z"),
  ("c2", "p1", "c1", "ann", "Why?\nIt is bitter.", "2024-03-01T10:09:00"),
]


def trees_of(path, counts=None, **settings):
  counts = ReadCounts() if counts is None else counts
  return list(readers.iter_trees(str(path), TreeConfig(**settings), counts))


def shape(tree):
  """Texts with the texts of their parents."""
  texts = [comment.text for comment in tree.comments]
  return [(c.text, texts[c.parent] if c.parent >= 0 else None) for c in tree.comments]


def as_csv(rows, names=NAMES, **options):
  buffer = io.StringIO()
  csv.writer(buffer, **options).writerows([names, *rows])
  return buffer.getvalue().encode()


def as_arrow(path, rows, names=NAMES):
  table = pa.table({name: list(column) for name, column in zip(names, zip(*rows))})
  with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
    out.write_table(table)


EXPECTED = [
  ("Tea or coffee?", None),
  ('Tea. "Green", if any.', "Tea or coffee?"),
  ("Why?\nIt is bitter.", 'Tea. "Green", if any.'),
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolons", "gz", "utf16", "bare"])
def test_text_tables_are_read(tmp_path, kind):
  content = as_csv(
    THREAD, delimiter={"tsv": "\t", "semicolons": ";"}.get(kind, ","), escapechar=None
  )
  path = tmp_path / {"gz": "t.csv.gz", "bare": "t", "tsv": "t.tsv"}.get(kind, "t.csv")
  if kind == "gz":
    content = gzip.compress(content)
  elif kind == "utf16":
    content = content.decode().encode("utf-16")
  path.write_bytes(content)
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert shape(tree) == EXPECTED
  assert [comment.created_utc for comment in tree.comments] == [
    1709287200,
    1709287500,
    1709287740,
  ]
  assert not counts.repaired
  assert counts.comments == {comment_tree.KEPT: 2}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
def test_columnar_and_json_tables_are_read(tmp_path, kind):
  path = tmp_path / f"t.{kind}"
  if kind == "parquet":
    columns_ = {name: list(column) for name, column in zip(NAMES, zip(*THREAD))}
    pq.write_table(pa.table(columns_), path)
  elif kind == "arrow":
    as_arrow(path, THREAD)
  else:
    lines = (json.dumps(dict(zip(NAMES, row))) for row in THREAD)
    path.write_text("\n".join(lines))
  (tree,) = trees_of(path)
  assert shape(tree) == EXPECTED


def test_a_folder_as_datasets_saves_it_is_read_and_its_notes_left_aside(tmp_path):
  as_arrow(tmp_path / "data-00000-of-00002.arrow", THREAD[:2])
  as_arrow(tmp_path / "data-00001-of-00002.arrow", THREAD[2:])
  (tmp_path / "dataset_info.json").write_text('{"builder_name": "json"}')
  (tmp_path / "state.json").write_text('{"_data_files": []}')
  counts = ReadCounts()
  (tree,) = trees_of(tmp_path, counts)
  assert shape(tree) == EXPECTED
  assert counts.files == {files.READ: 2}


def test_posts_are_found_by_parents_across_files_where_no_column_tells_them(tmp_path):
  names = ("id", "parent_id", "text")
  (tmp_path / "a.csv").write_bytes(
    as_csv([("c2", "c1", "deep"), ("p", "", "post")], names)
  )
  (tmp_path / "b.csv").write_bytes(
    as_csv([("c1", "p", "mid"), ("x", "gone", "lost"), ("y", "x", "below")], names)
  )
  counts = ReadCounts()
  found = {tree.id: shape(tree) for tree in trees_of(tmp_path, counts)}
  assert found.pop("p") == [("post", None), ("mid", "post"), ("deep", "mid")]
  (lost,) = found.values()
  assert lost == [("", None), ("lost", ""), ("below", "lost")]
  assert counts.trees == {comment_tree.KEPT: 1, comment_tree.KEPT_NO_POST: 1}


def test_a_cycle_is_counted_and_ends(tmp_path):
  path = tmp_path / "t.csv"
  rows = [("p", "", "post"), ("c", "p", "fine"), ("a", "b", "one"), ("b", "a", "two")]
  path.write_bytes(as_csv(rows, ("id", "parent", "text")))
  counts = ReadCounts()
  assert len(trees_of(path, counts)) == 1
  assert counts.comments == {comment_tree.KEPT: 1, comment_tree.DROPPED_CYCLE: 2}


def test_a_row_without_its_post_is_in_no_tree_and_in_no_cycle(tmp_path):
  (tmp_path / "t.csv").write_bytes(as_csv([*THREAD, ("c3", "", "c1", "", "x", "")]))
  counts = ReadCounts()
  trees_of(tmp_path / "t.csv", counts)
  assert counts.comments == {comment_tree.KEPT: 2, comment_tree.DROPPED_NO_TREE: 1}


def test_a_post_in_columns_beside_its_comments_is_read_once(tmp_path):
  path = tmp_path / "t.csv"
  names = ("id", "thread_id", "parent_id", "text", "thread_title", "post_text")
  rows = [
    ("a", "T", "", "one", "A title", "Its text"),
    ("b", "T", "a", "two", "A title", "Its text"),
  ]
  path.write_bytes(as_csv(rows, names))
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  top = "A title\n\nIts text"
  assert shape(tree) == [(top, None), ("one", top), ("two", "one")]
  assert counts.trees == {comment_tree.KEPT: 1}


def test_ids_that_pandas_made_floats_and_words_for_nothing_are_understood(tmp_path):
  path = tmp_path / "t.csv"
  rows = [("1", "NaN", "post"), ("2", "1.0", "reply"), ("3", "2.0", "deeper")]
  path.write_bytes(as_csv(rows, ("id", "parent_id", "body")))
  (tree,) = trees_of(path)
  assert shape(tree) == [("post", None), ("reply", "post"), ("deeper", "reply")]


@pytest.mark.parametrize("post", [True, False])
def test_ids_of_reddit_that_are_words_for_nothing_are_ids(tmp_path, post):
  rows = [
    ("p1", "t3_p1", None, "o", "post", "1"),
    ("null", "t3_p1", "t3_p1", "a", "NA", "2"),
    ("NaN", "t3_p1", "t1_null", "a", "null", "3"),
  ]
  names = ("id", "link_id" if post else "other", "parent_id", "author", "body", "time")
  (tmp_path / "t.csv").write_bytes(as_csv(rows, names))
  counts = ReadCounts()
  (tree,) = trees_of(tmp_path / "t.csv", counts)
  assert shape(tree) == [("post", None), ("NA", "post"), ("null", "NA")]
  assert counts.comments == {comment_tree.KEPT: 2}


def test_a_comment_of_reddit_with_the_id_of_its_post_is_a_comment(tmp_path):
  names = ("id", "link_id", "parent_id", "author", "body", "created_utc")
  rows = [
    ("t3_x", "t3_x", None, "o", "post", "1"),
    ("t1_x", "t3_x", "t3_x", "a", "same", "2"),
    ("t1_y", "t3_x", "t1_x", "a", "below", "3"),
  ]
  (tmp_path / "t.csv").write_bytes(as_csv(rows, names))
  counts = ReadCounts()
  (tree,) = trees_of(tmp_path / "t.csv", counts)
  assert shape(tree) == [("post", None), ("same", "post"), ("below", "same")]
  assert counts.trees == {comment_tree.KEPT: 1}


def test_fields_of_structures_are_columns(tmp_path):
  tweets = [
    {"id_str": "1", "full_text": "hi", "user": {"screen_name": "ann"}, "created_at":
     "Wed Oct 10 20:19:24 +0000 2018", "in_reply_to_status_id_str": None},
    {"id_str": "2", "full_text": "ho", "user": {"screen_name": "bob"}, "created_at":
     "Wed Oct 10 20:20:24 +0000 2018", "in_reply_to_status_id_str": "1"},
  ]  # fmt: skip
  path = tmp_path / "tweets.jsonl"
  path.write_text("\n".join(map(json.dumps, tweets)))
  pq.write_table(pa.Table.from_pylist(tweets), tmp_path / "tweets.parquet")
  for name in ("tweets.jsonl", "tweets.parquet"):
    (tree,) = trees_of(tmp_path / name)
    assert shape(tree) == [("hi", None), ("ho", "hi")]
    assert [c.author for c in tree.comments] == ["ann", "bob"]
    assert tree.comments[1].created_utc == 1539202824


def test_columns_are_named_by_a_setting(tmp_path):
  path = tmp_path / "t.csv"
  path.write_bytes(
    as_csv([("p", "", "post"), ("c", "p", "reply")], ("k", "up", "says"))
  )
  with pytest.raises(
    UserError, match=r"t\.csv: which columns .* there are k, up, says"
  ):
    trees_of(path)
  given_ = ("id=k", "parent=up", "text=says")
  (tree,) = trees_of(path, columns=given_)
  assert shape(tree) == [("post", None), ("reply", "post")]
  with pytest.raises(
    UserError, match=r"'sais' is no column of .*t\.csv; there are k, says"
  ):
    trees_of(path, columns=("id=k", "parent=up", "text=says", "author=sais"))


@pytest.mark.parametrize(
  ("given_", "message"),
  [
    (("text",), "'text' must be role=column"),
    (("txt=body",), "'txt' is no role; .* did you mean text"),
  ],
)
def test_a_mistake_in_the_setting_is_one_line(tmp_path, given_, message):
  path = tmp_path / "t.csv"
  path.write_bytes(as_csv(THREAD))
  with pytest.raises(UserError, match=message):
    trees_of(path, columns=given_)


def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path):
  path = tmp_path / "t.csv"
  path.write_bytes(b"id,parent,text,note,note\na,,one,x,y\nb,a,two,x,y\n")
  assert len(trees_of(path)) == 1
  path.write_bytes(b"id,parent,text,text\na,,one,two\nb,a,three,four\n")
  with pytest.raises(UserError, match=r"t\.csv: 2 columns are called 'text'"):
    trees_of(path)


def test_what_was_guessed_is_said(tmp_path):
  path = tmp_path / "t.csv"
  path.write_bytes(as_csv(THREAD))
  formats = readers.formats_of(str(path), TreeConfig())
  (remark,) = readers.remarks(formats, TreeConfig())
  assert remark == (
    f"{path}: read as id=comment_id, parent=reply_to, post=thread, text=content,"
    " author=user, time=posted"
  )


@pytest.mark.parametrize("first", [2**64 - 3, 10**75])
def test_ids_may_be_large_numbers(tmp_path, first):
  numbers = [decimal.Decimal(first + i) for i in range(3)]
  kind = pa.uint64() if first < 2**64 else pa.decimal256(76, 0)
  columns_ = {
    "id": pa.array(numbers, kind),
    "parent": pa.array([None, *numbers[:2]], kind),
    "\ufeffText": ["post", "a", "b"],
  }
  pq.write_table(pa.table(columns_), tmp_path / "t.parquet")
  (tree,) = trees_of(tmp_path / "t.parquet")
  assert shape(tree) == [("post", None), ("a", "post"), ("b", "a")]


@given(
  st.lists(
    st.tuples(
      *[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2
    ),
    max_size=8,
  )
)
def test_what_csv_writes_is_read(rows):
  written = as_csv(rows, ("id", "text")).decode()
  lines = iter(io.StringIO(written, newline=""))
  found = list(records.csv_records(lines, 2, {}, ReadCounts()))
  assert found == [["id", "text"], *map(list, rows)]


@pytest.mark.parametrize(
  ("written", "seconds"),
  [
    (1709287200, 1709287200),
    ("1709287200", 1709287200),
    (1709287200123, 1709287200),
    ("2024-03-01 10:00:00+01:00", 1709283600),
    ("Fri, 1 Mar 2024 10:00:00 +0000", 1709287200),
    ("yesterday", None),
    (float("nan"), None),
    (-5, None),
    (True, None),
  ],
)
def test_times_are_read_in_the_usual_forms(written, seconds):
  assert times.time_of(written) == seconds


def test_no_guess_stands_for_two_columns_of_a_table():
  found = columns.find(["id", "post_id", "body", "title", "user"], ())
  assert found.by_role == {
    "id": "id",
    "post": "post_id",
    "text": "body",
    "author": "user",
    "title": "title",
  }


@pytest.mark.parametrize(
  "content",
  [
    '\tid\tparent\ttext\n0\tp\t\tA post\n1\tc\tp\tHe said "yes"\n',
    'id,parent,text\rp,,A post\rc,p,"He said ""yes"""\r',
    '"id","parent","text"\n"p","","A post"\n"c","p","He said \\"yes\\""\n',
    '"id","parent","text"\n"p",\\N,"A post"\n"c","p","He said \\"yes\\""\n',
    'id, parent, text\np, , A post\nc, p, "He said ""yes"""\n',
    'sep=;\nid;parent;text\np;;A post\nc;p;"He said ""yes"""\n',
    '\ufeff\n \nid,parent,text\np,,A post\nc,p,"He said ""yes"""\n',
  ],
  ids=["index", "lone CR", "backslashes", "null", "spaces", "Excel", "blank lines"],
)
def test_what_other_programs_write_as_csv_is_read(tmp_path, content):
  path = tmp_path / "t.csv"
  path.write_bytes(content.encode())
  counts = ReadCounts()
  (tree,) = trees_of(path, counts)
  assert shape(tree) == [("A post", None), ('He said "yes"', "A post")]
  assert counts.comments == {comment_tree.KEPT: 1}
  assert not counts.repaired


def test_columns_of_every_type_are_read(tmp_path):
  ids = [decimal.Decimal(number) for number in (1, 2)]
  table = pa.Table.from_arrays(
    [
      pa.array(ids, pa.decimal128(20, 0)),
      pa.array([None, ids[0]], pa.decimal128(20, 0)),
      pa.array([b"A post", b"caf\xe9"]),
      pa.array(["other", "column"]),
      pa.array([1_709_287_200_000_000_001, None], pa.timestamp("ns")),
      pa.array(["ann", "bob"]).dictionary_encode(),
      pa.array([["a"], None], pa.list_(pa.string())),
    ],
    names=["id", "parent", "text", "note", "created_at", "author", "score"],
  )
  pq.write_table(table, tmp_path / "t.parquet")
  counts = ReadCounts()
  (tree,) = trees_of(tmp_path / "t.parquet", counts)
  assert shape(tree) == [("A post", None), ("caf\ufffd", "A post")]
  assert [comment.id for comment in tree.comments] == ["1", "2"]
  assert [comment.author for comment in tree.comments] == ["ann", "bob"]
  assert [c.created_utc for c in tree.comments] == [1_709_287_200, None]
  assert counts.files == {files.READ: 1}


def test_memory_does_not_grow_with_the_groups_of_rows_of_parquet(tmp_path):
  path, words = str(tmp_path / "t.parquet"), random.Random(0).randbytes(2**20).hex()
  texts = [f"{n} {words[n * 1000 : (n + 1) * 1000]}" for n in range(2000)]
  ids = [str(n) for n in range(2000)]
  pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=100)
  peak, before = 0, pa.total_allocated_bytes()
  for _ in arrow.records(path, "parquet", ["id", "text"], ReadCounts()):
    peak = max(peak, pa.total_allocated_bytes() - before)
  assert peak < os.path.getsize(path) / 2


def test_columns_that_python_has_no_value_for_raise_nothing(tmp_path):
  text = pa.array([b"A post", b"\xff", b"end"]).buffers()
  table = pa.table(
    {
      "id": ["p", "c", "d"],
      "parent": [None, "p", "p"],
      "text": pa.Array.from_buffers(pa.string(), 3, text),
      "created_at": pa.array([2**62, -(2**62), 0], pa.timestamp("s")),
    }
  )
  path = tmp_path / "t.arrow"
  with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
    out.write_table(table)
  (tree,) = trees_of(path)
  assert {comment.text for comment in tree.comments} == {"A post", "\ufffd", "end"}


def test_a_head_of_blank_lines_is_passed_over_in_linear_time():
  found = records.names_in(b"\n" * 2**20 + b"id,parent,text\n")
  assert found == ["id", "parent", "text"]


def test_time_does_not_grow_faster_than_a_line(tmp_path):
  path, config = tmp_path / "t.csv", TreeConfig(max_line_bytes=2**30)
  path.write_text("id,parent,text\np,," + "x" * 2**25)
  start = time.process_time()
  found = list(records.records(str(path), ("id", "text"), config, ReadCounts()))
  assert found == [("p", "x" * 2**25)]
  assert time.process_time() - start < 4
