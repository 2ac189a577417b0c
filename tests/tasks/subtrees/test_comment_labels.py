"""Labels of whole comments, from files to subtrees."""

import dataclasses
import io
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.console import Console
from commentree.errors import UserError
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import (
  CommentLabelsConfig,
  MarkersConfig,
  PreprocessingConfig,
  SubtreeConfig,
  TreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.inspection import views
from commentree.tasks.preparation import preparing, records
from commentree.tasks.seqio_tasks import registration
from commentree.tasks.seqio_tasks import registry as registry_lib
from commentree.tasks.sources import generated
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.subtrees.subtree_counts import SubtreeCounts
from commentree.tasks.trees import assembly
from commentree.tasks.trees.comment_tree import Comment, CommentTree, ReadCounts
from commentree.tasks.trees.row import Row
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees
from commentree.tests.support.tasks.reading import read
from commentree.tests.support.tasks.vocabulary_fixture import Characters

GENERATED = GeneratedTreesConfig()
STANCES = CommentLabelsConfig("label", ("for", "against"))


def test_labels_are_read_of_posts_and_comments_whatever_they_are_written_as(tmp_path):
  written = ["for", 1, True, None, [], " against ", 1.5, "", "\ud800"]
  path = write_trees(
    tmp_path,
    record("p", *[comment(f"c{i}", "p", label=x) for i, x in enumerate(written)]),
    record("q", comment("c", "q"), label=0),
  )
  (first, second), _ = read(path)
  labels = [c.label for c in first.comments[1:]]
  assert labels == ["for", "1", "true", None, None, "against", "1.5", None, "\ufffd"]
  assert [c.label for c in second.comments] == ["0", None]


def test_built_datasets_keep_labels_and_what_was_deleted(tmp_path):
  path = write_trees(
    tmp_path / "in",
    record(
      "p",
      comment("a", "p", label="for", created=1),
      comment("b", "a", "[deleted]", created=2),
      comment("c", "b", label="against", created=3),
      label="motion",
    ),
  )
  built = building_fixture.build([path], tmp_path / "forum", BuildConfig())
  (tree,) = building_fixture.trees(built.folder)
  assert [c.label for c in tree.comments] == ["motion", "for", "against"]
  assert [c.reply_deleted for c in tree.comments] == [False, True, False]


@given(st.data())
def test_a_comment_has_lost_a_reply_whether_deleted_ones_stay_or_go(drawn):
  size = drawn.draw(st.integers(1, 12))
  ids = string.ascii_lowercase[:size]
  parents = [drawn.draw(st.sampled_from(["p", *ids[:i], "gone"])) for i in range(size)]
  deleted = [drawn.draw(st.booleans()) for _ in ids]
  rows = [Row(tree_id="p", is_post=True, id="p", text="title")] + [
    Row(
      tree_id="p",
      is_post=False,
      id=i,
      parent_id=parent,
      text="[removed]" if gone else "text",
    )
    for i, parent, gone in zip(ids, parents, deleted)
  ]
  wanted = {parent for parent, gone in zip(parents, deleted) if gone} - {"gone"}
  for choice in ("splice", "keep"):
    config = TreeConfig(deleted=choice)
    tree = assembly.assemble(drawn.draw(st.permutations(rows)), ReadCounts(), config)
    if tree is None:
      assert all(deleted)
      continue
    there = {c.id for c in tree.comments}
    assert there == {"p", *ids} - (
      {i for i, gone in zip(ids, deleted) if gone} if choice == "splice" else set()
    )
    assert {c.id for c in tree.comments if c.reply_deleted} == wanted & there


def tree():
  return CommentTree(
    "t",
    [
      Comment("p", -1, None, "title", 0, label="for"),
      Comment("a", 0, None, "x" * 25, 1, label="against", reply_deleted=True),
      Comment("b", 1, None, "short", 2),
      Comment("c", 0, None, "other", 3, label="neither"),
    ],
    "pics",
  )


@pytest.mark.parametrize(
  ("config", "classes"),
  [
    (STANCES, [0, 1, -1, -1]),
    (CommentLabelsConfig("subreddit", ("news", "pics")), [1, 1, 1, 1]),
    (CommentLabelsConfig("subreddit", ("news",)), [-1, -1, -1, -1]),
    (CommentLabelsConfig("deleted_next"), [0, 1, 0, 0]),
  ],
)
def test_a_comments_class_is_at_the_node_that_it_begins_in(config, classes):
  settings = SubtreeConfig(
    max_tree_size=4, max_ancestors=2, max_comment_tokens=10, long_comments="chunk"
  )
  builder = SubtreeBuilder(
    Characters(),
    PreprocessingConfig(
      markers=MarkersConfig(authors=False), comment_labels=config, subtrees=settings
    ),
  )
  found = {}
  subtrees = list(builder(tree()))
  assert len(subtrees) > 1
  for subtree in subtrees:
    assert subtree["comment_labels"].dtype == np.int32
    for node, label in zip(subtree["node_ids"].tolist(), subtree["comment_labels"]):
      found.setdefault(node, set()).add(int(label))
    assert len(subtree["comment_labels"]) == len(subtree["lengths"])
  # The long comment's other chunks have none.
  assert found == {
    node: {label, -1} if node == 1 else {label} for node, label in enumerate(classes)
  }
  others = {"label": 1, "subreddit": 4 * (classes[0] < 0)}.get(config.source, 0)
  assert sum(builder.counts.classes.values()) == sum(label >= 0 for label in classes)
  assert builder.counts.other_labels == others


def test_a_run_is_told_how_many_comments_each_class_has():
  builder = SubtreeBuilder(Characters(), PreprocessingConfig(comment_labels=STANCES))
  list(builder(tree()))
  told = builder.counts.report()
  counted = ", ".join(f"{name} {n}" for name, n in builder.counts.classes.items())
  assert tuple(builder.counts.classes) == STANCES.names
  assert f"labelled comments: {counted} (1 more have" in told
  # Classes that no comment has are told, too, and parts of the data add up.
  total = SubtreeCounts()
  for counts in (builder.counts, SubtreeCounts(classes={"none": 0, "for": 2})):
    total.add(counts)
  assert total.classes["none"] == 0
  assert total.classes["for"] == builder.counts.classes["for"] + 2
  many = SubtreeCounts(classes={f"c{i}": 2 for i in range(23)})
  assert many.report_classes().startswith("46 labelled comments: c0 2, c1 2, ")
  assert "c19 2, 6 of 3 other classes (" in many.report_classes()
  assert SubtreeCounts().report_classes() == ""


def test_subtrees_come_back_from_disk_with_classes_and_have_none_unasked():
  (subtree,) = SubtreeBuilder(
    Characters(), PreprocessingConfig(comment_labels=STANCES)
  )(tree())
  again = records.decode(records.encode(subtree))
  np.testing.assert_array_equal(again["comment_labels"], subtree["comment_labels"])
  (bare,) = SubtreeBuilder(Characters())(tree())
  assert "comment_labels" not in bare


def test_classes_are_told_when_prepared_data_is_used_again(tmp_path):
  path = write_trees(
    tmp_path / "in",
    *(record(f"p{i}", comment(f"a{i}", f"p{i}", label="for")) for i in range(9)),
  )
  config = DataConfig(
    "commentree_files",
    {"encoder": 8, "decoder": 8},
    files=str(path),
    held_out_share=0.0,
    cache_dir=str(tmp_path / "cache"),
    vocabulary=str(generated.vocabulary(GENERATED, MarkersConfig(), str(tmp_path))),
    preprocessing=PreprocessingConfig(comment_labels=STANCES),
  )
  registration.register_tasks(config)
  task = registry_lib.get_task("commentree_files")
  for begins in ("prepared train: ", "train: "):
    told = io.StringIO()
    preparing.prepare(task, "train", config, Console(file=told, width=1000))
    assert told.getvalue().startswith(begins)
    assert "9 labelled comments: for 9, against 0 (0 more" in told.getvalue()


def test_labels_prepare_anew():
  generated = DataConfig("commentree_generated", {"encoder": 8, "decoder": 8})

  def settings(labels):
    config = dataclasses.replace(
      generated, preprocessing=PreprocessingConfig(comment_labels=labels)
    )
    registration.register_tasks(config)
    task = registry_lib.get_task("commentree_generated")
    facts = dataclasses.asdict(task.preprocessing)
    return preparing.settings(task, "train"), facts

  none, one, other = map(
    settings, (CommentLabelsConfig(), STANCES, CommentLabelsConfig("deleted_next"))
  )
  for a, b in ((none, one), (one, other)):
    assert a[0] != b[0]
    assert a[1] != b[1]


@pytest.mark.parametrize(
  "settings",
  [
    {"source": "label"},
    {"source": "subreddit", "names": ()},
    {"source": "labels", "names": ("a",)},
    {"names": ("a", "b")},
    {"source": "label", "names": ("a", "a")},
    {"source": "deleted_next", "names": ("a", "b", "c")},
  ],
)
def test_settings_of_labels_that_cannot_be_are_refused(settings):
  with pytest.raises(UserError, match=r"CommentLabelsConfig\.(names|source)"):
    CommentLabelsConfig(**settings)


def test_a_view_tells_what_the_source_says_of_a_comment():
  view = views.CommentView(
    index=0,
    id="t1",
    parent=-1,
    depth=0,
    is_last=True,
    replies=0,
    author=None,
    marker="",
    raw="",
    clean="",
    left_out=0,
    changes=(),
    tokens_cut=0,
    context=(),
    parts=(),
    label="for",
    reply_deleted=True,
  )
  assert view.notes() == ["label: for", "a reply was deleted"]
  assert dataclasses.replace(view, label=None, reply_deleted=False).notes() == []
