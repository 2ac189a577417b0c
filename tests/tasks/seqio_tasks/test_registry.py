import json
import subprocess
import sys

import numpy as np
import pytest
import seqio

from commentree.errors import UserError
from commentree.tasks import data
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.seqio_tasks import registry
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)
from commentree.tasks.sources import tree_sources
from commentree.tasks.trees import columns, comment_tree

LENGTHS = {"encoder": 32, "decoder": 32}
SMALL = GeneratedTreesConfig(num_train_trees=60, num_validation_trees=20)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
  return registry.add_generated_task(
    "small_generated", SMALL, cache_dir=str(tmp_path_factory.mktemp("cache"))
  )


def test_seqio_yields_masked_subtrees_of_the_task(task):
  ds = seqio.get_mixture_or_task("small_generated").get_dataset(
    sequence_length=LENGTHS, split="validation", shuffle=False, seed=1
  )
  subtrees = list(ds.as_numpy_iterator())
  assert len(subtrees) >= 20
  for subtree in subtrees:
    assert (
      subtree["lengths"].sum() == len(subtree["tokens"]) == len(subtree["is_masked"])
    )
    changed = subtree["tokens"] != subtree["input_tokens"]
    assert (subtree["is_masked"][changed] == 1).all()


@pytest.mark.long
def test_masks_differ_by_epoch_and_not_by_reading_again(task):
  def masks(seed, num_epochs=1):
    ds = task.get_dataset(
      sequence_length=LENGTHS,
      split="validation",
      shuffle=False,
      seed=seed,
      num_epochs=num_epochs,
    )
    return [p["is_masked"] for p in ds.as_numpy_iterator()]

  first, again = masks(1), masks(1)
  assert all(np.array_equal(a, b) for a, b in zip(first, again))
  twice = masks(1, num_epochs=2)
  halves = zip(twice[: len(first)], twice[len(first) :])
  assert any(not np.array_equal(a, b) for a, b in halves)


@pytest.mark.long
def test_the_feature_converter_lays_the_task_out_as_forests(task):
  converter = CommentForestFeatureConverter(
    pack=True,
    use_custom_packing_ops=False,
    layout=ForestLayout(decoder_rows=8, max_ancestors=4),
  )
  ds = seqio.get_dataset(
    "small_generated",
    task_feature_lengths=LENGTHS,
    dataset_split="train",
    shuffle=False,
    feature_converter=converter,
  )
  forests = list(ds.as_numpy_iterator())
  assert set(forests[0]) == set(converter.MODEL_FEATURES)
  assert {f["decoder_input_tokens"].shape for f in forests} == {(8, 32)}
  targets = sum(f["decoder_segment_ids"].max() for f in forests)
  comments = sum(len(t.comments) - 1 for t in task.tree_source.trees("train"))
  assert targets == comments


def test_columns_hold_the_whole_tree(task):
  for tree in task.tree_source.trees("validation"):
    assert columns.from_columns(columns.to_columns(tree)) == tree
  spans = (comment_tree.Span(0, 4, "claim"), comment_tree.Span(2, 4, "premise"))
  post = comment_tree.Comment("p", -1, None, "", None)
  odd = comment_tree.Comment("a", 0, "ann", "text", 0, score=0, spans=spans)
  tree = comment_tree.CommentTree("p", [post, odd], "AskHistory")
  assert columns.from_columns(columns.to_columns(tree)) == tree


def files_config(tmp_path, **settings):
  tree = {
    "id": "t",
    "title": "a title",
    "selftext": "and text",
    "author": "ann",
    "comments": [
      {"id": f"c{i}", "parent_id": "t", "author": "bob", "body": f"answer {i}"}
      for i in range(5)
    ],
  }
  path = tmp_path / "trees.jsonl"
  path.write_text(
    "".join(json.dumps({**tree, "id": f"t{i}"}) + "\n" for i in range(99))
  )
  return DataConfig(
    mixture_or_task_name="commentree_files",
    task_feature_lengths=LENGTHS,
    files=str(path),
    cache_dir=str(tmp_path / "cache"),
    **settings,
  )


def test_trees_are_held_out_by_their_ids_alone(tmp_path):
  config = files_config(tmp_path, vocabulary="none.model", held_out_share=0.3)
  source = tree_sources.TreeFilesSource(config.files, 0.3, config.preprocessing.trees)
  train, held_out = (
    [t.id for t in source.trees(split)] for split in ("train", "validation")
  )
  assert not set(train) & set(held_out)
  assert len(train) + len(held_out) == 99
  assert 15 < len(held_out) < 45


def test_a_vocabulary_that_is_not_there_is_named_with_the_mend(tmp_path):
  config = files_config(tmp_path, vocabulary=str(tmp_path / "none.model"))
  with pytest.raises(UserError, match="commentree vocab"):
    data.open_data(config)


def test_an_unknown_task_is_named_with_those_there_are(tmp_path):
  config = DataConfig(
    mixture_or_task_name="commentree_generatd", task_feature_lengths=LENGTHS
  )
  with pytest.raises(UserError, match="commentree_generated"):
    data.open_data(config)


def test_data_is_prepared_once_and_again_when_a_setting_changes(tmp_path):
  def opened(**settings):
    config = DataConfig(
      mixture_or_task_name="commentree_generated",
      task_feature_lengths=LENGTHS,
      generated=GeneratedTreesConfig(
        num_train_trees=30, num_validation_trees=5, **settings
      ),
      cache_dir=str(tmp_path),
    )
    return data.open_data(config)

  def prepared():
    return {
      entry: entry.stat().st_mtime_ns
      for entry in (tmp_path / "subtrees").iterdir()
      if entry.is_dir()
    }

  first = opened()
  there = prepared()
  assert len(there) == 2
  opened()
  assert prepared() == there
  other = opened(seed=1)
  assert len(prepared()) == 4
  assert first.facts() != other.facts()


@pytest.mark.long
def test_seqios_own_inspection_runs_on_our_task():
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "seqio.scripts.inspect_tasks_main",
      "--tasks=commentree_generated",
      "--module_import=commentree.tasks.seqio_tasks.registered",
      "--decode_features",
      "--sequence_length={'encoder': 64, 'decoder': 64}",
    ],
    input="\n\nc\nc\n",  # explore; a second example; next split; done
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "Done Inspecting Task: commentree_generated" in done.stdout
  assert "<mask>" in done.stdout
