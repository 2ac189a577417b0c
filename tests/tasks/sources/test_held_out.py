"""What is held out, and what is said where nothing is."""

import dataclasses
import pathlib
import types

import pytest

from commentree.errors import UserError
from commentree.launch import assemble_run
from commentree.launch.reports import build_report
from commentree.launch.settings import gin_cli
from commentree.tasks import data
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import HELD_OUT_SHARE, MarkersConfig
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.preparation import preparing
from commentree.tasks.sources import generated
from commentree.tasks.sources.tree_sources import id_fraction
from commentree.tests.support.tasks.building_fixture import (
  build,
  comment,
  record,
  write_trees,
)

TREES = GeneratedTreesConfig(num_train_trees=40, num_validation_trees=8)


def forum(folder, ids, body="I agree with that"):
  trees = [
    record(i, comment(f"{i}a", i, body), comment(f"{i}b", f"{i}a", body)) for i in ids
  ]
  return str(write_trees(folder, *trees))


def ids(held_out: bool, count=3):
  names = (f"t{number}" for number in range(10_000))
  return [n for n in names if (id_fraction(n) < HELD_OUT_SHARE) == held_out][:count]


@pytest.fixture
def config(tmp_path):
  cache = str(tmp_path / "cache")
  return DataConfig(
    "commentree_files",
    {"encoder": 32, "decoder": 32},
    files=forum(tmp_path / "t", ids(held_out=False)),
    vocabulary=str(generated.vocabulary(TREES, MarkersConfig(), cache)),
    cache_dir=cache,
    layout=ForestLayout(decoder_rows=4, max_ancestors=4, lookahead=16),
  )


def test_one_share_is_the_default_everywhere():
  run = gin_cli.load(["runs/demo.gin"], ["MODEL_DIR = 'm'"])
  shares = (DataConfig.held_out_share, BuildConfig().validation_share)
  assert {*shares, run.data.held_out_share} == {HELD_OUT_SHARE}


def test_files_of_which_nothing_is_held_out_say_which_setting_mends_it(config):
  with pytest.raises(UserError) as error:
    data.open_data(config)
  assert "HELD_OUT_SHARE = 0.1 holds out none of the 3 trees of FILES" in str(
    error.value
  )
  assert "HELD_OUT_SHARE = 0 to train without" in str(error.value)


def test_files_of_which_all_is_held_out_say_which_setting_mends_it(config, tmp_path):
  files = forum(tmp_path / "h", ids(held_out=True))
  with pytest.raises(UserError, match=r"= 0\.1 holds out all of the 3 trees of FILES"):
    data.open_data(dataclasses.replace(config, files=files))


def test_a_share_of_0_trains_on_all_trees_and_holds_out_none(config):
  opened = data.open_data(dataclasses.replace(config, held_out_share=0))
  assert list(opened.splits) == ["train"]
  assert len(opened.splits["train"]) == 3
  assert opened.train_batches(2, 0)


def test_a_split_that_a_share_leaves_empty_is_told_before_anything_is_read(config):
  nothing = dataclasses.replace(config, held_out_share=0, files="missing.jsonl")
  with pytest.raises(UserError, match=r"HELD_OUT_SHARE = 0: leaves no trees"):
    data.open_data(nothing, splits=("validation",))


def test_a_built_dataset_without_held_out_trees_is_told_before_anything_is_prepared(
  config, tmp_path, monkeypatch
):
  built = build([pathlib.Path(config.files)], tmp_path / "set", BuildConfig()).folder
  (line,) = build_report.empty_splits(
    {
      "made_from": {"settings": BuildConfig().as_dict()},
      "splits": {"train": {"trees": 3}},
    }
  )
  assert "--validation_share=0.1 holds out none of the 3 trees: raise it" in line
  splits = {"train": {"trees": 0}, "validation": {"trees": 2}}
  (line,) = build_report.empty_splits(
    {"made_from": {"settings": BuildConfig().as_dict()}, "splits": splits}
  )
  assert line.startswith("train: all of the 2 trees are held out")
  of_built = dataclasses.replace(config, files=str(built))
  opened = data.open_data(dataclasses.replace(of_built, held_out_share=0))
  assert list(opened.splits) == ["train"]
  monkeypatch.setattr(preparing, "prepare", None)
  with pytest.raises(
    UserError, match="larger --validation_share, or set HELD_OUT_SHARE"
  ):
    data.open_data(of_built)


def test_trees_of_which_nothing_is_to_be_predicted_are_told(config, tmp_path):
  files = forum(tmp_path / "e", ids(held_out=False), body="https://a.b/c")
  empty = dataclasses.replace(config, files=files, held_out_share=0)
  with pytest.raises(
    UserError, match="no comment of the split 'train' has anything to"
  ):
    data.open_data(empty)


@pytest.mark.parametrize(("body", "refused"), [("https://a.b/c", True), ("yes", False)])
def test_held_out_trees_with_nothing_to_predict_are_told_before_training(
  config, tmp_path, body, refused
):
  files = [config.files, forum(tmp_path / "e", ids(held_out=True), body=body)]
  opened = data.open_data(dataclasses.replace(config, files=files))
  train = types.SimpleNamespace(batch_size=2, eval_batches=20)
  run = types.SimpleNamespace(train=train)
  assert opened.holds_targets(2, None) == (not refused)
  batch = next(opened.eval_batches(2))
  assert (batch["decoder_loss_weights"] > 0).any() == (not refused)
  if not refused:
    assemble_run.check_held_out(run, opened)
    return
  with pytest.raises(UserError, match="nothing to predict: raise HELD_OUT"):
    assemble_run.check_held_out(run, opened)
