"""What is built, of any source: the trees of a slow reader, each comment counted."""

import contextlib
import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from commentree import local_files
from commentree.errors import StorageError, UserError
from commentree.tasks.building import building, grouping, parts
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.dataset_files import folder_commit, manifest
from commentree.tasks.trees import comment_tree
from commentree.tests.support.real_data import DATA, REAL
from commentree.tests.support.tasks import (
  building_fixture,
  pushshift_dump,
  slow_reading,
  written_threads,
)
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees

DEFAULT = BuildConfig()
# Shards and parts so small that there are some of a small dump.
SMALL = BuildConfig(validation_share=0.2, test_share=0.1, shard_mb=1)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
  return pushshift_dump.write_small(tmp_path_factory.mktemp("dump"))


@pytest.fixture(scope="module")
def built(dump, tmp_path_factory):
  out = tmp_path_factory.mktemp("built") / "forum"
  return building_fixture.build([dump / "*.zst"], out, SMALL)


def truth_of(dump):
  facts = json.loads((dump / "TRUTH").read_text())
  return {kind: dict(sorted(counts.items())) for kind, counts in facts.items()}


@pytest.mark.long
def test_what_becomes_of_a_dump_is_what_its_maker_says(dump, built):
  assert built.stats["read_counts"] == truth_of(dump)
  kept = sum(len(tree.comments) - 1 for tree in building_fixture.trees(built.folder))
  assert built.stats["comments_kept"] == kept


def test_every_line_is_counted_once(dump, built):
  lines = sum(
    len([line for line in slow_reading.contents(path).split(b"\n") if line.strip()])
    for path in dump.glob("R*_2*.zst")
  )
  of_damaged_file = 60
  assert built.stats["comments"] + built.stats["posts"] == lines + of_damaged_file


def test_comments_of_a_dump_find_their_post_wherever_they_lie(dump, built):
  lines = [
    json.loads(line)
    for path in sorted(dump.glob("RC_2*.zst"))
    for line in slow_reading.contents(path).split(b"\n")[:-1]
    if line.startswith(b'{"archived"')
  ]
  of_tree = {}
  for line in lines:
    if line["body"].strip() and line["body"] not in ("[deleted]", "[removed]"):
      # Of those with one id the first counts.
      of_tree.setdefault(line["link_id"][3:], {}).setdefault(line["id"], line["body"])
  found = {
    tree.id: {comment.id: comment.text for comment in tree.comments[1:]}
    for tree in building_fixture.trees(built.folder)
    if not tree.id.startswith("q")  # of the damaged file
  }
  assert found == of_tree


@pytest.mark.parametrize("name", written_threads.WRITERS)
def test_made_up_threads_are_built_as_a_slow_reader_reads_them(tmp_path, name):
  paths = written_threads.write(name, tmp_path, 7, count=20)
  same_as_slow(name, paths, tmp_path / "out")


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_built_as_a_slow_reader_reads_them(tmp_path, name):
  """The shared files where they are; made-up ones elsewhere."""
  paths = [str(p) for pattern in REAL[name] for p in sorted(DATA.glob(pattern))]
  paths = paths or written_threads.write(name, tmp_path, 98, count=60)
  same_as_slow(name, paths, tmp_path / "out")


def same_as_slow(name, paths, out):
  made = building_fixture.build(paths, out, DEFAULT)
  in_order = [source.path for source in building.list_sources(paths, DEFAULT)]
  threads = slow_reading.READERS[name](in_order)
  assert slow_reading.summary(
    building_fixture.trees(made.folder)
  ) == slow_reading.trees(threads)
  comments = sum(len(thread.comments) for thread in threads.values())
  posts = sum(thread.post_seen for thread in threads.values())
  repeated = made.stats["read_counts"]["trees"].get(comment_tree.TREE_DUPLICATE, 0)
  assert made.stats["comments"] == comments
  assert made.stats["posts"] == posts + repeated


def test_the_same_bytes_come_out_of_other_memory_order_and_place(
  dump, built, tmp_path, monkeypatch
):
  wanted = building_fixture.contents(built.folder)
  assert len([name for name in wanted if "-train." in name]) > 1
  moved = tmp_path / "elsewhere"
  moved.mkdir()
  for path in dump.glob("*.zst"):
    (moved / path.name).write_bytes(path.read_bytes())
  paths = sorted(moved.glob("*.zst"), reverse=True)
  monkeypatch.setattr(parts, "_ROWS_AT_ONCE", 100)
  monkeypatch.setattr(parts, "_SMALL_FILE_BYTES", 2**16)
  monkeypatch.setattr(building, "_LEAST_SORTS", 1)
  monkeypatch.setattr(building, "_SORTED_PER_MEMORY", 0.01)

  class Reversed(building_fixture.Here):
    def run(self, work, tasks, at_once=None):
      super().run(work, reversed(list(tasks)), at_once)

  out = tmp_path / "forum"
  made = building_fixture.build(paths, out, SMALL, share_mb=40, pool=Reversed())
  assert building_fixture.contents(made.folder) == wanted


@pytest.mark.parametrize("name", [*parts.COLUMNS, "key", "file", "place"])
def test_a_folder_named_like_a_column_changes_nothing(tmp_path, name):
  paths = written_threads.write("tree_jsonl", tmp_path, 7, count=3)
  wanted = building_fixture.build(paths, tmp_path / "plain", DEFAULT)
  made = building_fixture.build(paths, tmp_path / f"{name}=7" / "plain", DEFAULT)
  same = building_fixture.contents(wanted.folder)
  assert building_fixture.contents(made.folder) == same


def test_a_folder_named_like_a_glob_is_not_read_as_one(tmp_path):
  paths = written_threads.write("tree_jsonl", tmp_path, 7, count=3)
  building_fixture.build(paths, tmp_path / "ab" / "plain", DEFAULT)
  other = written_threads.write("tree_jsonl", tmp_path / "more", 8, count=3)
  wanted = building_fixture.build(other, tmp_path / "plain", DEFAULT)
  for name in ("a?", "*", "[a]b", "{ab}"):
    made = building_fixture.build(other, tmp_path / name / "plain", DEFAULT)
    same = building_fixture.contents(wanted.folder)
    assert building_fixture.contents(made.folder) == same


def test_a_folder_left_by_a_build_of_hacker_news_runs_no_code(tmp_path):
  """Even where it holds what Python would unpickle."""
  paths = written_threads.write("hacker_news", tmp_path, 7, count=3)
  [source, *_] = building.list_sources(paths, DEFAULT)
  harmful = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
  (tmp_path / "hacker_news.format").write_bytes(
    harmful + b"\0" * (-len(harmful) % 8 + 1)
  )
  [ready], tasks = parts.with_prepared([source], tmp_path)
  assert not tasks
  with pytest.raises(UserError, match=r"hacker_news\.format: is damaged"):
    list(parts.wanted_rows(ready, DEFAULT, comment_tree.ReadCounts()))
  assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_another_seed_gives_another_order_of_the_same_trees_and_splits(
  dump, built, tmp_path
):
  config = dataclasses.replace(SMALL, seed=1)
  other = building_fixture.build([dump / "*.zst"], tmp_path / "forum", config)
  for split in ("train", "validation", "test"):
    one, two = (
      [tree.id for tree in building_fixture.trees(made.folder, split)]
      for made in (built, other)
    )
    assert one != two
    assert sorted(one) == sorted(two) != one


def test_no_tree_is_in_two_splits_and_shares_are_as_asked(built):
  ids = {
    split: {tree.id for tree in building_fixture.trees(built.folder, split)}
    for split in ("train", "validation", "test")
  }
  total = sum(map(len, ids.values()))
  assert len(set.union(*ids.values())) == total
  assert len(ids["validation"]) / total == pytest.approx(0.2, abs=0.05)
  assert len(ids["test"]) / total == pytest.approx(0.1, abs=0.04)


def test_what_is_finished_is_not_done_again(dump, built, tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "_BUNDLE_FILES", 3)

  class Stopping(building_fixture.Here):
    """Stops behind some tasks."""

    def __init__(self, left):
      super().__init__()
      self.left = left

    def run(self, work, tasks, at_once=None):
      for task in tasks:
        if not self.left:
          raise KeyboardInterrupt
        super().run(work, [task])
        self.left -= 1

  done = []
  out = tmp_path / "forum"
  while not done or done[-1] == 2:
    pool = Stopping(2)
    with contextlib.suppress(KeyboardInterrupt):
      made = building_fixture.build([dump / "*.zst"], out, SMALL, pool=pool)
    done.append(len(pool.done))
    assert len(done) < 30
  shards = made.stats["splits"]["train"]["shards"]
  files = len(list(dump.glob("*.zst")))
  assert sum(done) == -(-files // 3) + shards
  assert building_fixture.contents(made.folder) == building_fixture.contents(
    built.folder
  )


def test_of_a_file_that_was_stopped_in_finished_parts_stay(dump, tmp_path, monkeypatch):
  (source, *_) = building.list_sources(str(dump / "RC_2015-01.zst"), DEFAULT)
  monkeypatch.setattr(parts, "_ROWS_AT_ONCE", 100)

  def write(folder, stop_after):
    left = iter(range(stop_after))
    whole = parts._write_part

    def stop(*arguments):
      if next(left, None) is None:
        raise KeyboardInterrupt
      whole(*arguments)

    with monkeypatch.context() as patch:
      patch.setattr(parts, "_write_part", stop)
      parts.write_parts(
        (source,), folder, DEFAULT, 2**17, 2**27, lambda rows, size: None
      )

  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  for folder in (whole, stopped):
    folder.mkdir()
  write(whole, 1000)
  with pytest.raises(KeyboardInterrupt):
    write(stopped, 2)
  before = {path: path.stat().st_ino for path in stopped.glob("*.parquet")}
  assert len(before) == 2
  assert not parts.is_done(stopped, (source,))
  write(stopped, 1000)
  assert all(path.stat().st_ino == inode for path, inode in before.items())
  names = [sorted(path.name for path in f.iterdir()) for f in (whole, stopped)]
  assert names[0] == names[1]
  assert len(names[0]) > 4
  assert parts.read_facts(whole) == parts.read_facts(stopped)


def test_a_full_disk_is_told_in_one_line_and_work_goes_on_when_there_is_room(
  tmp_path, monkeypatch
):
  path = write_trees(tmp_path, record("p", comment("a", "p")))
  out = tmp_path / "forum"

  def full(path):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(local_files, "sync", full)
    with pytest.raises(StorageError, match="the disk is full; free some room") as told:
      building_fixture.build([path], out, DEFAULT)
  assert told.value.exit_code == 74
  assert not (out / manifest.VERSION).exists()
  assert not building_fixture.build([path], out, DEFAULT).already


@pytest.mark.long
def test_a_sort_tells_a_full_disk_from_too_little_memory(tmp_path):
  text = "".join(map(chr, range(40, 120))) * 8
  trees = [
    record(f"p{i}", *(comment(f"a{j}", f"p{i}", text) for j in range(500)))
    for i in range(80)
  ]
  path = write_trees(tmp_path, *trees)
  building_fixture.write_parts([path], tmp_path, DEFAULT)
  nowhere = tmp_path / "file"
  nowhere.write_text("")
  found = parts.list_parts(tmp_path)

  def sort(memory_mb, spill):
    with grouping.trees_of_rows(found, 0, 2**64 - 1, memory_mb, spill, None) as grouped:
      return sum(len(list(rows)) for _, _, rows in grouped)

  with pytest.raises(StorageError, match="free some room on this disk") as refused:
    sort(16, nowhere / "spill")
  assert refused.value.exit_code == 74
  with pytest.raises(grouping.SortMemoryError):
    sort(1, tmp_path / "spill")


def test_a_build_of_which_nothing_is_left_says_what_became_of_all(tmp_path):
  path = write_trees(tmp_path, record("p", comment("a", "p", "[deleted]")))
  told = r"no tree is left of 1 files .*no comments left; 1 comments spliced out: del"
  with pytest.raises(UserError, match=told):
    building_fixture.build([path], tmp_path / "forum", DEFAULT)
  assert not (tmp_path / "forum" / manifest.VERSION).exists()


def test_an_unknown_format_is_told_with_those_there_are(tmp_path):
  path = write_trees(tmp_path, record("p", comment("a", "p")))
  with pytest.raises(UserError, match="format 'x': is not known; there are"):
    building.list_sources([str(path)], BuildConfig(format="x"))


@pytest.mark.parametrize("bad", ["My-Forum", "2015", "forum.v2", "__"])
def test_a_folder_that_is_no_name_of_a_dataset_is_refused_with_a_better_one(bad):
  with pytest.raises(UserError, match=r"try /data/[a-z][a-z0-9_]*$"):
    manifest.check_name(pathlib.Path("/data") / bad)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"validation_share": 0.6, "test_share": 0.6}, "more than 1 together"),
    ({"validation_share": 1.5}, "validation_share"),
    ({"test_after": 5}, "give both"),
    ({"after": 5, "before": 4}, "nothing between"),
    ({"min_words": 5, "max_words": 4}, "nothing between"),
    ({"max_tree_comments": 0}, "max_tree_comments"),
  ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, words):
  with pytest.raises(UserError, match=words):
    BuildConfig(**settings)


def test_checksums_tell_a_flipped_bit_a_missing_and_an_added_file(tmp_path):
  path = write_trees(tmp_path, *(record(str(i), comment("a", "p")) for i in range(9)))
  made = building_fixture.build([path], tmp_path / "forum", DEFAULT)
  found = manifest.check(made.folder.parent)
  assert found["records"] == 9
  shard = next(made.folder.glob("*.tfrecord-*"))
  data = shard.read_bytes()
  for change, words in [
    (data[:50] + bytes([data[50] ^ 1]) + data[51:], "is damaged: its SHA-256"),
    (data[:-1], f"has {len(data) - 1:,} bytes, not {len(data):,}"),
    (None, "is missing"),
  ]:
    shard.unlink()
    if change is not None:
      shard.write_bytes(change)
    with pytest.raises(UserError, match=f"{shard.name} {words}"):
      manifest.check(made.folder)
  shard.write_bytes(data)
  (made.folder / "stray").touch()
  with pytest.raises(UserError, match="stray does not belong here"):
    manifest.check(made.folder)
  with pytest.raises(UserError, match="is no dataset made by"):
    manifest.check(tmp_path)


@pytest.mark.long
def test_tfds_reads_what_was_built(built):
  import tensorflow_datasets as tfds

  from commentree.tasks.trees import columns

  folder = built.folder.parent
  one_file_at_a_time = tfds.ReadConfig(interleave_cycle_length=1)
  loaded = tfds.load(
    folder.name,
    data_dir=folder.parent,
    split="validation",
    read_config=one_file_at_a_time,
  )
  read = [columns.from_columns(row) for row in tfds.as_numpy(loaded)]
  assert read == list(building_fixture.trees(built.folder, "validation"))
  builder = tfds.builder(folder.name, data_dir=folder.parent)
  for split, facts in built.stats["splits"].items():
    assert builder.info.splits[split].num_examples == facts["trees"]


def test_statistics_are_those_of_the_trees(built):
  found = list(building_fixture.trees(built.folder))
  comments = [(tree, i) for tree in found for i in range(1, len(tree.comments))]
  wanted = {
    "tree_comments": [len(tree.comments) - 1 for tree in found],
    "tree_depth": [max(tree.depths()) for tree in found],
    "comment_words": [len(t.comments[i].text.encode().split()) for t, i in comments],
    "comment_chars": [len(t.comments[i].text) for t, i in comments],
    "comment_depth": [d for tree in found for d in tree.depths()[1:]],
    "comment_replies": [len(r) for tree in found for r in tree.children()[1:]],
  }
  for name, numbers in wanted.items():
    facts = built.stats["distributions"][name]
    assert facts["number"] == len(numbers)
    assert facts["mean"] == pytest.approx(np.mean(numbers), abs=1e-3)
    assert facts["max"] == max(numbers)
    for p in (50, 90, 99):
      at = np.percentile(numbers, p, method="inverted_cdf")
      assert facts[f"p{p}"] == at
    assert sum(facts["histogram"].values()) == len(numbers)
    for key, count in facts["histogram"].items():
      low, _, high = key.partition("-")
      assert count == sum(int(low) <= n <= int(high or low) for n in numbers)
  assert sum(built.stats["comments_by_year"].values()) == len(comments)
  subreddits = {tree.subreddit for tree in found}
  assert built.stats["subreddits"] == len(subreddits)
  for name, facts in built.stats["top_subreddits"].items():
    assert facts["trees"] == sum(tree.subreddit == name for tree in found)


def test_rows_of_a_tree_come_in_order_of_file_and_line_however_parts_are_listed(
  dump, tmp_path, monkeypatch
):
  monkeypatch.setattr(parts, "_ROWS_AT_ONCE", 100)
  building_fixture.write_parts([dump / "R*_2*.zst"], tmp_path, DEFAULT, 2**16)
  found = parts.list_parts(tmp_path)
  assert len(found) > 20

  def rows_of(listed):
    with grouping.trees_of_rows(
      listed, 0, 2**64 - 1, 64, tmp_path / "spill", None
    ) as trees:
      return [(tree_id, list(rows)) for _, tree_id, rows in trees]

  rows = rows_of(found)
  assert rows_of(found[::-1]) == rows_of(found[::2] + found[1::2]) == rows
  assert all(
    not later.is_post or earlier.is_post
    for _, of_tree in rows
    for earlier, later in itertools.pairwise(of_tree)
  )


def test_a_file_is_there_when_it_is_whole_and_not_before(tmp_path):
  path = tmp_path / "file"

  def write(text, stop):
    with folder_commit.draft(path) as draft:
      draft.write_text(text)
      assert not path.exists() or path.read_text() == "old"
      if stop:
        raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write("half", stop=True)
  assert not path.exists()
  write("old", stop=False)
  with pytest.raises(KeyboardInterrupt):
    write("half", stop=True)
  assert path.read_text() == "old"
