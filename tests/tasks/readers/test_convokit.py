"""Corpora of ConvoKit are whole, with ids of any form."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import StorageError
from commentree.tasks.building import filters
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import convokit
from commentree.tasks.readers.parsing import index_on_disk, json_cutter
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.reading import parents, read_by_id


def utterance(ident, conversation, reply_to, **fields):
  return {
    "id": ident,
    "conversation_id": conversation,
    "reply-to": reply_to,
    "speaker": "ann",
    "text": f"text of {ident}",
    "timestamp": 9,
    "meta": {},
    **fields,
  }


def write(folder, utterances, conversations=None):
  (folder / "utterances.jsonl").write_text("\n".join(map(json.dumps, utterances)))
  if conversations is not None:
    (folder / "conversations.json").write_text(json.dumps(conversations))


def test_what_answers_itself_answers_the_post(tmp_path):
  lines = [
    utterance("p", "p", None),
    utterance("a", "p", "a"),
    utterance("b", "p", "a"),
    utterance("c", "p", "gone"),
    utterance("d", "p", "c"),
  ]
  write(tmp_path, lines, {"p": {"meta": {"page_title": "User talk:Bridge"}}})
  found, read_counts = read_by_id(str(tmp_path))
  assert parents(found["p"]) == {"a": "p", "b": "a", "c": "p", "d": "c"}
  assert found["p"].comments[0].text == "User talk:Bridge\n\ntext of p"
  assert found["p"].comments[1].text == "text of a"
  assert read_counts.comments == {comment_tree.KEPT: 3, comment_tree.KEPT_ORPHAN: 1}


@pytest.mark.parametrize("backwards", [False, True])
def test_conversations_that_are_not_named_are_found_by_following_replies(
  tmp_path, backwards
):
  lines = [
    utterance("p", None, None),
    utterance("a", None, "p"),
    utterance("b", None, "a"),
    utterance("q", "q", None),
    utterance("c", "q", "q"),
    utterance("d", None, "c"),
    utterance("e", None, "gone"),
    utterance("f", None, "e"),
    utterance(None, None, "b"),
    utterance(None, None, None),
  ]
  write(tmp_path, lines[:: -1 if backwards else 1], {"p": {"meta": {"title": "page"}}})
  found, read_counts = read_by_id(str(tmp_path))
  assert parents(found["p"]) == {"a": "p", "b": "a"}
  assert found["p"].comments[0].text == "page\n\ntext of p"
  assert parents(found["q"]) == {"c": "q", "d": "c"}
  assert parents(found["gone"]) == {"e": "gone", "f": "e"}
  assert read_counts.comments == {
    comment_tree.KEPT: 6,
    comment_tree.DROPPED_NO_ID: 1,
    comment_tree.DROPPED_NO_TREE: 1,
  }
  assert read_counts.trees == {comment_tree.KEPT: 2, comment_tree.KEPT_NO_POST: 1}
  assert sum(read_counts.files.values()) == 1


def test_a_conversation_may_have_an_id_that_is_not_its_roots(tmp_path):
  lines = [
    utterance("a", "case 7", "root"),
    utterance("root", "case 7", None),
    utterance("b", "case 7", "case 7"),
    utterance("c", "case 7", "b"),
  ]
  write(tmp_path, lines, {"case 7": {"meta": {"title": "A case", "subreddit": "law"}}})
  found, read_counts = read_by_id(str(tmp_path))
  assert parents(found["root"]) == {"a": "root", "b": "root", "c": "b"}
  assert found["root"].comments[0].text == "A case\n\ntext of root"
  assert found["root"].subreddit == "law"
  assert read_counts.trees == {comment_tree.KEPT: 1}
  assert read_counts.comments == {comment_tree.KEPT: 3}


@pytest.mark.parametrize("named", ["r1", "r2", "x"])
def test_of_several_roots_all_texts_stay_in_a_build_too(tmp_path, named):
  lines = [
    utterance("r1", named, None),
    utterance("r2", named, None),
    utterance("r2", named, None),
    utterance("a", named, "r2"),
  ]
  write(tmp_path, lines)
  found, read_counts = read_by_id(str(tmp_path))
  post = "r2" if named == "r2" else "r1"
  (tree,) = found.values()
  assert tree.id == post
  other = {"r1": "r2", "r2": "r1"}[post]
  assert parents(tree) == {other: post, "a": "r2"}
  assert tree.comments[1].text in (f"text of {other}", "text of a")
  counted = read_counts.comments.total() + read_counts.trees.total()
  assert counted == len(lines)

  made = building_fixture.build([tmp_path], tmp_path / "out" / "forum", BuildConfig())
  (built,) = building_fixture.trees(made.folder)
  assert built == tree
  assert made.stats["read_counts"]["comments"] == read_counts.comments
  assert made.stats["read_counts"]["trees"] == read_counts.trees


def test_roots_are_comments_of_a_conversation_that_is_too_large(tmp_path):
  lines = [
    *(utterance(f"r{i}", "x", None) for i in range(3)),
    utterance("q", "q", None),
    utterance("a", "q", "q"),
  ]
  write(tmp_path, lines)
  config = BuildConfig(max_tree_comments=2)
  made = building_fixture.build([tmp_path], tmp_path / "out" / "forum", config)
  assert [tree.id for tree in building_fixture.trees(made.folder)] == ["q"]
  assert made.stats["read_counts"]["comments"] == {
    comment_tree.KEPT: 1,
    filters.DROPPED_IN_LARGE_TREE: 3,
  }
  assert made.stats["comments"] + made.stats["posts"] == len(lines)


def test_the_oldest_corpora_are_arrays_and_other_files_of_a_corpus_are_left_out(
  tmp_path,
):
  lines = [
    {"id": "p", "root": "p", "user": "ann", "text": "self", "reply-to": None},
    {"id": "a", "root": "p", "user": "bob", "text": "text", "reply-to": "p"},
  ]
  (tmp_path / "utterances.json").write_text(json.dumps(lines))
  (tmp_path / "conversations.json").write_text('{"p": {"title": "page"}}')
  for name in ("users.json", "corpus.json", "index.json", "info.parsed.jsonl"):
    (tmp_path / name).write_text('{"id": "a", "value": 1}')
  found, read_counts = read_by_id(str(tmp_path))
  assert parents(found["p"]) == {"a": "p"}
  assert [c.author for c in found["p"].comments] == ["ann", "bob"]
  assert found["p"].comments[0].text == "page\n\nself"
  assert sum(read_counts.files.values()) == 1


@pytest.mark.long
def test_titles_are_read_in_memory_that_does_not_grow_with_them(tmp_path, monkeypatch):
  monkeypatch.setattr(index_on_disk, "_CACHE_KIB", 200)
  write(tmp_path, [utterance("c0", "c0", None), utterance("c9999", "c9999", None)])

  def peak(count):
    about = {
      f"c{i}": {"meta": {"title": f"page {i}", "x": "y" * 500}} for i in range(count)
    }
    (tmp_path / "conversations.json").write_text(json.dumps(about))
    del about
    tracemalloc.start()
    rows = list(
      convokit.FORMAT.rows(
        str(tmp_path / "utterances.jsonl"), TreeConfig(), ReadCounts()
      )
    )
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used, [row.text for row in rows]

  few, _ = peak(1_000)
  many, titles = peak(10_000)
  assert titles == ["page 0", "page 9999"]
  assert many < 1.5 * few


def test_titles_of_a_file_that_is_cut_off_are_those_before(tmp_path):
  write(tmp_path, [utterance("p", "p", None), utterance("q", "q", None)])
  about = json.dumps({"p": {"meta": {"title": "page"}}, "q": {"meta": {"title": "x"}}})
  (tmp_path / "conversations.json").write_text(about[:-12])
  _, read_counts = read_by_id(str(tmp_path))
  rows = convokit.FORMAT.rows(
    str(tmp_path / "utterances.jsonl"), TreeConfig(), read_counts
  )
  assert [row.text for row in rows] == ["page", None]


@pytest.mark.long
@given(
  pairs=st.dictionaries(st.text(max_size=3), st.integers() | st.just({"a": [{}]})),
  size=st.integers(1, 9),
  indent=st.sampled_from([None, 1]),
)
def test_members_of_an_object_are_those_that_are_objects(pairs, size, indent):
  content = b" \n" + json.dumps(pairs, indent=indent).encode()
  blocks = [content[i : i + size] for i in range(0, len(content), size)]
  counted = ReadCounts()
  found = json_cutter.members(blocks, 1_000, (counted.repaired, "long"))
  assert {json.loads(key): json.loads(value) for key, value in found} == {
    key: value for key, value in pairs.items() if isinstance(value, dict)
  }
  assert not counted.repaired


def test_members_that_are_too_long_are_counted():
  counted = ReadCounts()
  content = json.dumps({"a": {"b": "c" * 100}, "d": {}}).encode()
  found = list(json_cutter.members([content], 50, (counted.repaired, "long")))
  assert found == [(b'"d"', b"{}")]
  assert counted.repaired == {"long": 1}


@given(
  above=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("abcdefghij"))
)
def test_all_that_hangs_together_has_one_root(above):
  with index_on_disk.index() as found:
    for key, value in above.items():
      found[key] = value
    roots = {key: found.root(key) for key in above}
    assert {key: found.root(key) for key in reversed(roots)} == roots
  for key, value in above.items():
    assert roots[key] == roots.get(value, value)


def test_an_index_that_finds_no_room_is_told_in_one_line():
  def fill():
    with index_on_disk.index() as found:
      found._database.execute("PRAGMA max_page_count = 4")
      for number in range(10_000):
        found[str(number)] = "x" * 100

  with pytest.raises(StorageError, match=r"no room for an index .* TMPDIR"):
    fill()
