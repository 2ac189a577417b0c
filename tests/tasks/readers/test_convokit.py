"""Corpora of ConvoKit are whole, with ids of any form."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import StorageError, UserError
from commentree.tasks.building import building, filters
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import convokit, rows
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


def labels(tree):
  return {comment.id: comment.label for comment in tree.comments}


def test_labels_come_from_the_meta_of_utterances_spelled_as_in_json(tmp_path):
  values = {
    "p": "polite",
    "a": 1,
    "b": 0.5,
    "c": True,
    "d": None,
    "e": ["x"],
    "f": 1.0,
    "g": float("nan"),
  }
  write(
    tmp_path,
    [
      utterance(ident, "p", None if ident == "p" else "p", meta={"politeness": value})
      for ident, value in values.items()
    ],
  )
  config = TreeConfig(label_from="meta.politeness")
  found, read_counts = read_by_id(str(tmp_path), config)
  assert labels(found["p"]) == {
    "p": "polite",
    "a": "1",
    "b": "0.5",
    "c": "true",
    "d": None,
    "e": None,
    "f": "1",
    "g": None,
  }
  assert read_counts.repaired == {rows.LABEL_LEFT_OUT: 1}
  assert set(labels(read_by_id(str(tmp_path))[0]["p"]).values()) == {None}


def test_the_label_of_a_conversation_is_that_of_all_its_utterances(tmp_path):
  lines = [utterance("p", "p", None), utterance("a", None, "p")]
  write(
    tmp_path,
    [*lines, utterance("q", "q", None), utterance("b", "q", "q", meta={"success": 0})],
    {"p": {"meta": {"success": True, "title": "page"}}, "q": {"meta": {}}},
  )
  config = TreeConfig(label_from="conversation.meta.success")
  found, _ = read_by_id(str(tmp_path), config)
  assert labels(found["p"]) == {"p": "true", "a": "true"}
  assert labels(found["q"]) == {"q": None, "b": None}
  assert found["p"].comments[0].text == "page\n\ntext of p"


@pytest.mark.parametrize(
  ("meta", "key"),
  [({"a": {"b": {"c": "x"}}}, "a.b.c"), ({"a.b": "x"}, "a.b"), ({"a b": "x"}, "a b")],
)
def test_a_label_may_lie_deeper_or_under_a_key_with_dots(tmp_path, meta, key):
  write(tmp_path, [utterance("p", "p", None), utterance("a", "p", "p", meta=meta)])
  found, _ = read_by_id(str(tmp_path), TreeConfig(label_from=f"meta.{key}"))
  assert labels(found["p"]) == {"p": None, "a": "x"}


@pytest.mark.parametrize("given", ["politeness", "meta", "meta.", "speaker.meta.x", 3])
def test_where_labels_cannot_be_is_refused(given):
  with pytest.raises(UserError, match=r"^TreeConfig.label_from = .*'meta.politeness'"):
    TreeConfig(label_from=given)


def test_a_build_keeps_such_labels_counts_them_and_is_not_one_without(tmp_path):
  lines = [
    utterance("p", "p", None, meta={"mood": "calm"}),
    *(utterance(f"a{i}", "p", "p", meta={"mood": "calm"}) for i in range(3)),
    utterance("b", "p", "p", meta={"mood": "cross"}),
    utterance("c", "p", "p"),
  ]
  write(tmp_path, lines)
  corpus = tmp_path / "utterances.jsonl"
  out, config = tmp_path / "out" / "x", BuildConfig()
  moods = BuildConfig(trees=TreeConfig(label_from="meta.mood"))
  made = building_fixture.build([corpus], out, moods)
  (tree,) = building_fixture.trees(made.folder)
  assert labels(tree)["b"] == "cross"
  assert made.stats["labels"] == {
    "calm": {"comments": 3, "posts": 1},
    "cross": {"comments": 1, "posts": 0},
  }
  assert building_fixture.build([corpus], out, moods).already
  with pytest.raises(UserError, match="label_from"):
    building_fixture.build([corpus], out, config)


def test_labels_that_are_not_there_are_told_before_a_build(tmp_path):
  lines = [utterance("p", "p", None, meta={"score": 1, "mood": "calm"})]
  write(tmp_path, lines, {"p": {"meta": {"title": "page"}}})

  def remarks(label_from, *patterns):
    config = BuildConfig(trees=TreeConfig(label_from=label_from))
    return building.remarks(building.list_sources(patterns, config), config)

  corpus = str(tmp_path / "utterances.jsonl")
  assert (
    remarks("meta.mood", corpus) == remarks("conversation.meta.title", corpus) == []
  )
  (line,) = remarks("meta.mod", corpus)
  assert line == (
    f"{corpus}: meta.mod is in none of the first utterances; their meta has mood, score"
  )
  (line,) = remarks("conversation.meta.mood", corpus)
  assert "conversations.json" in line
  assert line.endswith("their meta has title")
  (tmp_path / "conversations.json").unlink()
  (line,) = remarks("conversation.meta.mood", corpus)
  assert "has no conversations.json" in line
  other = tmp_path / "other"
  other.mkdir()
  trees = building_fixture.write_trees(other, building_fixture.record("p"))
  with pytest.raises(UserError, match=r"--label_from=meta.mood: .* ConvoKit"):
    remarks("meta.mood", str(trees))
