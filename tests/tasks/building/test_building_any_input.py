"""Whatever lines hold, a build counts each once, and what it builds is whole."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commentree.tasks.building import filters, parts, shards
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.any_json import RECORDS, VALUES, records_of

CONFIGS = [
  BuildConfig(),
  BuildConfig(trees=TreeConfig("keep", "drop", target_post=True), min_comments=0),
  BuildConfig(min_score=1, max_words=3, min_chars=2, min_comments=2, max_comments=3),
  BuildConfig(max_tree_comments=1, exclude_subreddits=("a",), after=1, before=2**40),
  BuildConfig(subreddits=("a", "1"), validation_after=100, test_after=1000),
]
NUM_SHARDS = 2


def accounted_for(folder, name, files, config):
  """Builds files' lines through both stages; returns how many lines were counted."""
  shutil.rmtree(folder, ignore_errors=True)
  for part in ("parts", "shards"):
    (folder / part).mkdir(parents=True)
  sources = []
  for number, lines in enumerate(files):
    path = folder / f"{number}.jsonl"
    path.write_bytes(b"\n".join(lines))
    sources.append(parts.SourceFile(number, str(path), name))
  sources, tasks = parts.with_prepared(sources, folder)

  def report(rows, size):
    assert rows >= 0
    assert size >= 0

  for task in tasks:
    parts.prepare_format(*task, config, report)
  if not sources:
    return 0
  parts.write_parts(tuple(sources), folder / "parts", config, 2**20, 2**27, report)
  read_counts, _ = parts.read_facts(folder / "parts")
  found = parts.list_parts(folder / "parts")
  arguments = found, folder / "shards", config, 64, 3, report
  shards.make_shards(range(NUM_SHARDS), NUM_SHARDS, *arguments)
  for shard in range(NUM_SHARDS):
    read_counts += shards.read_facts(folder / "shards", shard)["read_counts"]
  trees = list(building_fixture.trees_of_files((folder / "shards").glob("*.tfrecord")))
  assert read_counts.kept == sum(len(tree.comments) - 1 for tree in trees)
  for tree in trees:
    assert all(c.parent < i for i, c in enumerate(tree.comments))
  return (
    read_counts.comments.total()
    + read_counts.trees.total()
    - filters.posts_missing(read_counts)
  )


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDS)
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data(), config=st.sampled_from(CONFIGS))
def test_every_line_of_any_json_is_counted_once(tmp_path, name, data, config):
  files = data.draw(st.lists(st.lists(RECORDS[name] | VALUES, max_size=6), max_size=2))
  dumped = [[json.dumps(line).encode() for line in lines] for lines in files]
  number = sum(len(records_of(lines)) for lines in files)
  assert accounted_for(tmp_path / "work", name, dumped, config) == number
