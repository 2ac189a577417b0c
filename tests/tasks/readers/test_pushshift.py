import json

import pytest

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files, json_lines
from commentree.tasks.trees import comment_tree
from commentree.tests.support.tasks.reading import parents, read_by_id


def comment(ident, parent, link="t3_p", **fields):
  return {
    "id": ident,
    "link_id": link,
    "parent_id": parent,
    "author": "ann",
    "body": f"body of {ident}",
    "created_utc": 10,
    "score": 3,
    "subreddit": "here",
    **fields,
  }


def post(ident="p", **fields):
  return {
    "id": ident,
    "title": "title",
    "selftext": "self",
    "author": "op",
    "created_utc": 5,
    "score": 7,
    "subreddit": "here",
    **fields,
  }


def write(path, *records):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


def accounted(read_counts):
  """Lines that the read_counts stand for."""
  missing = sum(read_counts.trees[fate] for fate in comment_tree.NO_POST)
  return read_counts.comments.total() + read_counts.trees.total() - missing


def test_comments_and_posts_of_the_same_or_other_files_are_one_tree(tmp_path):
  one = comment("a", "t3_p"), comment("b", "t1_a"), comment("x", "t3_q", "t3_q")
  both = write(tmp_path / "both.jsonl", *one, post())
  apart = [
    write(tmp_path / "RC.jsonl", *one),
    write(tmp_path / "RS.jsonl", post()),
  ]
  for patterns in (both, apart):
    found, read_counts = read_by_id(patterns)
    assert parents(found["p"]) == {"a": "p", "b": "a"}
    assert found["p"].comments[0].text == "title\n\nself"
    assert found["p"].comments[0].score == 7
    assert found["p"].comments[1].score == 3
    assert found["p"].subreddit == found["q"].subreddit == "here"
    assert parents(found["q"]) == {"x": "q"}
    assert read_counts.comments == {comment_tree.KEPT: 3}
    assert read_counts.trees == {comment_tree.KEPT: 1, comment_tree.KEPT_NO_POST: 1}
    assert accounted(read_counts) == 4


@pytest.mark.parametrize("created", [10, 10.0, 10.7, "10", "10.0", " 10 "])
def test_timestamps_are_numbers_or_strings(tmp_path, created):
  line = comment("a", "t3_p", created_utc=created)
  found, _ = read_by_id(write(tmp_path / "a.jsonl", line))
  assert found["p"].comments[1].created_utc == 10


def test_prefixes_may_be_there_or_not(tmp_path):
  lines = [
    comment("t1_a", "p", "p"),
    comment("b", "a", "t3_p"),
    comment("t1_c", "t1_b", "p"),
    post("t3_p"),
  ]
  found, read_counts = read_by_id(write(tmp_path / "a.jsonl", *lines))
  assert parents(found["t3_p"]) == {"t1_a": "t3_p", "b": "t1_a", "t1_c": "b"}
  assert read_counts.trees == {comment_tree.KEPT: 1}


def test_a_post_and_a_comment_of_the_same_id_are_told_apart(tmp_path):
  lines = [comment("p", "t3_p"), comment("b", "t1_p"), comment("c", "t3_p"), post("p")]
  found, _ = read_by_id(write(tmp_path / "a.jsonl", *lines))
  tree = found["p"]
  assert [(c.id, c.parent) for c in tree.comments] == [
    ("p", -1),
    ("p", 0),
    ("b", 1),
    ("c", 0),
  ]


@pytest.mark.parametrize(
  ("bad", "fate"),
  [
    (b"{no json", json_lines.DROPPED_BAD_JSON),
    (b'{"id": "a", "link_id": "t3_p", "bo', json_lines.DROPPED_BAD_JSON),
    (b"[1, 2]", comment_tree.DROPPED_NOT_OBJECT),
    (b"null", comment_tree.DROPPED_NOT_OBJECT),
    ({}, comment_tree.DROPPED_NEITHER),
    ({"id": "z"}, comment_tree.DROPPED_NEITHER),
    ({"id": "z", "body": "lost"}, comment_tree.DROPPED_NO_TREE),
    (comment("z", "t3_p", None), comment_tree.DROPPED_NO_TREE),
    (comment("z", "t3_p", ["t3_p"]), comment_tree.DROPPED_NO_TREE),
    (comment("z", "t3_p", "t3_"), comment_tree.DROPPED_NO_TREE),
    (comment(None, "t3_p"), comment_tree.DROPPED_NO_ID),
    (comment({}, "t3_p"), comment_tree.DROPPED_NO_ID),
    (comment("a", "t3_p"), comment_tree.DROPPED_DUPLICATE),
    (comment("z", "t3_p", body="x" * 9999), files.DROPPED_LINE_TOO_LONG),
  ],
)
def test_a_bad_line_is_a_comment_dropped_for_a_reason(tmp_path, bad, fate):
  path = write(tmp_path / "a.jsonl", comment("a", "t3_p"), bad, b" ", post())
  found, read_counts = read_by_id(path, TreeConfig(max_line_bytes=5000))
  assert parents(found["p"]) == {"a": "p"}
  assert read_counts.comments == {comment_tree.KEPT: 1, fate: 1}
  assert read_counts.trees == {comment_tree.KEPT: 1}
  assert accounted(read_counts) == 3


@pytest.mark.parametrize(
  ("odd", "fate"),
  [
    (post(None), comment_tree.TREE_NO_ID),
    (post("t3_"), comment_tree.TREE_NO_ID),
    (post(), comment_tree.TREE_DUPLICATE),
    (post("alone"), comment_tree.TREE_EMPTY),
  ],
)
def test_a_post_without_id_or_comments_or_seen_before_is_counted(tmp_path, odd, fate):
  path = write(tmp_path / "a.jsonl", comment("a", "t3_p"), post(), odd)
  found, read_counts = read_by_id(path)
  assert list(found) == ["p"]
  assert read_counts.trees == {comment_tree.KEPT: 1, fate: 1}
  assert accounted(read_counts) == 3


def test_lone_surrogates_and_what_only_python_takes_for_json_are_read(tmp_path):
  lines = [
    json.dumps(comment("a", "t3_p", body="x\ud800y")).encode(),
    json.dumps(comment("b", "t3_p", score=float("nan"))).encode(),
    json.dumps(comment("c", "t3_p", other=float("inf"))).encode(),
    json.dumps(comment("d", "t3_p", body="caf__"))
    .replace("__", "\xe9")
    .encode("latin1"),
  ]
  found, read_counts = read_by_id(write(tmp_path / "a.jsonl", *lines))
  texts = {c.id: c.text for c in found["p"].comments}
  assert texts["a"] == "x\ufffdy"
  assert texts["d"] == "caf\ufffd"
  assert read_counts.comments == {comment_tree.KEPT: 4}


def base_36(ident):
  return int(ident, 36)


@pytest.mark.parametrize("kind", [int, float])
def test_ids_that_are_numbers_stand_for_their_digits_to_base_36(tmp_path, kind):
  lines = [
    comment("j2aaaa1", None, "t3_zyw900"),
    comment("j2aaaa2", kind(base_36("j2aaaa1")), "t3_zyw900"),
    comment("j2aaaa3", kind(base_36("j2aaaa2")), kind(base_36("zyw900"))),
    comment("j2aaaa4", kind(base_36("zyw900")), "t3_zyw900"),
    comment("zyw900", kind(base_36("zyw900")), "t3_zyw900"),  # a comment of that id
    comment("12", "t3_zyw900", "zyw900"),
    comment("c", "12", "zyw900"),
    post("zyw900"),
  ]
  found, read_counts = read_by_id(write(tmp_path / "a.jsonl", *lines))
  assert parents(found["zyw900"]) == {
    "j2aaaa1": "zyw900",
    "j2aaaa2": "j2aaaa1",
    "j2aaaa3": "j2aaaa2",
    "j2aaaa4": "zyw900",
    "zyw900": "zyw900",
    "12": "zyw900",
    "c": "12",
  }
  assert read_counts.comments == {comment_tree.KEPT: 7}


@pytest.mark.parametrize("odd", [-1, 2**80, 1.5, True, float("nan"), [1], {}])
def test_a_parent_that_is_no_id_is_a_missing_one(tmp_path, odd):
  found, read_counts = read_by_id(
    write(tmp_path / "a.jsonl", comment("a", odd), post())
  )
  assert parents(found["p"]) == {"a": "p"}
  assert read_counts.comments == {comment_tree.KEPT_ORPHAN: 1}


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_comment_without_a_parent_answers_the_post(tmp_path, nothing):
  found, read_counts = read_by_id(
    write(tmp_path / "a.jsonl", comment("a", nothing), post())
  )
  assert parents(found["p"]) == {"a": "p"}
  assert read_counts.comments == {comment_tree.KEPT: 1}
