"""The trees to answer for: units, their positions, and chunks of them."""

import gzip
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.launch.inference import chunks, trees
from commentree.launch.inference.chunks import ChunkSize
from commentree.tasks import readers
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts
from commentree.tests.support.tasks import built_fixture

CONFIG = TreeConfig(target_post=True, max_line_bytes=200)


def line(number, replies=1):
  comments = [
    {"id": f"c{number}_{i}", "parent_id": f"t{number}", "body": f"so {i}"}
    for i in range(replies)
  ]
  return json.dumps({"id": f"t{number}", "title": "what", "comments": comments})


LINES = [
  line(0),
  "not a tree",
  line(1, 0),
  "",
  line(2, 2),
  line(3, 9),  # too long
  "[1, 2]",
  line(4),
  json.dumps({"id": "t5", "title": None, "comments": []}),  # nothing left of it
  f"{line(6)}, {line(7)};",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("input")
  (path / "a.jsonl").write_text("\n".join(LINES) + "\n")
  (path / "b.jsonl").write_text("\n".join(map(line, range(10, 13))))
  with gzip.open(path / "c.jsonl.gz", "wt") as file:
    file.write("\n".join(map(line, range(20, 24))))
  (path / "RC_2020-01").write_text(
    "\n".join(
      json.dumps(
        {"id": f"p{i}", "link_id": f"t3_s{i % 2}", "parent_id": f"t3_s{i % 2}"}
        | {"body": "hm", "author": "x", "created_utc": i, "subreddit": "s"}
      )
      for i in range(5)
    )
  )
  return path


def names(found):
  return [tree.id for tree in found]


def test_all_units_together_hold_what_iter_trees_yields(folder):
  patterns = [str(folder / "*")]
  found = trees.find(patterns, CONFIG)
  kinds = [type(unit) for unit in found.units]
  assert kinds == [trees.Lines, trees.Lines, trees.File, trees.Scattered]
  mine, theirs = ReadCounts(), ReadCounts()
  read = [tree for unit in found.units for tree, _ in unit.read(0, mine)]
  assert read == list(readers.iter_trees(patterns, CONFIG, theirs))
  assert mine == theirs


def test_reading_goes_on_from_every_position(folder):
  for unit in trees.find([str(folder / "*")], CONFIG).units:
    whole = list(unit.read(0, ReadCounts()))
    for number, (_, position) in enumerate(whole, 1):
      assert list(unit.read(position, ReadCounts())) == whole[number:]


def test_lines_are_sought_and_not_read_again(folder, monkeypatch):
  unit = trees.find([str(folder / "b.jsonl")], CONFIG).units[0]
  (_, position), *rest = unit.read(0, ReadCounts())
  read = []
  whole = trees.trees_of_line
  monkeypatch.setattr(
    trees, "trees_of_line", lambda line, *_: read.append(line) or whole(line, *_)
  )
  list(unit.read(position, ReadCounts()))
  assert len(read) == len(rest)


def test_a_file_that_changed_is_told_from_what_it_was(folder, tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(line(0))
  before = trees.find([str(path)], CONFIG).signature
  assert before == trees.find([str(path)], CONFIG).signature
  path.write_text(line(0) + "\n" + line(1))
  assert before != trees.find([str(path)], CONFIG).signature


def test_standard_input_stands_alone(folder):
  with pytest.raises(UserError, match="stands alone"):
    trees.find(["-", str(folder / "a.jsonl")], CONFIG)


class Numbers(trees.Unit):
  """A unit of trees of given sizes; positions are trees."""

  name = "numbers"
  size = 1

  def __init__(self, sizes):
    self.sizes = sizes
    self.read_from = []

  def read(self, position, read_counts):
    self.read_from.append(position)
    for number in range(position, len(self.sizes)):
      tree = CommentTree(str(number), [None] * self.sizes[number])
      yield tree, number + 1

  def share(self, position):
    return None


units_of = st.lists(st.lists(st.integers(1, 6), max_size=7), min_size=1, max_size=4)


@given(units_of, st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.data())
def test_any_hosts_after_any_start_do_what_is_missing_once(
  sizes, most_trees, most_comments, num_hosts, data
):
  units = [Numbers(of_unit) for of_unit in sizes]
  size = ChunkSize(most_trees, most_comments)
  every = list(chunks.missing(units, size, {}, 0, 1, ReadCounts()))
  ends = {(chunk.unit, chunk.number): chunk.end for chunk in every}
  names_of = {
    unit: [tree.id for chunk in every if chunk.unit == unit for tree in chunk.trees]
    for unit in range(len(units))
  }
  assert names_of == {u: [*map(str, range(len(s)))] for u, s in enumerate(sizes)}
  there = data.draw(st.sets(st.sampled_from(sorted(ends))))
  done = {}
  for unit, number in there:
    done.setdefault(unit, {})[number] = ends[unit, number]
  dealt = [
    (chunk.unit, chunk.number)
    for host in range(num_hosts)
    for chunk in chunks.missing(units, size, done, host, num_hosts, ReadCounts())
  ]
  assert sorted(dealt) == sorted(set(ends) - there)
  assert chunks.is_whole(units, done) == (not dealt)


@given(units_of, st.integers(1, 4), st.integers(1, 9))
def test_a_chunk_depends_on_nothing_but_where_it_begins(sizes, most_trees, comments):
  size = ChunkSize(most_trees, comments)
  for of_unit in sizes:
    whole = list(chunks.cut(Numbers(of_unit), 0, size, ReadCounts()))
    assert [chunk.end is None for chunk in whole] == [False] * (len(whole) - 1) + [True]
    for before, chunk in itertools.pairwise(whole):
      rest = chunks.cut(
        Numbers(of_unit), 0, size, ReadCounts(), chunk.number, before.end
      )
      assert list(rest) == whole[chunk.number :]


def test_as_many_units_as_hosts_are_read_by_one_host_each():
  units = [Numbers([1] * 5) for _ in range(3)]
  for host in range(3):
    list(chunks.missing(units, ChunkSize(2), {}, host, 3, ReadCounts()))
  assert [unit.read_from for unit in units] == [[0]] * 3


def test_a_start_reads_no_unit_that_is_done_and_of_others_the_rest():
  units = [Numbers([1] * 5) for _ in range(2)]
  done = {0: {0: 2, 1: 4, 2: None}, 1: {0: 2, 2: None}}
  list(chunks.missing(units, ChunkSize(2), done, 0, 1, ReadCounts()))
  assert [unit.read_from for unit in units] == [[], [2]]


def test_a_built_dataset_is_read_from_every_position(tmp_path):
  splits = {"train": built_fixture.trees(0, 9), "validation": built_fixture.trees(9, 4)}
  built = str(built_fixture.write(tmp_path, splits))
  found = trees.find([built], CONFIG)
  assert [type(unit) for unit in found.units] == [trees.Shard] * 6
  whole = [tree for unit in found.units for tree, _ in unit.read(0, ReadCounts())]
  assert whole == [*splits["train"], *splits["validation"]]
  for unit in found.units:
    of_unit = list(unit.read(0, ReadCounts()))
    for number, (_, position) in enumerate(of_unit, 1):
      assert list(unit.read(position, ReadCounts())) == of_unit[number:]
  held_out = trees.find([built], CONFIG, split="validation")
  assert len(held_out.units) == 3
  assert held_out.signature != found.signature
