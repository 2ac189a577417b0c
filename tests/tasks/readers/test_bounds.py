"""Whatever files hold, readers and builds hold no more than a bounded part of it."""

import io
import json
import tracemalloc

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from commentree.errors import UserError
from commentree.launch.inference import trees as inference_trees
from commentree.tasks import readers
from commentree.tasks.building import filters, parts, shards, workers
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import rows
from commentree.tasks.readers.parsing import files
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts, Span, Stub
from commentree.tasks.trees.row import Row
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees


@pytest.mark.long
@pytest.mark.parametrize(
  "value",
  [
    *("{}", "[]", '""', '"ab"', "1", "-70000000000", "1.5", "null", '{"a":1}', "[1]"),
    *('"é"', '"ab€"', '"\U0001f600"', '"\\ud83d\\ude00"', '{"a":{"b":[2]},"c":"d"}'),
    *("[" * 50 + "]" * 50, '"' + "long " * 100 + "\U0001f600" + '"'),
  ],
)
def test_a_line_takes_no_more_memory_than_is_reckoned_with(value):
  line = ("[" + ",".join([value] * 10_000) + "]").encode()
  tracemalloc.start()
  try:
    before, _ = tracemalloc.get_traced_memory()
    parsed = msgspec.json.decode(line)
    after, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert len(parsed) == 10_000
  assert after - before <= files.parsed_bytes(line)


@pytest.mark.long
@pytest.mark.parametrize(
  ("name", "line", "counted"),
  [
    ("tree_jsonl", '{"id":"p","comments":[%s]}', ("trees", files.LINE_TOO_LONG)),
    (
      "pushshift",
      '{"id":"p","link_id":[%s]}',
      ("comments", files.DROPPED_LINE_TOO_LONG),
    ),
    ("tree_jsonl", '[{"id":"p","comments":[%s]}]', ("trees", files.LINE_TOO_LONG)),
    (
      "pushshift",
      '{"data":[{"id":"p","link_id":[%s]}]}',
      ("comments", files.DROPPED_LINE_TOO_LONG),
    ),
    ("tree_jsonl", '[{"id":"p","comments":[%s', ("trees", files.LINE_TOO_LONG)),
  ],
)
def test_a_line_of_very_many_values_is_skipped_and_counted(
  tmp_path, monkeypatch, name, line, counted
):
  monkeypatch.setattr(files, "_MAX_PARSED_BYTES", 2**26)
  path = tmp_path / "a.jsonl"
  path.write_text(line % ",".join(["{}"] * 400_000) + "\n")
  read_counts = ReadCounts()
  assert not list(readers.iter_trees(str(path), TreeConfig(), read_counts, name))
  assert getattr(read_counts, counted[0])[counted[1]] == 1


def test_a_document_of_very_many_elements_is_skipped_and_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "_MAX_PARSED_BYTES", 2**20)
  path = tmp_path / "a.xml"
  path.write_text('<thread ID="a">' + "<reply>" * 2_000)
  read_counts = ReadCounts()
  assert not list(readers.iter_trees(str(path), TreeConfig(), read_counts))
  assert read_counts.trees == {files.FILE_TOO_LONG: 1}


def test_lines_without_characters_are_passed_over_and_cost_nothing():
  blocks = [b"\n" * 2**20] * 300 + [b"a\n\n\nb", b"\n\n", b"\n"] + [b"\n" * 2**20] * 300
  read_counts = ReadCounts()
  found = list(files.split(iter(blocks), 100, (read_counts.trees, "long")))
  assert found == [b"a", b"b"]
  assert not read_counts.trees


def cut(row, limit=10):
  read_counts = ReadCounts()
  found = list(rows.bounded([row], TreeConfig(max_comment_chars=limit), read_counts))
  return found, read_counts


def test_long_texts_are_cut_and_counted():
  comment_row = Row(
    tree_id="p",
    is_post=False,
    id="a",
    parent_id="p",
    author="ann",
    text="0123456789ABC",
    translation="x" * 11,
  )
  (found,), read_counts = cut(comment_row)
  assert (found.text, found.translation) == ("0123456789", "x" * 10)
  assert read_counts.repaired == {rows.CUT: 2}
  assert cut(found) == ([found], ReadCounts())


def test_spans_behind_the_cut_are_left_out():
  spans = (Span(0, 10, "a"), Span(2, 11, "b"))
  (found,), _ = cut(
    Row(tree_id="p", is_post=False, id="a", text="0123456789ABC", spans=spans)
  )
  assert found.spans == spans[:1]
  post = Row(
    tree_id="p",
    is_post=True,
    id="p",
    text="title",
    selftext="0123456789ABC",
    spans=spans,
  )
  whole = comment_tree.post_text("title", "0123456789", TreeConfig())
  long = Span(len(whole) - 1, len(whole) + 1, "c")
  (found,), _ = cut(post._replace(spans=(*spans, Span(7, len(whole), "b"), long)))
  assert found.spans == (*spans, Span(7, len(whole), "b"))
  (found,), _ = cut(post._replace(text="a title that is too long"))
  assert found.spans == ()


def test_names_that_are_too_long_are_none():
  name = "n" * 1_001
  row = Row(
    tree_id="p",
    is_post=False,
    id="a",
    parent_id=name,
    author=name,
    text="t",
    subreddit=name,
  )
  (found,), read_counts = cut(row)
  assert found == Row(tree_id="p", is_post=False, id="a", parent_id="", text="t")
  assert read_counts.repaired == {rows.NAME_LEFT_OUT: 3}
  found, read_counts = cut(row._replace(tree_id=name))
  assert not found
  assert read_counts.comments == {comment_tree.DROPPED_NO_TREE: 1}
  found, read_counts = cut(Row(tree_id=name, is_post=True, id="p"))
  assert not found
  assert read_counts.trees == {comment_tree.TREE_NO_ID: 1}


def test_rows_that_are_too_many_to_be_grouped_in_memory_are_told(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "_MAX_ROWS_BYTES", 2**16)
  path = tmp_path / "RC.jsonl"
  line = {"id": "a", "link_id": "t3_p", "parent_id": "t3_p", "body": "some words"}
  path.write_text((json.dumps(line) + "\n") * 200)
  with pytest.raises(UserError, match="too much to be grouped in memory; make trees"):
    list(readers.iter_trees(str(path), TreeConfig(), ReadCounts()))


def test_a_line_of_standard_input_is_as_long_as_that_of_a_file(monkeypatch):
  tree = json.dumps(record("p", comment("a", "p"))).encode()
  long = tree + b" " * 2_000
  lines = b"\n".join([tree, long, b"", tree])

  class Stdin:
    buffer = io.BytesIO(lines)

  monkeypatch.setattr(inference_trees.sys, "stdin", Stdin)
  read_counts = ReadCounts()
  unit = inference_trees.Stdin(TreeConfig(max_line_bytes=1_000))
  assert len(list(unit.read(0, read_counts))) == 2
  assert read_counts.trees == {comment_tree.KEPT: 2, files.LINE_TOO_LONG: 1}


def test_rows_are_held_by_their_characters_not_by_their_number(tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "_CHARS_AT_ONCE", 1_000)
  text = "x" * 600
  path = write_trees(
    tmp_path, record("p", *(comment(f"a{i}", "p", text) for i in range(50)))
  )
  sizes = []
  whole = parts._to_batch

  def to_batch(rows, *arguments):
    sizes.append(sum(len(row.text) for row in rows))
    return whole(rows, *arguments)

  monkeypatch.setattr(parts, "_to_batch", to_batch)
  building_fixture.write_parts([path], tmp_path, BuildConfig())
  assert sum(sizes) == 50 * 600 + len("title")
  assert max(sizes) <= 1_205


def test_row_groups_are_small_however_uneven_rows_are(tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 2_000)
  texts = ["long " * 300 if i % 100 < 10 else "short" for i in range(400)]
  path = write_trees(
    tmp_path, *(record(f"p{i}", comment("a", f"p{i}", x)) for i, x in enumerate(texts))
  )
  building_fixture.write_parts([path], tmp_path, BuildConfig())
  (part,) = parts.list_parts(tmp_path)
  file = pq.ParquetFile(part.path)
  sizes = [
    np.array(file.read_row_group(i, [parts.ROW_BYTES])[0]).sum()
    for i in range(file.num_row_groups)
  ]
  assert sum(sizes) == parts.text_bytes(part)
  assert max(sizes) < 2_000 + 1_600


def test_a_rows_bytes_are_counted_alike_in_a_column_and_by_themselves(tmp_path):
  row = Row(
    tree_id="p",
    is_post=False,
    id="a",
    parent_id="p",
    author="añn",
    text="é\U0001f600 text",
    selftext=None,
    created_utc=3,
    score=4,
    subreddit="s",
    label="for",
  )
  row = row._replace(translation="übersetzt", translation_language="de")
  found = [
    row,
    row._replace(spans=(Span(0, 1, "claim"),)),
    Row(tree_id="q", is_post=True, id=None),
  ]
  batch = parts._to_batch(found, [0] * 3, [0, 1, 2], seed=0)
  assert batch.column(parts.ROW_BYTES).to_pylist() == list(map(parts.row_bytes, found))


def test_trees_of_too_much_text_or_too_many_comments_are_left_out_and_counted(tmp_path):
  long = "long " * 100_000
  path = write_trees(
    tmp_path,
    record("p1", comment("a", "p1"), comment("b", "p1")),
    record("p2", *(comment(f"a{i}", "p2", long) for i in range(3))),
    record("p3", *(comment(f"a{i}", "p3") for i in range(4))),
    record("p4", comment("a", "p4")),
  )
  config = BuildConfig(max_tree_mb=1, max_tree_comments=3)
  made = building_fixture.build([path], tmp_path / "forum", config)
  assert sorted(tree.id for tree in building_fixture.trees(made.folder)) == ["p1", "p4"]
  read_counts = made.stats["read_counts"]
  assert read_counts["trees"] == {
    comment_tree.KEPT: 2,
    filters.TREE_LARGE: 1,
    filters.TREE_LONG: 1,
  }
  assert read_counts["comments"] == {
    comment_tree.KEPT: 3,
    filters.DROPPED_IN_LARGE_TREE: 4,
    filters.DROPPED_IN_LONG_TREE: 3,
  }
  assert made.stats["posts"] == 4


def test_stubs_are_no_comments_of_a_tree_that_is_left_out(tmp_path):
  children = [
    {"kind": "t1", "data": {"id": ident, "link_id": f"t3_{post}", "body": "some words"}}
    for post, ident in ("pa", "pb", "qc", "qd", "qe")
  ]
  more = {"kind": "more", "data": {"count": 9, "children": [], "parent_id": "t3_p"}}
  children[2:2] = [more, more]
  path = tmp_path / "a.json"
  path.write_text(json.dumps({"kind": "Listing", "data": {"children": children}}))
  made = building_fixture.build(
    [path], tmp_path / "forum", BuildConfig(max_tree_comments=2)
  )
  assert made.stats["read_counts"]["comments"] == {
    comment_tree.KEPT: 2,
    filters.DROPPED_IN_LARGE_TREE: 3,
  }
  assert made.stats["read_counts"]["missing"][comment_tree.MORE_STUBS] == 1


def test_a_stub_that_lists_too_much_counts_at_once_and_is_not_held():
  stub = Stub(20, tuple(f"a{i}" for i in range(10)))
  found, read_counts = cut(Row(tree_id="p", is_post=False, id="m", stub=stub.encode()))
  assert not found
  assert read_counts.missing == {
    comment_tree.MORE_STUBS: 1,
    comment_tree.MORE_IDS: 10,
    comment_tree.MORE_COUNT: 20,
  }
  assert not read_counts.comments


@pytest.mark.long
def test_sorts_that_need_more_memory_are_made_of_fewer_rows(tmp_path, monkeypatch):
  text = "".join(map(chr, range(40, 120))) * 500
  path = write_trees(
    tmp_path, *(record(f"p{i}", comment("a", f"p{i}", text)) for i in range(600))
  )
  config = BuildConfig()
  wanted = building_fixture.build([path], tmp_path / "one" / "forum", config)
  tries = []
  whole = shards.grouping.trees_of_rows

  def counted(*arguments, **settings):
    tries.append(arguments)
    return whole(*arguments, **settings)

  monkeypatch.setattr(shards.grouping, "trees_of_rows", counted)
  out = tmp_path / "two" / "forum"
  made = building_fixture.build([path], out, config, share_mb=20)
  assert len(tries) > 6
  assert building_fixture.contents(made.folder) == building_fixture.contents(
    wanted.folder
  )


@pytest.mark.long
def test_a_tree_that_no_memory_is_enough_for_is_told_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "_MOST_TRIES", 2)
  path = write_trees(tmp_path, record("p", comment("a", "p", "long " * 200_000)))
  with pytest.raises(UserError, match=r"--memory: .* are too little .* give more"):
    building_fixture.build([path], tmp_path / "forum", BuildConfig(), share_mb=2)


def test_fewer_files_are_unpacked_at_once_where_they_take_much_memory():
  division = workers.Division(2_000, 4)
  assert division.for_windows(0) == (4, division.share_mb)
  at_once, share = division.for_windows(400 * 2**20)
  assert at_once == 2
  assert 400 <= share / 2 < 500
  with pytest.raises(UserError, match=r"--memory=2000MB: .* give at least 4306MB"):
    division.for_windows(2**31)
