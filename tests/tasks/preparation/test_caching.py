import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio

from commentree.console import Console
from commentree.errors import UserError
from commentree.tasks import data
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import (
  MarkersConfig,
  MaskingConfig,
  PreprocessingConfig,
  SubtreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.dataset_files import tfrecord
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.preparation import cache_job, cached_subtrees
from commentree.tasks.seqio_tasks import registration, registry
from commentree.tasks.sources import generated
from commentree.tasks.subtrees.subtree_builder import SUBTREE_FEATURES
from commentree.tests.support.tasks import built_fixture
from commentree.tests.support.tasks.examples import take

QUIET = Console(quiet=True)
LENGTHS = {"encoder": 32, "decoder": 32}
COMMON = {
  "task_feature_lengths": LENGTHS,
  "layout": ForestLayout(decoder_rows=16, max_ancestors=4, lookahead=8),
  # Small, so that some trees are of several subtrees.
  "preprocessing": PreprocessingConfig(
    subtrees=SubtreeConfig(max_tree_size=8, max_ancestors=4)
  ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("caching")


@pytest.fixture(scope="module")
def built_config(folder):
  """A dataset built of trees, and the settings to train on it."""
  markers = MarkersConfig()
  built = built_fixture.write(
    folder, {"train": built_fixture.trees(), "validation": built_fixture.trees(60, 20)}
  )
  return DataConfig(
    mixture_or_task_name="commentree_files",
    files=str(built),
    vocabulary=str(generated.vocabulary(built_fixture.CONFIG, markers, str(folder))),
    cache_dir=str(folder / "prepared"),
    **COMMON,
  )


@pytest.fixture(scope="module")
def cached_config(folder, built_config):
  """The same settings, to train from the cache that SeqIO's job made."""
  job = cache_job.CacheJob(built_config, str(folder / "cached"), min_shards=4)
  cache_job.run(job, QUIET)
  return dataclasses.replace(
    built_config,
    use_cached=True,
    seqio_additional_cache_dirs=str(folder / "cached"),
    cache_dir=str(folder / "for indexes"),
  )


def task_folder(folder):
  return folder / "cached" / registry.FILES


def cached(folder, split="train", root="other indexes"):
  return cached_subtrees.CachedSubtrees(
    cached_subtrees.epath.Path(task_folder(folder)), split, folder / root, print
  )


def assert_same_batches(left, right):
  for one, other in zip(left, right, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_every_task_of_a_mixture_is_cached(folder, built_config):
  mixture = dataclasses.replace(
    built_config,
    mixture_or_task_name="commentree_mixture",
    mixture={"mlm": 2, "clm": 1},
  )
  job = cache_job.CacheJob(mixture, str(folder / "mixed"), min_shards=2)
  folders = cache_job.run(job, QUIET)
  assert [found.name for found in folders] == ["clm", "mlm"]
  cached_mixture = dataclasses.replace(
    mixture,
    use_cached=True,
    seqio_additional_cache_dirs=str(folder / "mixed"),
    cache_dir=str(folder / "for indexes"),
  )
  without, with_cache = data.open_data(mixture), data.open_data(cached_mixture)
  assert with_cache.facts() == without.facts()
  assert_same_batches(
    take(with_cache.train_batches(2, seed=5), 8),
    take(without.train_batches(2, seed=5), 8),
  )
  with pytest.raises(UserError, match="is cached already"):
    cache_job.run(job, QUIET)


@pytest.mark.long
def test_batches_from_the_cache_are_those_without_it(built_config, cached_config):
  without, with_cache = data.open_data(built_config), data.open_data(cached_config)
  assert with_cache.shape == without.shape
  assert with_cache.facts() == without.facts()
  steps = 2 * len(without.splits["train"]) // 8  # some epochs
  assert_same_batches(
    take(with_cache.train_batches(4, seed=5), steps),
    take(without.train_batches(4, seed=5), steps),
  )
  assert_same_batches(with_cache.eval_batches(4), without.eval_batches(4))


def test_beam_wrote_the_subtrees_in_another_order(folder, cached_config):
  subtrees = cached(folder)
  places = [(e["shard"], e["offset"]) for e in subtrees._order]
  assert len(subtrees) > 60  # trees
  assert places != sorted(places)


@pytest.mark.parametrize("num_hosts", [2, 4])
@pytest.mark.parametrize("use_cached", [False, True])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(
  built_config, cached_config, num_hosts, use_cached
):
  opened = data.open_data(cached_config if use_cached else built_config)
  whole = take(opened.train_batches(4, seed=5), 4)
  parts = [
    take(opened.train_batches(4, seed=5, host=host, num_hosts=num_hosts), 4)
    for host in range(num_hosts)
  ]
  joined = [
    {name: np.concatenate([p[step][name] for p in parts]) for name in whole[0]}
    for step in range(4)
  ]
  assert_same_batches(joined, whole)


def test_resuming_from_the_cache_gives_what_would_have_come(cached_config):
  undisturbed = data.open_data(cached_config).train_batches(4, seed=5)
  take(undisturbed, 7)
  state = json.loads(json.dumps(undisturbed.get_state()))
  resumed = data.open_data(cached_config).train_batches(4, seed=5)
  resumed.set_state(state)
  assert_same_batches(take(resumed, 4), take(undisturbed, 4))


@pytest.mark.long
def test_seqio_reads_the_cache_and_draws_masks_anew_each_epoch(folder, cached_config):
  registration.register_tasks(cached_config)
  seqio.add_global_cache_dirs([str(folder / "cached")])
  task = seqio.get_mixture_or_task(registry.FILES)

  def read(use_cached, **settings):
    ds = task.get_dataset(
      LENGTHS, "validation", use_cached=use_cached, shuffle=False, seed=1, **settings
    )
    return list(ds.as_numpy_iterator())

  def plain(subtrees):
    return sorted(
      (p["tree_id"], p["node_ids"].tolist(), p["tokens"].tolist()) for p in subtrees
    )

  once, twice = read(True), read(True, num_epochs=2)
  assert plain(once) == plain(read(False))
  first, second = twice[: len(once)], twice[len(once) :]
  assert any(
    not np.array_equal(a["is_masked"], b["is_masked"]) for a, b in zip(first, second)
  )


def test_an_index_sorted_in_many_buckets_is_the_same(
  folder, cached_config, monkeypatch
):
  whole = cached(folder)
  monkeypatch.setattr(cached_subtrees, "_TREES_IN_BUCKET", 7)
  files = cached_subtrees.cached_files(whole._files[0].parent, "train")
  cached_subtrees.write_index(folder / "buckets", files, "key", len(whole))
  order = np.fromfile(folder / "buckets" / "ORDER", cached_subtrees._ENTRY)
  np.testing.assert_array_equal(order, whole._order)


def test_the_index_lies_beside_the_cache_and_is_not_made_again(
  folder, cached_config, monkeypatch
):
  monkeypatch.setattr(cached_subtrees, "write_index", None)
  assert len(data.open_data(cached_config).splits["train"]) > 60


def damaged_copy(folder, tmp_path):
  shutil.copytree(folder / "cached", tmp_path / "cached")
  return tmp_path


def test_a_flipped_byte_in_a_cached_subtree_is_named_at_read(
  folder, cached_config, tmp_path
):
  whole = cached(folder)
  copy = damaged_copy(folder, tmp_path)
  offset, length, shard = whole._order[3].tolist()
  path = task_folder(copy) / whole._files[shard].name
  content = path.read_bytes()
  subtrees = cached(copy)
  for place in range(offset, offset + length + 16, 5):
    path.write_bytes(content)
    built_fixture.flip(path, place)
    reopened = cached(copy)
    with pytest.raises(
      UserError, match=rf"{path.name}: the subtree at byte {offset:,}"
    ):
      reopened[3]
  for feature in SUBTREE_FEATURES:
    np.testing.assert_array_equal(subtrees[2][feature], whole[2][feature])


def test_a_record_that_is_not_the_one_of_the_index_is_named(
  folder, cached_config, tmp_path
):
  whole = cached(folder)
  copy = damaged_copy(folder, tmp_path)
  index = next(
    number
    for number, entry in enumerate(whole._order)
    if entry["offset"] == 0 and entry["length"] > 100
  )
  path = task_folder(copy) / whole._files[whole._order[index]["shard"]].name
  content = path.read_bytes()
  short = tfrecord.frame(b"short")
  path.write_bytes(short + content[len(short) :])
  with pytest.raises(UserError, match="the subtree at byte 0 is damaged"):
    cached(copy)[index]


@pytest.mark.parametrize(
  ("name", "change", "said"),
  [
    ("lengths", lambda values: [values[0] + 1, *values[1:]], "lengths are not those"),
    ("lengths", lambda values: [-1, *values[1:]], "lengths are not those"),
    ("parents", lambda values: [0, *values[1:]], "a parent does not come first"),
    ("parents", lambda values: [-2, *values[1:]], "a parent does not come first"),
    ("depths", lambda values: values[1:], "depths, not"),
    ("tokens", lambda values: [2**40, *values[1:]], "out of bounds"),
    ("tree_id", None, "index out of range"),
  ],
)
def test_a_record_with_a_right_checksum_and_no_subtree_is_refused(
  folder, cached_config, name, change, said
):
  """Whoever writes a cache by hand can make checksums, too."""
  whole = cached(folder)
  offset, length, shard = whole._order[3].tolist()
  framed = whole._files[shard].read_bytes()[offset + 12 : offset + 12 + length]
  assert cached_subtrees.decode(framed)["tree_id"]
  example = cached_subtrees.Example.FromString(framed)
  feature = example.features.feature[name]
  if change is None:
    del feature.bytes_list.value[:]
  else:
    values = change(list(feature.int64_list.value))
    del feature.int64_list.value[:]
    feature.int64_list.value.extend(values)
  with pytest.raises(tfrecord.DamagedError, match=said) as refusal:
    cached_subtrees.decode(example.SerializeToString())
  assert "holds no subtree" in str(refusal.value)
  with pytest.raises(tfrecord.DamagedError, match="holds no subtree"):
    cached_subtrees.decode(b"\xff")


def test_a_missing_file_of_the_cache_is_refused_at_start(
  folder, cached_config, tmp_path
):
  copy = damaged_copy(folder, tmp_path)
  (task_folder(copy) / "train.tfrecord-00002-of-00004").unlink()
  with pytest.raises(UserError, match=r"train.tfrecord-00002-of-00004: is missing"):
    cached(copy)


def test_a_short_file_of_the_cache_is_refused_at_start(folder, cached_config, tmp_path):
  whole = cached(folder)
  copy = damaged_copy(folder, tmp_path)
  # Cut between two records: only the number of subtrees tells.
  last = max(e["offset"].item() for e in whole._order if e["shard"] == 1)
  path = task_folder(copy) / whole._files[1].name
  path.write_bytes(path.read_bytes()[:last])
  with pytest.raises(UserError, match=r"holds .* subtrees, its statistics count"):
    cached(copy, root="yet others")


def test_subtrees_that_are_there_twice_are_told(folder, cached_config, tmp_path):
  whole = cached(folder)
  files = [*whole._files[1:], whole._files[1]]
  count = sum(whole._order["shard"] != 0) + sum(whole._order["shard"] == 1)
  with pytest.raises(UserError, match="missing or there twice"):
    cached_subtrees.write_index(tmp_path / "index", files, "key", int(count))
  assert not list(tmp_path.iterdir())


def test_a_cache_of_other_settings_is_refused_and_the_setting_named(cached_config):
  other = dataclasses.replace(
    cached_config,
    preprocessing=PreprocessingConfig(
      subtrees=SubtreeConfig(max_tree_size=9, max_ancestors=4)
    ),
  )
  with pytest.raises(UserError, match=r"subtrees.max_tree_size was 8, is 9;"):
    data.open_data(other)
  # What comes after the cache may change.
  data.open_data(
    dataclasses.replace(
      cached_config,
      preprocessing=dataclasses.replace(
        cached_config.preprocessing, masking=MaskingConfig(rate=0.3)
      ),
    )
  )


def test_a_task_that_is_not_cached_is_told_with_the_mend(built_config, tmp_path):
  config = dataclasses.replace(
    built_config,
    mixture_or_task_name="commentree_generated",
    generated=GeneratedTreesConfig(num_train_trees=3, num_validation_trees=3),
    use_cached=True,
    seqio_additional_cache_dirs=str(tmp_path),
  )
  with pytest.raises(UserError, match="commentree cache"):
    data.open_data(config)


def test_what_is_cached_is_not_cached_again_unless_asked(folder, cached_config):
  job = cache_job.CacheJob(cached_config, str(folder / "cached"))
  with pytest.raises(UserError, match="--overwrite"):
    cache_job.run(job, QUIET)


def test_an_option_that_beam_does_not_know_is_told(built_config, tmp_path):
  job = cache_job.CacheJob(built_config, str(tmp_path), ["--direct_num_wrokers=2"])
  with pytest.raises(UserError, match="direct_num_wrokers"):
    cache_job.run(job, QUIET)


@pytest.mark.slow
def test_the_cache_of_seqios_own_command_trains_the_same(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "seqio.scripts.cache_tasks_main",
      "--tasks=commentree_generated",
      "--module_import=commentree.tasks.seqio_tasks.registered",
      f"--output_cache_dir={tmp_path / 'cached'}",
      "--min_shards=3",
    ],
    capture_output=True,
    text=True,
    timeout=550,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  config = DataConfig(
    mixture_or_task_name="commentree_generated",
    task_feature_lengths={"encoder": 128, "decoder": 128},
    cache_dir=str(tmp_path / "prepared"),
  )
  cached_too = dataclasses.replace(
    config,
    use_cached=True,
    seqio_additional_cache_dirs=str(tmp_path / "cached"),
  )
  without, with_cache = data.open_data(config), data.open_data(cached_too)
  assert with_cache.facts() == without.facts()
  assert_same_batches(
    take(with_cache.train_batches(4, seed=5), 10),
    take(without.train_batches(4, seed=5), 10),
  )
