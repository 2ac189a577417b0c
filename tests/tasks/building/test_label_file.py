"""Labels from a file of their own: every format gets them, each is accounted for."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commentree.errors import StorageError, UserError
from commentree.tasks.building import building, label_file, parts
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import rows
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees

DEFAULT = BuildConfig()
TREES = TreeConfig()


def write(folder, content, name="labels.csv"):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def built(tmp_path, source, path, given=(), pool=None, out="out"):
  """Labels by id, of a built dataset, and its statistics."""
  labels = label_file.open_file(path, given, TREES)
  made = building_fixture.build(
    [source], tmp_path / out, DEFAULT, pool=pool, labels=labels
  )
  found = {
    (tree.id, c.id): c.label
    for tree in building_fixture.trees(made.folder)
    for c in tree.comments
  }
  return found, made.stats


@pytest.fixture
def source(tmp_path):
  return write_trees(
    tmp_path / "in",
    record("p", comment("a", "p", label="own"), comment("b", "a"), comment("c", "b")),
    record("q", comment("d", "q"), label="own"),
  )


FORMS = {
  "plain": "id,label\na,for\nb,against\np,for\nz,for\n",
  "byte order mark": "\ufeffid,label\na,for\nb,against\np,for\nz,for\n",
  "columns of usual names": "stance\tcomment_id\nfor\ta\nagainst\tb\nfor\tp\nfor\tz\n",
  "prefixes": "id,label\nt1_a,for\nt1_b,against\nt3_p,for\nt3_a,against\n",
  "packed": gzip.compress(b"id;label\na;for\nb;against\np;for\nz;for\n"),
  "JSON": "".join(
    json.dumps({"id": ident, "label": said}) + "\n"
    for ident, said in (("a", "for"), ("b", "against"), ("p", "for"), ("z", "for"))
  ),
  "with posts": "id,post,label\na,p,for\nb,t3_p,against\np,,for\nd,p,for\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_comments_and_posts_have_the_labels_of_the_file_and_no_others(
  tmp_path, source, form
):
  found, stats = built(tmp_path, source, write(tmp_path, FORMS[form]))
  assert found == {
    ("p", "p"): "for",
    ("p", "a"): "for",
    ("p", "b"): "against",
    ("p", "c"): None,
    ("q", "q"): None,
    ("q", "d"): None,
  }
  facts = stats["label_file"]
  assert (facts["labels"], facts["met"], facts["unmet"]) == (4, 3, 1)
  assert facts["comments_without"] == 2
  assert facts["met_again"] == 0
  assert stats["labels"] == {
    "for": {"comments": 1, "posts": 1},
    "against": {"comments": 1, "posts": 0},
  }


def test_numbers_of_parquet_are_ids_and_labels_like_any(tmp_path):
  source = write_trees(tmp_path / "in", record("1", comment("2", "1")))
  pq.write_table(pa.table({"id": [2, 3], "label": [1.5, None]}), tmp_path / "l.parquet")
  found, stats = built(tmp_path, source, str(tmp_path / "l.parquet"))
  assert found["1", "2"] == "1.5"
  assert stats["label_file"][label_file.LEFT_OUT_NO_LABEL] == 1


def test_every_format_gets_labels(tmp_path):
  rows = [
    {"id": "b", "link_id": "t3_p", "parent_id": "t1_a", "body": "text"},
    {"id": "a", "link_id": "t3_p", "parent_id": "t3_p", "body": "text"},
  ]
  dump = tmp_path / "RC.jsonl"
  dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
  table = tmp_path / "threads.csv"
  table.write_text("id,parent,text,label\nr,,post,x\nb,a,hm,x\na,r,oh,x\n")
  for number, source in enumerate((dump, table)):
    path = write(tmp_path, "id,label\nb,for\n")
    found, _ = built(tmp_path, source, path, out=f"out{number}")
    labels = {ident: said for (_, ident), said in found.items() if said}
    assert labels == {"b": "for"}


def test_an_id_of_several_posts_has_a_label_in_each(tmp_path):
  source = write_trees(
    tmp_path / "in", record("p", comment("1", "p")), record("q", comment("1", "q"))
  )
  path = write(tmp_path, "n,thread,label\n1,p,for\n1,q,against\n")
  found, stats = built(tmp_path, source, path, ["id=n"])
  assert found["p", "1"] == "for"
  assert found["q", "1"] == "against"
  path = write(tmp_path, "n,label\n1,for\n")
  found, stats = built(tmp_path, source, path, ["id=n"], out="out2")
  assert found["p", "1"] == found["q", "1"] == "for"
  assert stats["label_file"]["met_again"] == 1


def test_two_labels_of_an_id_are_refused_unless_they_are_the_same(tmp_path, source):
  odd = "".join(f"x{i},for\n" for i in range(100))
  path = write(tmp_path, f"id,label\na,for\n{odd}a,for\nb,x\n")
  _, stats = built(tmp_path, source, path)
  assert stats["label_file"]["repeated"] == 1
  path = write(tmp_path, f"id,label\na,for\n{odd}a,against\nb,x\n")
  with pytest.raises(
    UserError, match=r"'a' has two labels, 'for' and 'against'; .*post"
  ):
    built(tmp_path, source, path, out="other")
  assert not (tmp_path / "other").exists()


def test_copies_are_found_on_both_sides_of_a_batch(tmp_path, monkeypatch, source):
  monkeypatch.setattr(label_file, "_ROWS_AT_ONCE", 2)
  lines = "".join(f"{ident},for\n" for ident in "abcdefgh" * 3)
  found, stats = built(tmp_path, source, write(tmp_path, f"id,label\n{lines}"))
  assert [found["p", ident] for ident in "abc"] == ["for"] * 3
  assert (stats["label_file"]["labels"], stats["label_file"]["repeated"]) == (8, 16)


def test_lines_that_are_no_labels_are_counted(tmp_path, source):
  long = "x" * 1_001
  path = write(tmp_path, f"id,label\na,for\n,for\nb,\nc,{long}\nd\nnan,for\n")
  _, stats = built(tmp_path, source, path)
  facts = stats["label_file"]
  assert facts[label_file.LEFT_OUT_NO_ID] == 2
  assert facts[label_file.LEFT_OUT_NO_LABEL] == 1
  assert facts[label_file.LEFT_OUT_LONG] == 1
  assert facts[label_file.LEFT_OUT_BAD_LINE] == 1


def test_bytes_that_are_no_utf_8_are_counted(tmp_path, source):
  path = write(tmp_path, "id,label\na,für\nb,for\n".encode("latin-1"))
  found, stats = built(tmp_path, source, path)
  assert (found["p", "a"], found["p", "b"]) == ("f\ufffdr", "for")
  assert stats["label_file"][f"{label_file.REPAIRED}{rows.REPAIRED_SURROGATES}"] == 1


@pytest.mark.parametrize(
  ("content", "given", "says"),
  [
    ("", (), "is empty"),
    ("id,label\n", (), "holds no label"),
    ("id,label\n,\n", (), r"holds no label.*1 left out: no id"),
    ("a,for\nb,against\n", (), r"not known; name them.*there are a, for"),
    ("a\nb\n", (), "no table is found in it: the first line of CSV must name two"),
    ("id,x,y\na,b,c\n", ["label=x", "label=y"], "label= is given 2 columns, x and y"),
    ("id,label\na,b\n", ["id=key"], r"'key' is no column of .*id, label"),
    ("id,label\na,b\n", ["ident=id"], r"'ident' is no role; there are id, post, label"),
    ("id,label\na,b\n", ["id"], "'id' must be role=column"),
    ("id,id,label\na,b,c\n", (), "2 columns are called 'id', which is read as id"),
    (gzip.compress(b"id,label\n" + b"a,b\n" * 9_999, mtime=0)[:-20], (), "to its end"),
  ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_line(
  tmp_path, source, content, given, says
):
  with pytest.raises(UserError, match=says) as raised:
    built(tmp_path, source, write(tmp_path, content), given)
  assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    label_file.open_file(str(tmp_path / "none.csv"), (), TREES)
  with pytest.raises(UserError, match="is a folder"):
    label_file.open_file(str(tmp_path), (), TREES)
  with pytest.raises(UserError, match="--labels=: no such file"):
    label_file.open_file("", (), TREES)


def test_parquet_that_is_cut_off_is_no_table(tmp_path):
  table = pa.table({"id": ["a", "b"], "label": ["for", "against"]})
  pq.write_table(table, tmp_path / "labels.parquet")
  whole = (tmp_path / "labels.parquet").read_bytes()
  with pytest.raises(UserError, match="Parquet and Arrow be whole"):
    label_file.open_file(write(tmp_path, whole[:-30], "cut.parquet"), (), TREES)


def test_a_build_with_other_labels_is_another_and_is_refused(tmp_path, source):
  path = write(tmp_path, "id,x,label\na,1,for\n")
  built(tmp_path, source, path)
  _, stats = built(tmp_path, source, path)
  assert stats["made_from"]["labels"]["name"] == "labels.csv"
  with pytest.raises(
    UserError, match=r"has labels read as .*label=label, not .*label=x"
  ):
    built(tmp_path, source, path, ["label=x"])
  with pytest.raises(UserError, match=r"has the labels of --labels=labels\.csv"):
    building_fixture.build([source], tmp_path / "out", DEFAULT)
  path = write(tmp_path, "id,x,label\na,1,against\n")
  with pytest.raises(UserError, match=r"has the labels of labels.csv as it was"):
    built(tmp_path, source, path)
  building_fixture.build([source], tmp_path / "bare", DEFAULT)
  with pytest.raises(UserError, match="was made without --labels"):
    built(tmp_path, source, path, out="bare")


class _Killed(building_fixture.Here):
  """Ends when shards are to be made, as by a kill."""

  def run(self, work, tasks, at_once=None):
    if work.__name__ == "make_shards":
      raise KeyboardInterrupt
    super().run(work, tasks, at_once)


def test_a_build_that_was_killed_counts_as_one_that_was_not(tmp_path, source):
  path = write(tmp_path, FORMS["plain"])
  whole = built(tmp_path, source, path)
  with pytest.raises(KeyboardInterrupt):
    built(tmp_path, source, path, pool=_Killed(), out="again")
  other = write(tmp_path, "id,label\na,against\n", "other.csv")
  with pytest.raises(UserError, match="a build begun here has the labels of"):
    built(tmp_path, source, other, out="again")
  again = building_fixture.Here()
  assert built(tmp_path, source, path, pool=again, out="again") == whole
  assert again.done == ["make_shards"]


def test_labels_are_no_source_where_they_lie_among_sources(tmp_path, source):
  path = write(source.parent, "id,label\na,for\n")
  labels = label_file.open_file(path, (), TREES)
  found = building.list_sources(str(source.parent), DEFAULT, labels)
  assert [part.path for part in found] == [str(source)]
  config = BuildConfig(trees=TreeConfig(label_from="meta.mood"))
  with pytest.raises(UserError, match=r"--labels.*--label_from"):
    building.remarks(found, config, labels)


def test_labels_that_there_is_no_room_to_sort_are_told_in_a_line(tmp_path):
  path = write(
    tmp_path, "".join(["id,label\n", *(f"{i},{i:0900}\n" for i in range(12_000))])
  )
  labels = label_file.open_file(path, (), TREES)
  (tmp_path / "labels.spill").write_text("a file where a folder is to be")
  with pytest.raises(StorageError, match="labels cannot be sorted in 8 MB"):
    label_file.make_index(
      labels, tmp_path / label_file.INDEX, TREES, 8, report=lambda rows, size: None
    )
  assert not label_file.is_made(tmp_path / label_file.INDEX)


def test_what_several_bundles_met_is_added_up(tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "_SMALL_FILE_BYTES", 0)
  for name in "pqr":
    write_trees(tmp_path / name, record(name, comment(f"{name}1", name)))
  path = write(tmp_path, "id,label\np1,for\nq1,for\nr2,for\n")
  labels = label_file.open_file(path, (), TREES)
  sources = [tmp_path / name / "trees.jsonl" for name in "pqr"]
  made = building_fixture.build(sources, tmp_path / "out", DEFAULT, labels=labels)
  facts = made.stats["label_file"]
  assert (facts["met"], facts["unmet"], facts["comments_without"]) == (2, 1, 1)
