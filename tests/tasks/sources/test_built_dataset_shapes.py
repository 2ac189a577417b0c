"""Files of a built dataset that say something else than TFDS writes."""

import json
import shutil

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.dataset_files import built_dataset, tfrecord, tree_record
from commentree.tasks.trees import columns
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span, Translation
from commentree.tests.support.tasks import building_fixture, written_threads

_DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("made")
  paths = written_threads.write("tree_jsonl", folder, 7, count=3)
  return building_fixture.build(paths, folder / "set", BuildConfig()).folder


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made, tmp_path / "copy")


def columns_of(**others):
  """The columns of a post, its comment and an answer, some of them others."""
  comments = [
    Comment("p", -1, None, "a post", None, label="x"),
    Comment("a", 0, "ann", "one", 5, language="en", translation=Translation("de", "1")),
    Comment("b", 1, "bob", "two", 6, spans=(Span(0, 3, "claim"),), reply_deleted=True),
  ]
  return {**columns.to_columns(CommentTree("p", comments)), **others}


@pytest.mark.parametrize(
  ("record", "said"),
  [
    (b"\xff", "Error parsing message"),
    (b"", "index out of range"),
    *(
      (tree_record.encode_columns(columns_of(**{name: np.array(values)})), said)
      for name, values, said in [
        ("parents", [0, 0, 1], "no post in front"),
        ("parents", [-1, -1, 1], "whose parent does not stand before it"),
        ("parents", [-1, 2, 1], "whose parent does not stand before it"),
        ("parents", [-1, 0, 2], "whose parent does not stand before it"),
        ("parents", [-1, 0], "3 ids and 2 parents"),
        ("parents", [-1, 0, 2**40], "out of bounds"),
        ("scores", [1], "3 ids and 1 scores"),
        ("span_comments", [3], "names a comment that is not there"),
        ("span_comments", [-1], "names a comment that is not there"),
        ("span_starts", [], "1 span_comments and 0 span_starts"),
        ("span_starts", [-1], "a span from -1 to 3"),
        ("span_ends", [4], "a span from 0 to 4 of a shorter text"),
        ("labelled", [0, 1], "2 labelled and 1 labels"),
        ("reply_deleted", [-2], "names a comment that is not there"),
        ("language_comments", [9], "names a comment that is not there"),
        ("translated", [], "0 translated and 1 translation_languages"),
      ]
    ),
    (tree_record.encode_columns(columns_of(authors=[])), "3 ids and 0 authors"),
    (tree_record.encode_columns(columns_of(ids=[])), "0 ids and 3 parents"),
    (tree_record.encode_columns(columns_of(texts=[b"\xff"] * 3)), "utf-8"),
  ],
)
def test_a_record_with_a_right_checksum_and_no_tree_is_refused(copy, record, said):
  """Whoever writes a dataset by hand can make checksums, too."""
  (copy / "CHECKSUMS.json").unlink()
  shards = sorted(copy.glob("*-train.tfrecord-*"))
  shards[0].write_bytes(tfrecord.frame(record))
  with pytest.raises(UserError) as refusal:
    list(built_dataset.BuiltDataset(copy).trees("train"))
  assert f"{shards[0]}: record 0 holds no tree (" in str(refusal.value)
  assert said in str(refusal.value)
  assert "\n" not in str(refusal.value)


def test_columns_that_are_a_tree_are_read():
  record = tree_record.encode_columns(columns_of())
  assert tree_record.encode(tree_record.decode(record)) == record


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["[]", "1", "null", '"a"', "{", _DEEP, "\0"])
def test_json_of_another_shape_is_refused_by_the_files_name(copy, name, content):
  (copy / name).write_text(content)
  with pytest.raises(UserError, match=name) as refusal:
    built_dataset.BuiltDataset(copy)
  assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["[]", "1", '{"files": []}', '{"files": {"a": 1}}'])
def test_checksums_of_another_shape_are_refused_by_the_files_name(copy, content):
  (copy / "CHECKSUMS.json").write_text(content)
  with pytest.raises(UserError, match=r"CHECKSUMS\.json"):
    built_dataset.BuiltDataset(copy)


@pytest.mark.parametrize("value", [1, [], {"features": 1}, {"features": None}])
def test_features_of_another_shape_are_refused(copy, value):
  (copy / "features.json").write_text(json.dumps({"featuresDict": value}))
  with pytest.raises(UserError, match=r"features\.json"):
    built_dataset.BuiltDataset(copy)


@pytest.mark.parametrize(
  "template", ["../{SPLIT}", "/etc/passwd", "{DATASET.a}", "{x}", 1]
)
def test_shards_outside_of_the_folder_are_not_read(copy, template):
  info = json.loads((copy / "dataset_info.json").read_text())
  info["splits"][0]["filepathTemplate"] = template
  (copy / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(UserError, match=r"dataset_info\.json"):
    built_dataset.BuiltDataset(copy)
