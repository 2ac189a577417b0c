"""What is wanted of trees: filters, splits by time, one tree in several files."""

import io
import json

import pytest

from commentree.console import Console
from commentree.launch.reports import build_report
from commentree.tasks.building import building, filters, statistics
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.trees import comment_tree
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees

DEFAULT = BuildConfig()


def made_of(tmp_path, config, *records):
  path = write_trees(tmp_path, *records)
  made = building_fixture.build([path], tmp_path / "out", config)
  return {tree.id: tree for tree in building_fixture.trees(made.folder)}, made.stats


@pytest.mark.parametrize(
  ("settings", "odd", "fate"),
  [
    ({"min_score": 0}, {"score": -1}, filters.SPLICED_SCORE),
    ({"min_words": 2}, {"body": "word"}, filters.SPLICED_SHORT),
    ({"max_words": 3}, {"body": "more words than those"}, filters.SPLICED_LONG),
    ({"min_chars": 5}, {"body": "word"}, filters.SPLICED_SHORT),
    ({"max_chars": 15}, {"body": "more words than those"}, filters.SPLICED_LONG),
  ],
)
def test_replies_to_filtered_comments_hang_under_the_nearest_that_is_left(
  tmp_path, settings, odd, fate
):
  config = BuildConfig(**settings)
  comments = comment("a", "p"), comment("b", "a", **odd), comment("c", "b", score=None)
  found, stats = made_of(tmp_path, config, record("p", *comments))
  assert [c.id for c in found["p"].comments] == ["p", "a", "c"]
  assert found["p"].comments[2].parent == 1
  assert stats["read_counts"]["comments"] == {fate: 1, comment_tree.KEPT: 2}


@pytest.mark.parametrize(
  ("settings", "fate"),
  [
    ({"after": 100}, filters.TREE_TIME),
    ({"before": 100}, filters.TREE_TIME),
    ({"min_comments": 3}, filters.TREE_FEW),
    ({"max_comments": 1}, filters.TREE_MANY),
    ({"max_tree_comments": 1}, filters.TREE_LARGE),
    ({"subreddits": ("cats",)}, filters.TREE_SUBREDDIT),
    ({"exclude_subreddits": ("dogs",)}, filters.TREE_SUBREDDIT),
  ],
)
def test_trees_that_are_not_wanted_are_counted_with_their_comments(
  tmp_path, settings, fate
):
  time = 200 if "before" in settings else 50
  two = comment("a", "x", created=time), comment("b", "a", created=time)
  number = {"min_comments": 3}.get(next(iter(settings)), 1)
  wanted = [comment(str(i), "good", created=150 - time // 2) for i in range(number)]
  found, stats = made_of(
    tmp_path,
    BuildConfig(**settings),
    record("x", *two, subreddit="Dogs"),
    record("good", *wanted, subreddit="Cats"),
  )
  assert list(found) == ["good"]
  assert stats["read_counts"]["trees"] == {fate: 1, comment_tree.KEPT: 1}
  assert stats["comments"] == 2 + number
  assert stats["comments_kept"] == number
  assert stats["posts"] == 2


def test_trees_without_a_post_are_left_out_as_such(tmp_path):
  lines = [
    {"id": str(i), "link_id": "t3_p", "parent_id": "t3_p", "body": "text"}
    for i in range(3)
  ] + [{"id": "z", "link_id": "t3_q", "parent_id": "t3_q", "body": "text"}]
  path = tmp_path / "RC.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  for number, settings in enumerate(({"max_comments": 2}, {"max_tree_comments": 2})):
    out = tmp_path / f"out{number}"
    stats = building_fixture.build([path], out, BuildConfig(**settings)).stats
    assert stats["posts"] == 0
    assert stats["posts_missing"] == 2
    assert stats["comments"] == 4


def test_a_tree_as_large_as_allowed_is_built_whatever_its_post(tmp_path):
  config = BuildConfig(max_tree_comments=2)
  found, _ = made_of(
    tmp_path, config, record("p", comment("a", "p"), comment("b", "p"))
  )
  assert len(found["p"].comments) == 3


def test_splits_by_time_go_by_the_post_and_else_by_the_earliest_comment(tmp_path):
  config = BuildConfig(validation_after=100, test_after=200)
  path = write_trees(
    tmp_path,
    record("early", comment("a", "early", created=150), created_utc=50),
    record("later", comment("b", "later", created=150), comment("c", "b", created=350)),
    record("last", comment("d", "last", created=250)),
    record("undated", comment("e", "undated", created=None)),
  )
  made = building_fixture.build([path], tmp_path / "out", config)
  splits = {
    split: sorted(tree.id for tree in building_fixture.trees(made.folder, split))
    for split in ("train", "validation", "test")
  }
  assert splits == {
    "train": ["early", "undated"],
    "validation": ["later"],
    "test": ["last"],
  }


def test_of_a_tree_in_several_files_rows_come_together_and_the_first_post_counts(
  tmp_path,
):
  one = write_trees(tmp_path / "1", record("p", comment("a", "p", "first")))
  two = write_trees(
    tmp_path / "2",
    record("p", comment("a", "p", "again"), comment("b", "a"), title="other"),
  )
  made = building_fixture.build([two, one], tmp_path / "out", DEFAULT)
  (tree,) = building_fixture.trees(made.folder)
  assert [c.text for c in tree.comments] == ["title", "first", "some words here"]
  assert made.stats["read_counts"]["comments"] == {
    comment_tree.KEPT: 2,
    comment_tree.DROPPED_DUPLICATE: 1,
  }
  assert made.stats["read_counts"]["trees"] == {
    comment_tree.KEPT: 1,
    comment_tree.TREE_DUPLICATE: 1,
  }


def test_settings_of_trees_count(tmp_path):
  config = BuildConfig(trees=TreeConfig("keep", "drop", target_post=True))
  found, _ = made_of(
    tmp_path,
    config,
    record("p", comment("a", "p", "[deleted]"), comment("b", "gone")),
    record("alone"),
  )
  assert [c.id for c in found["p"].comments] == ["p", "a"]
  assert len(found["alone"].comments) == 1


def test_one_file_given_twice_is_read_once(tmp_path):
  path = write_trees(tmp_path, record("p", comment("a", "p")))
  (tmp_path / "link.jsonl").symlink_to(path)
  sources = building.list_sources(
    [str(path), str(tmp_path / "*.jsonl"), f"{tmp_path}/./trees.jsonl"], DEFAULT
  )
  assert len(sources) == 1


def test_labels_are_counted_and_the_rarest_together(tmp_path):
  comments = [
    comment(f"c{i}_{j}", "p", label=f"l{i:02}")
    for i in range(23)
    for j in range(30 - i)
  ]
  _, stats = made_of(
    tmp_path, BuildConfig(validation_share=0), record("p", *comments, label="l22")
  )
  found = stats["labels"]
  assert list(found) == [f"l{i:02}" for i in range(20)] + [statistics.OTHER_LABELS]
  assert found["l00"] == {"comments": 30, "posts": 0}
  assert found[statistics.OTHER_LABELS] == {"comments": 10 + 9 + 8, "posts": 1}
  told = io.StringIO()
  build_report.show(stats, 1.0, 0, Console(file=told, width=200))
  lines = [line.split() for line in told.getvalue().splitlines()]
  assert ["label", "l00", "30", "0"] in lines
  assert ["label", "(others)", "27", "1"] in lines


def test_labels_that_are_all_different_are_counted_in_little_memory(monkeypatch):
  monkeypatch.setattr(statistics, "_MOST_LABELS", 3)
  found = statistics.Statistics()
  for part in ("abc", "bcd", "dea"):
    of_shard = statistics.Statistics()
    for label in part:
      statistics.count_label(of_shard.label_comments, label)
    found += statistics.Statistics.from_dict(of_shard.as_dict())
  assert found.label_comments == {"a": 2, "b": 2, "c": 2, statistics.OTHER_LABELS: 3}
  labels = found.summary()["labels"]
  assert labels[statistics.OTHER_LABELS] == {"comments": 3, "posts": 0}
