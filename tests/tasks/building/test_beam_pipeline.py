import importlib.util
import json

import pytest

from commentree.errors import UserError
from commentree.launch.commands import build as build_verb
from commentree.tasks.building import beam_pipeline, building, filters
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.dataset_files import built_dataset
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.tasks import building_fixture, pushshift_dump
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees

RUNNER = ["--runner=DirectRunner"]


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
  folder = tmp_path_factory.mktemp("dump")
  config = pushshift_dump.DumpConfig(comments=3_000, files=3)
  pushshift_dump.Dump(config).write(folder)
  return folder


def with_duckdb(sources, out, config):
  return building_fixture.build(patterns(sources), out, config)


def with_beam(sources, out, config, options=RUNNER):
  found = building.list_sources(patterns(sources), config)
  return beam_pipeline.build(found, out, config, options)


def patterns(sources):
  return list(map(str, sources if isinstance(sources, list) else [sources]))


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize(
  "config",
  [
    BuildConfig(validation_share=0.2, test_share=0.1),
    BuildConfig(
      validation_after=pushshift_dump.START_UTC + pushshift_dump.SECONDS // 2,
      exclude_subreddits=("askreddit",),
      min_words=5,
      min_comments=3,
      max_tree_comments=100,
      max_tree_mb=1,
      seed=3,
    ),
  ],
)
def test_beam_builds_the_bytes_that_duckdb_builds(dump, tmp_path, config):
  long = "long " * 30_000
  write_trees(
    tmp_path / "long",
    record("long", *(comment(f"a{i}", "long", long) for i in range(12))),
  )
  sources = [dump, tmp_path / "long"]
  one = with_duckdb(sources, tmp_path / "duckdb" / "forum", config)
  assert one.stats["read_counts"]["trees"].get(filters.TREE_LONG, 0) == (
    config.max_tree_mb == 1
  )
  other = with_beam(sources, tmp_path / "beam" / "forum", config)
  assert len(one.stats["splits"]) >= 2
  assert contents(other.folder) == contents(one.folder)


@pytest.mark.long
def test_in_several_shards_there_are_the_same_trees_and_fates(
  dump, tmp_path, monkeypatch
):
  config = BuildConfig(validation_share=0.2, shard_mb=1)
  one = with_duckdb(dump, tmp_path / "duckdb" / "forum", config)
  monkeypatch.setattr(building, "shards_for", lambda text_bytes, config: 16)
  other = with_beam(dump, tmp_path / "beam" / "forum", config)
  for split in ("train", "validation"):
    trees = [
      list(built_dataset.BuiltDataset(built.folder).trees(split))
      for built in (one, other)
    ]
    assert trees[0] == trees[1]
  shards = [built.stats["splits"]["train"]["shards"] for built in (one, other)]
  assert shards[1] > shards[0]
  assert other.stats["read_counts"] == one.stats["read_counts"]
  assert other.stats["distributions"] == one.stats["distributions"]


def test_every_comment_is_accounted_for(dump, tmp_path):
  built = with_beam(dump, tmp_path / "forum", BuildConfig())
  truth = json.loads((dump / "TRUTH").read_text())
  assert built.stats["read_counts"] == {
    kind: dict(sorted(n.items())) for kind, n in truth.items()
  }
  assert set(truth) == set(ReadCounts().as_dict())


@pytest.mark.long
@pytest.mark.parametrize("engine", [with_beam, with_duckdb])
def test_a_build_goes_on_with_any_engine_where_a_pipeline_was_stopped(
  dump, tmp_path, monkeypatch, engine
):
  config = BuildConfig()
  whole = with_duckdb(dump, tmp_path / "whole" / "forum", config)

  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(building, "shards_for", lambda text_bytes, config: 4)
    patched.setattr(building, "_make_dataset", stop)
    with pytest.raises(KeyboardInterrupt):
      with_beam(dump, tmp_path / "forum", config)
  built = engine(dump, tmp_path / "forum", config)
  assert not built.already
  assert contents(built.folder) == contents(whole.folder)


def test_an_option_that_beam_does_not_know_is_told(dump, tmp_path):
  with pytest.raises(UserError, match="--direct_num_wrokers: Apache Beam knows no"):
    with_beam(dump, tmp_path / "forum", BuildConfig(), ["--direct_num_wrokers=2"])


def test_a_missing_beam_is_told_with_the_extra(dump, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  flags = [f"--source={dump}", f"--out={tmp_path / 'forum'}", *RUNNER]
  with pytest.raises(UserError, match=r"pip install 'commentree\[beam\]'"):
    build_verb.main(flags)


@pytest.mark.parametrize("flags", [["--memory=1GB"], ["--workers=2"]])
def test_flags_of_the_other_engine_are_refused(dump, tmp_path, flags):
  flags = [f"--source={dump}", f"--out={tmp_path / 'forum'}", *RUNNER, *flags]
  with pytest.raises(UserError, match="is not for --runner"):
    build_verb.main(flags)


def test_beams_options_without_a_runner_are_refused(dump, tmp_path):
  flags = [f"--source={dump}", f"--out={tmp_path / 'forum'}", "--", "--streaming"]
  with pytest.raises(UserError, match="are for --runner"):
    build_verb.main(flags)


def test_comments_whose_story_is_in_another_file_find_it(tmp_path):
  for name, item in (
    ("1.jsonl", {"id": 1, "type": "story", "title": "t", "by": "ann"}),
    ("2.jsonl", {"id": 2, "type": "comment", "parent": 1, "by": "b", "text": "x"}),
    ("3.jsonl", {"id": 3, "type": "comment", "parent": 2, "by": "c", "text": "y"}),
  ):
    (tmp_path / name).write_text(json.dumps(item))
  for number, engine in enumerate((with_beam, with_duckdb)):
    built = engine(tmp_path, tmp_path / f"forum_{number}", BuildConfig())
    (tree,) = building_fixture.trees(built.folder)
    assert [comment.parent for comment in tree.comments] == [-1, 0, 1]
