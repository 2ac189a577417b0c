import io
import json

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from commentree.console import Console
from commentree.errors import UserError
from commentree.tasks import data
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  MarkersConfig,
  TreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.dataset_files import built_dataset
from commentree.tasks.seqio_tasks import preprocessors, registration, registry
from commentree.tasks.seqio_tasks.seqio_source import SeqioTreeSource
from commentree.tasks.sources import generated, tree_sources, vocabulary_training_text
from commentree.tasks.subtrees.subtree_builder import SUBTREE_FEATURES
from commentree.tasks.trees import columns, comment_tree
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary
from commentree.tests.support.tasks import built_fixture

LENGTHS = {"encoder": 32, "decoder": 32}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  cache_dir = str(tmp_path_factory.mktemp("vocabulary"))
  return str(generated.vocabulary(built_fixture.CONFIG, MarkersConfig(), cache_dir))


@pytest.fixture
def built(tmp_path):
  return built_fixture.write(
    tmp_path,
    {"train": built_fixture.trees(), "validation": built_fixture.trees(60, 20)},
  )


def shard(built, number, split="train"):
  name = f"{built_fixture.NAME}-{split}.tfrecord-{number:05d}-of-00003"
  return built / "1.0.0" / name


def config(built, vocabulary, **settings):
  return DataConfig(
    mixture_or_task_name="commentree_files",
    task_feature_lengths=LENGTHS,
    files=str(built),
    vocabulary=vocabulary,
    cache_dir=str(built.parent / "cache"),
    **settings,
  )


def test_a_built_dataset_has_the_trees_and_splits_it_was_built_with(built):
  source = tree_sources.BuiltTreesSource(built_dataset.find(str(built)))
  assert list(source.splits) == ["train", "validation"]
  assert list(source.trees("train")) == built_fixture.trees()
  assert list(source.trees("validation")) == built_fixture.trees(60, 20)


def test_the_newest_version_is_read_and_a_version_can_be_named(built):
  version = built / "1.0.0"
  assert built_dataset.find(str(built)).name == "1.0.0"
  assert built_dataset.find([str(version)]) == built_dataset.find(str(built))
  version.rename(built / "1.9.0")
  (built / "1.10.0").mkdir()
  (built / "1.10.0" / "dataset_info.json").write_text("{}")
  assert built_dataset.find(str(built)).name == "1.10.0"


def test_a_built_dataset_among_other_files_is_refused(built):
  with pytest.raises(UserError, match="stands alone"):
    built_dataset.find([str(built), "trees.jsonl"])


@pytest.mark.long
def test_shards_together_give_the_split_with_the_places_of_its_trees(built):
  source = tree_sources.BuiltTreesSource(built / "1.0.0")
  assert len(source.list_shards("train")) == 3
  together = [
    (int(example["tree_index"]), columns.from_columns(example))
    for index in range(3)
    for example in SeqioTreeSource(source)
    .get_dataset("train", shard_info=seqio.ShardInfo(index, 3))
    .as_numpy_iterator()
  ]
  assert together == list(enumerate(built_fixture.trees()))
  halves = [
    SeqioTreeSource(source).get_dataset("train", shard_info=seqio.ShardInfo(index, 2))
    for index in range(2)
  ]
  places = [int(e["tree_index"]) for h in halves for e in h.as_numpy_iterator()]
  assert sorted(places) == list(range(60))


def test_tfds_loads_the_same_trees(built):
  loaded = tfds.load(
    built_fixture.NAME,
    data_dir=str(built.parent),
    split="train",
    read_config=tfds.ReadConfig(interleave_cycle_length=1),  # file after file
  )
  found = [columns.from_columns(example) for example in tfds.as_numpy(loaded)]
  assert found == built_fixture.trees()


def test_a_task_over_tfds_source_gives_the_same_subtrees(built, vocabulary):
  registration.register_tasks(config(built, vocabulary))
  ours = registry.get_task(registry.FILES)
  name = "commentree_of_tfds"
  theirs = seqio.Task(
    name,
    source=seqio.TfdsDataSource(
      f"{built_fixture.NAME}:1.0.0", tfds_data_dir=str(built.parent)
    ),
    preprocessors=[
      lambda ds: preprocessors.trees_to_subtrees(ds, ours.subtree_builder()),
      seqio.CacheDatasetPlaceholder(),
    ],
    output_features=preprocessors.output_features(TokenizerVocabulary(ours.tokenizer)),
  )

  def subtrees(task):
    ds = task.source.get_dataset("validation", shuffle=False)
    return list(task.preprocess_precache(ds, seed=0).as_numpy_iterator())

  def in_order(found):  # TFDS reads from several files in turn
    return sorted(found, key=lambda p: (p["tree_id"], p["node_ids"].tolist()))

  mine = subtrees(ours)
  assert len(mine) >= 20
  for one, other in zip(in_order(mine), in_order(subtrees(theirs)), strict=True):
    assert one["tree_id"] == other["tree_id"]
    for feature in SUBTREE_FEATURES:
      np.testing.assert_array_equal(one[feature], other[feature])


def test_a_vocabulary_is_trained_on_the_train_split_alone(built):
  read_counts = comment_tree.ReadCounts()
  texts = vocabulary_training_text.iter_texts(
    str(built), TreeConfig(), CleaningConfig(), read_counts
  )
  assert list(texts) == [
    comment.text for tree in built_fixture.trees() for comment in tree.comments
  ]
  assert read_counts.trees == {comment_tree.KEPT: 60}


def test_several_datasets_and_files_make_one_vocabulary(built, tmp_path):
  file = tmp_path / "more.jsonl"
  reply = {"id": "y", "parent_id": "x", "author": "bob", "body": "indeed"}
  file.write_text(json.dumps({"id": "x", "title": "one more", "comments": [reply]}))
  whole = [comment.text for tree in built_fixture.trees() for comment in tree.comments]

  def texts(*paths):
    found = vocabulary_training_text.iter_texts(
      paths, TreeConfig(), CleaningConfig(), comment_tree.ReadCounts()
    )
    return list(found)

  assert texts(str(file), str(built), str(built)) == [
    *whole,
    *whole,
    "one more",
    "indeed",
  ]
  assert texts(f"{built.parent}/{built.name[:-1]}*") == whole


def test_a_missing_shard_is_refused_at_start_by_its_name(built, vocabulary):
  shard(built, 1).unlink()
  with pytest.raises(UserError, match=r"train.tfrecord-00001-of-00003: is missing"):
    data.open_data(config(built, vocabulary))


def test_a_short_shard_is_refused_at_start_by_its_name(built, vocabulary):
  path = shard(built, 2)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match=r"train.tfrecord-00002-of-00003: has .* bytes"):
    data.open_data(config(built, vocabulary))


def test_a_flipped_byte_is_found_wherever_it_is_and_named(built):
  path = shard(built, 1)
  whole = path.read_bytes()
  dataset = built_dataset.BuiltDataset(built / "1.0.0")
  for offset in np.linspace(0, len(whole) - 1, 50).astype(int):
    path.write_bytes(whole)
    built_fixture.flip(path, offset)
    with pytest.raises(UserError, match=r"train.tfrecord-00001-of-00003: .*record \d+"):
      list(dataset.trees("train"))


def test_records_that_were_not_noted_are_counted_as_they_are_read(tmp_path):
  few = built_fixture.trees(0, 6)
  built = built_fixture.write(tmp_path, {"train": few}, checksums=False)
  shard(built, 0).write_bytes(shard(built, 1).read_bytes()[:0])
  dataset = built_dataset.BuiltDataset(built / "1.0.0")
  with pytest.raises(UserError, match="00000-of-00003: holds 0 records, not 2"):
    list(dataset.trees("train"))


def test_what_is_no_dataset_of_ours_is_told(built):
  features = built / "1.0.0" / "features.json"
  features.write_text(features.read_text().replace('"parents"', '"others"'))
  with pytest.raises(UserError, match="no feature 'parents'"):
    built_dataset.BuiltDataset(built / "1.0.0")
  (built / "1.0.0" / "dataset_info.json").write_text("{")
  with pytest.raises(UserError, match=r"dataset_info.json: cannot be read"):
    built_dataset.BuiltDataset(built / "1.0.0")


def test_training_data_of_a_built_dataset_has_its_splits(built, vocabulary):
  opened = data.open_data(config(built, vocabulary))
  first = {subtree["tree_id"] for subtree in opened.splits["train"]}
  assert first == {tree.id.encode() for tree in built_fixture.trees()}
  assert len(opened.splits["validation"]) >= 20


def test_a_split_without_trees_is_told_at_start(tmp_path, vocabulary):
  built = built_fixture.write(tmp_path, {"train": built_fixture.trees(0, 6)})
  with pytest.raises(UserError, match="no split 'validation'"):
    data.open_data(config(built, vocabulary))


def test_a_share_set_by_hand_is_said_not_to_apply(built, vocabulary):
  console = Console(record=True, file=io.StringIO())
  data.open_data(config(built, vocabulary, held_out_share=0.5), console)
  assert "HELD_OUT_SHARE = 0.5 does not apply" in console.export_text()


@pytest.mark.slow
def test_subtrees_are_the_same_whatever_the_number_of_processes(built, vocabulary):
  def prepared(processes):
    cache_dir = built.parent / f"cache-{processes}"
    data.open_data(
      DataConfig(
        mixture_or_task_name="commentree_files",
        task_feature_lengths=LENGTHS,
        files=str(built),
        vocabulary=vocabulary,
        cache_dir=str(cache_dir),
        prepare_processes=processes,
      )
    )
    return {
      path.relative_to(cache_dir): path.read_bytes()
      for path in sorted((cache_dir / "subtrees").rglob("*"))
      if path.is_file()
    }

  alone = prepared(1)
  assert len(alone) >= 8
  assert prepared(2) == alone


def test_a_changed_dataset_is_prepared_anew(built, vocabulary):
  before = data.open_data(config(built, vocabulary)).facts()
  checksums = built / "1.0.0" / "CHECKSUMS.json"
  noted = json.loads(checksums.read_text())
  moved = built_fixture.write(
    built.parent / "other",
    {"train": built_fixture.trees(1), "validation": built_fixture.trees(60, 20)},
  )
  after = data.open_data(config(moved, vocabulary)).facts()
  assert noted != json.loads((moved / "1.0.0" / "CHECKSUMS.json").read_text())
  assert before["train_subtrees"] != after["train_subtrees"]
  assert before["validation_subtrees"] == after["validation_subtrees"]
