import collections
import itertools
import json
import time

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import tree_jsonl
from commentree.tasks.trees import assembly, comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts

SPLICE = TreeConfig()
KEEP = TreeConfig(deleted="keep")
HUGE = pytest.param(10**5000, id="huge")  # too long to be printed
DROP_ORPHANS = TreeConfig(orphans="drop")


def comment(ident, parent, body="text", author="ann", created=None):
  return {
    "id": ident,
    "parent_id": parent,
    "author": author,
    "body": body,
    "created_utc": created,
  }


def record(*comments, **fields):
  post = {"id": "p", "title": "title", "selftext": "self", "author": "op"}
  return {**post, "comments": list(comments), **fields}


def build_tree(value, read_counts, config):
  """Of a record of the tree JSONL form."""
  rows = list(tree_jsonl.record_rows(value, read_counts))
  return assembly.assemble(rows, read_counts, config) if rows else None


def build(*comments, config=SPLICE, **fields):
  read_counts = ReadCounts()
  tree = build_tree(record(*comments, **fields), read_counts, config)
  assert read_counts.comments.total() == len(comments)
  assert read_counts.trees.total() == 1
  if tree is not None:
    assert read_counts.kept == len(tree.comments) - 1
  return tree, read_counts


def shape(tree):
  """{id: parent's id}, the post left out."""
  return {c.id: tree.comments[c.parent].id for c in tree.comments[1:]}


def test_a_record_becomes_a_tree_post_first_and_depth_first():
  tree, read_counts = build(
    comment("c", "a", created=3),
    comment("d", "p", created=2),
    comment("b", "a", created=2),
    comment("a", "p", author=None, created=1),
  )
  assert [c.id for c in tree.comments] == ["p", "a", "b", "c", "d"]
  assert [c.parent for c in tree.comments] == [-1, 0, 1, 1, 0]
  assert tree.depths() == [0, 1, 2, 2, 1]
  assert tree.children() == [[1, 4], [2, 3], [], [], []]
  assert tree.comments[0].text == "title\n\nself"
  assert [c.author for c in tree.comments] == ["op", None, "ann", "ann", "ann"]
  assert tree.comments[1].created_utc == 1
  assert read_counts.comments == {comment_tree.KEPT: 4}


@pytest.mark.parametrize("parent", ["p", "a"])
def test_siblings_stand_by_time_then_as_they_came_and_the_undated_last(parent):
  tree, _ = build(
    comment("a", "p"),
    comment("none", parent),
    comment("late", parent, created=9),
    comment("tie1", parent, created=5),
    comment("tie2", parent, created=5),
    comment("none2", parent),
  )
  ids = [c.id for c in tree.comments[1:] if c.id != "a"]
  assert ids == ["tie1", "tie2", "late", "none", "none2"]


@pytest.mark.parametrize(
  ("body", "fate"),
  [
    ("[deleted]", comment_tree.SPLICED_DELETED),
    (" [Removed] ", comment_tree.SPLICED_DELETED),
    ("", comment_tree.SPLICED_EMPTY),
    (" \n\t", comment_tree.SPLICED_EMPTY),
    ("\0", comment_tree.SPLICED_EMPTY),
    (None, comment_tree.SPLICED_NO_TEXT),
    (5, comment_tree.SPLICED_NO_TEXT),
  ],
)
def test_replies_to_what_is_spliced_out_go_to_the_nearest_living_ancestor(body, fate):
  tree, read_counts = build(
    comment("a", "p"),
    comment("x", "a", body),
    comment("y", "x", body),
    comment("b", "y"),
    comment("z", "p", body),
    comment("c", "z"),
  )
  assert shape(tree) == {"a": "p", "b": "a", "c": "p"}
  assert read_counts.comments == {comment_tree.KEPT: 3, fate: 3}


def test_replies_of_spliced_comments_are_sorted_among_their_new_siblings():
  tree, _ = build(
    comment("x", "p", "[deleted]", created=1),
    comment("late", "x", created=9),
    comment("early", "p", created=2),
  )
  assert [c.id for c in tree.comments] == ["p", "early", "late"]


def test_deleted_comments_can_be_kept_in_place():
  tree, read_counts = build(
    comment("x", "p", "[removed]", author="[deleted]"),
    comment("b", "x"),
    config=KEEP,
  )
  assert shape(tree) == {"x": "p", "b": "x"}
  assert comment_tree.is_deleted(tree.comments[1].text)
  assert tree.comments[1].author is None
  assert read_counts.comments == {comment_tree.KEPT: 1, comment_tree.KEPT_DELETED: 1}


def test_replies_to_a_missing_parent_hang_under_the_post_or_are_dropped():
  comments = (
    comment("a", "gone"),
    comment("b", "a"),
    comment("c", None),
    comment("d", ["x"]),
    comment("e", "p"),
    comment("f", "gone", "[deleted]"),
  )
  tree, read_counts = build(*comments)
  assert shape(tree) == {"a": "p", "b": "a", "c": "p", "d": "p", "e": "p"}
  assert read_counts.comments == {
    comment_tree.KEPT: 3,
    comment_tree.KEPT_ORPHAN: 2,
    comment_tree.SPLICED_DELETED: 1,
  }
  tree, read_counts = build(*comments, config=DROP_ORPHANS)
  assert shape(tree) == {"c": "p", "e": "p"}
  assert read_counts.comments == {comment_tree.KEPT: 2, comment_tree.DROPPED_ORPHAN: 4}


def test_cycles_and_what_hangs_below_them_are_dropped():
  tree, read_counts = build(
    comment("a", "b"),
    comment("b", "c"),
    comment("c", "a"),
    comment("below", "a", "[deleted]"),
    comment("self", "self"),
    comment("below_self", "self"),
    comment("good", "p"),
  )
  assert shape(tree) == {"good": "p"}
  assert read_counts.comments == {
    comment_tree.KEPT: 1,
    comment_tree.DROPPED_CYCLE: 5,
    comment_tree.DROPPED_SELF_PARENT: 1,
  }


def test_of_comments_with_one_id_the_first_is_kept():
  tree, read_counts = build(
    comment("a", "p", "first"), comment("a", "p", "second"), comment("t1_a", "p")
  )
  assert [c.text for c in tree.comments[1:]] == ["first"]
  assert read_counts.comments == {
    comment_tree.KEPT: 1,
    comment_tree.DROPPED_DUPLICATE: 2,
  }


@pytest.mark.parametrize(
  "ident", [None, "", " ", "t1_", True, 1.5, [], {}, 10**76, HUGE]
)
def test_comments_without_an_id_are_dropped(ident):
  _, read_counts = build(comment(ident, "p"), comment("a", "p"))
  assert read_counts.comments == {comment_tree.KEPT: 1, comment_tree.DROPPED_NO_ID: 1}


def test_comments_that_are_no_objects_are_dropped():
  _, read_counts = build(None, "text", ["a"], comment("a", "p"))
  assert read_counts.comments == {
    comment_tree.KEPT: 1,
    comment_tree.DROPPED_NOT_OBJECT: 3,
  }


@pytest.mark.parametrize("tree_id", ["p", "t3_p"])
def test_reddits_prefixes_of_ids_are_understood(tree_id):
  tree, read_counts = build(
    comment("a", "t3_p"),
    comment("t1_b", "t1_a"),
    comment("c", "b"),
    comment("d", "p"),
    comment("e", "t3_other"),
    comment("p", "t3_p"),  # a comment may be named as a post is
    comment("f", "t1_p"),
    comment("g", "t3_a"),
    id=tree_id,
  )
  named = {c.id: c.parent for c in tree.comments}
  ids = [c.id for c in tree.comments]
  assert named["a"] == named["d"] == named["e"] == named["g"] == 0
  assert ids[named["t1_b"]] == "a"
  assert ids[named["c"]] == "t1_b"
  assert tree.comments[named["f"]].text == "text"
  assert named["f"] > 0
  assert read_counts.comments == {comment_tree.KEPT: 6, comment_tree.KEPT_ORPHAN: 2}


def test_ids_may_be_numbers():
  tree, _ = build(comment(1, 7), comment(2, 1), comment("3", "2"), id=7)
  assert tree.id == "7"
  assert shape(tree) == {"1": "7", "2": "1", "3": "2"}


@pytest.mark.parametrize(
  ("fields", "fate"),
  [
    ({"id": None}, comment_tree.TREE_NO_ID),
    ({"id": {"a": 1}}, comment_tree.TREE_NO_ID),
    ({"comments": []}, comment_tree.TREE_EMPTY),
    ({"comments": None}, comment_tree.TREE_NO_LIST),
    ({"comments": {"a": 1}}, comment_tree.TREE_NO_LIST),
  ],
)
def test_trees_without_anything_to_learn_from_are_skipped(fields, fate):
  read_counts = ReadCounts()
  assert build_tree({**record(), **fields}, read_counts, SPLICE) is None
  assert read_counts.trees == {fate: 1}


def test_comments_of_a_tree_without_an_id_are_accounted_for():
  tree, read_counts = build(comment("a", "p"), comment("b", "a"), id=None)
  assert tree is None
  assert read_counts.comments == {comment_tree.DROPPED_WITH_TREE: 2}


def test_a_tree_whose_comments_are_all_gone_is_skipped():
  tree, read_counts = build(comment("a", "p", "[deleted]"))
  assert tree is None
  assert read_counts.trees == {comment_tree.TREE_EMPTY: 1}


def test_a_lone_post_is_a_tree_where_posts_are_targets():
  tree, _ = build(config=TreeConfig(target_post=True))
  assert len(tree.comments) == 1
  tree, _ = build(config=TreeConfig(target_post=True), title="", selftext=None)
  assert tree is None


@pytest.mark.parametrize(
  ("title", "selftext", "text"),
  [
    ("title", None, "title"),
    (None, "self", "self"),
    ("title", "[deleted]", "title"),
    ("[deleted by user]", "[removed]", ""),
    (None, None, ""),
    (3, ["x"], ""),
  ],
)
def test_a_post_without_text_stays_as_the_root(title, selftext, text):
  tree, _ = build(comment("a", "p"), title=title, selftext=selftext)
  assert tree.comments[0].text == text
  assert shape(tree) == {"a": "p"}


def test_a_deleted_post_can_be_kept_as_deleted():
  tree, _ = build(comment("a", "p"), title=None, selftext="[removed]", config=KEEP)
  assert tree.comments[0].text == "[removed]"


def test_lone_surrogates_and_nul_are_mended_and_counted():
  tree, read_counts = build(
    comment("a\ud800", "p", "x\udc00y \ud83d\ude00 z\0w", author="n\udfff"),
    comment("b", "a\ud800"),
  )
  bad = tree.comments[1]
  assert bad.text == "x\ufffdy \U0001f600 zw"
  assert bad.author == "n\ufffd"
  assert shape(tree)["b"] == bad.id == "a\ufffd"
  assert read_counts.repaired[comment_tree.REPAIRED_SURROGATES] == 4
  assert read_counts.repaired[comment_tree.REPAIRED_NUL] == 1


@pytest.mark.parametrize(
  ("created", "read"),
  [
    (5, 5),
    (5.7, 5),
    ("1370000000", 1370000000),
    ("soon", None),
    (-1, None),
    (True, None),
    (float("nan"), None),
    (float("inf"), None),
    (2**80, None),
    pytest.param(10**5000, None, id="huge"),
    ("9" * 5000, None),
    ([], None),
  ],
)
def test_times_are_seconds_or_unknown(created, read):
  tree, _ = build(comment("a", "p", created=created))
  assert tree.comments[1].created_utc == read


ANYTHING = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.sampled_from(
    ["a", "b", "c", "p", "t1_a", "t3_p", "[deleted]", "", "\ud800", "\0"]
  )
  | st.text(st.characters(), max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "parent_id", "body"]), inner, max_size=3)
  ),
  max_leaves=6,
)
ANY_COMMENT = ANYTHING | st.fixed_dictionaries(
  {},
  optional={
    name: ANYTHING for name in ("id", "parent_id", "author", "body", "created_utc")
  },
)
ANY_RECORD = ANYTHING | st.fixed_dictionaries(
  {},
  optional={
    **{name: ANYTHING for name in ("id", "title", "selftext", "author", "created_utc")},
    "comments": ANYTHING | st.lists(ANY_COMMENT, max_size=8),
  },
)
IDS = st.sampled_from(list("abcdefp"))
TANGLED_RECORD = st.lists(
  st.builds(comment, IDS, IDS | st.none(), st.sampled_from(["text", "[deleted]", ""])),
  max_size=12,
).map(lambda comments: record(*comments))
CONFIGS = st.builds(
  TreeConfig,
  deleted=st.sampled_from(["splice", "keep"]),
  orphans=st.sampled_from(["attach", "drop"]),
  target_post=st.booleans(),
)


@given(ANY_RECORD | TANGLED_RECORD, CONFIGS)
def test_any_json_has_a_fate_and_a_tree_is_always_whole(value, config):
  read_counts = ReadCounts()
  tree = build_tree(value, read_counts, config)
  comments = value.get("comments") if isinstance(value, dict) else None
  assert read_counts.trees.total() == 1
  assert read_counts.comments.total() == (
    len(comments) if isinstance(comments, list) else 0
  )
  if tree is None:
    return
  assert read_counts.kept == len(tree.comments) - 1
  assert tree.comments[0].parent == -1
  for index, kept in enumerate(tree.comments):
    assert index == 0 or 0 <= kept.parent < index
    (kept.id + kept.text + (kept.author or "")).encode("utf-8")
    assert kept.text.strip() or index == 0
    assert "\0" not in kept.text
    assert kept.created_utc is None or 0 <= kept.created_utc < 2**63


def test_a_chain_of_ten_thousand_replies_is_a_tree():
  ids = ["p", *map(str, range(10_000))]
  tree, _ = build(*(comment(c, p) for p, c in itertools.pairwise(ids)))
  assert max(tree.depths()) == 10_000


def test_a_chain_of_ten_thousand_deleted_comments_is_spliced_out():
  ids = ["p", *map(str, range(10_000))]
  gone = (comment(c, p, "[deleted]") for p, c in itertools.pairwise(ids))
  tree, _ = build(*gone, comment("last", ids[-1]))
  assert shape(tree) == {"last": "p"}


def test_five_thousand_siblings_are_a_tree():
  tree, _ = build(*(comment(str(i), "p", created=-i) for i in range(5000)))
  assert len(tree.children()[0]) == 5000


@pytest.mark.long
def test_a_tree_of_a_hundred_thousand_comments_is_built_within_seconds():
  comments = [comment("0", "p")]
  comments += [comment(str(i), str(i * 7919 % i), created=i) for i in range(1, 100_000)]
  comments.reverse()
  started = time.process_time()
  tree, _ = build(*comments)
  assert len(tree.comments) == 100_001
  assert time.process_time() - started < 8


def test_a_comment_of_a_megabyte_is_kept_whole():
  tree, _ = build(comment("a", "p", "word " * 2**18))
  assert len(tree.comments[1].text) == 5 * 2**18


def test_fates_add_up_and_make_a_table():
  one, two = ReadCounts(), ReadCounts()
  build_tree(record(comment("a", "p"), None), one, SPLICE)
  build_tree(record(comment("a", "p", "\ud800")), two, SPLICE)
  assert ReadCounts().total() == 0
  total = ReadCounts()
  total += one
  total += two
  assert total.comments == {comment_tree.KEPT: 2, comment_tree.DROPPED_NOT_OBJECT: 1}
  assert total.kept == 2
  assert total.total() == 5
  console = rich.console.Console(width=100, record=True, quiet=False, file=None)
  with console.capture() as capture:
    console.print(total.table())
  shown = capture.get()
  for words in (
    comment_tree.DROPPED_NOT_OBJECT,
    comment_tree.REPAIRED_SURROGATES,
    "66.67%",
  ):
    assert words in shown


def test_fates_can_be_written_down():
  read_counts = ReadCounts()
  build_tree(record(comment("a", "p")), read_counts, SPLICE)
  facts = json.loads(json.dumps(read_counts.as_dict()))
  assert facts["comments"] == {comment_tree.KEPT: 1}
  assert (
    ReadCounts(**{k: collections.Counter(v) for k, v in facts.items()}) == read_counts
  )


@pytest.mark.parametrize(
  "bad",
  [
    {"deleted": "drop"},
    {"orphans": None},
    {"target_post": "yes"},
    {"max_line_bytes": 0},
  ],
)
def test_bad_settings_are_refused_by_name(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    TreeConfig(**bad)


@pytest.mark.parametrize(
  "text",
  [
    "[deleted]",
    " [Removed]\n",
    "[deleted by user]",
    "[ Deleted by user ]",
    "[removed by the moderators]",
    "[ Removed by moderator ]",
    "[unavailable]",
    "[redacted]",
    "[ Removed by Reddit ]",
    "[ Removed by Reddit in response to a copyright notice. ]",
    "[ Removed by Reddit on account of violating the [content policy](/help/rules). ]",
  ],
)
def test_what_sites_put_in_place_of_a_text_is_no_text(text):
  assert comment_tree.is_deleted(text)
  gone = comment("a", "p", text)
  tree, read_counts = build(gone, comment("b", "a", "alive"), comment("c", "b", text))
  assert shape(tree) == {"b": "p"}
  assert read_counts.comments == {comment_tree.KEPT: 1, comment_tree.SPLICED_DELETED: 2}
  assert [c.reply_deleted for c in tree.comments] == [True, True]
  assert comment_tree.post_text(text, text, TreeConfig()) == ""
