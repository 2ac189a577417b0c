"""Files of a built dataset that say something else than TFDS writes."""

import json
import shutil

import pytest

from commentree.errors import UserError
from commentree.tasks import built_dataset
from commentree.tasks.building.config import BuildConfig

from . import building_fixture, written_threads

_DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("made")
  paths = written_threads.write("tree_jsonl", folder, 7, count=3)
  return building_fixture.build(paths, folder / "set", BuildConfig()).folder


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made, tmp_path / "copy")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["[]", "1", "null", '"a"', "{", _DEEP, "\0"])
def test_json_of_another_shape_is_refused_by_the_files_name(copy, name, content):
  (copy / name).write_text(content)
  with pytest.raises(UserError, match=name) as refusal:
    built_dataset.BuiltDataset(copy)
  assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["[]", "1", '{"files": []}', '{"files": {"a": 1}}'])
def test_checksums_of_another_shape_are_refused_by_the_files_name(copy, content):
  (copy / "CHECKSUMS.json").write_text(content)
  with pytest.raises(UserError, match=r"CHECKSUMS\.json"):
    built_dataset.BuiltDataset(copy)


@pytest.mark.parametrize("value", [1, [], {"features": 1}, {"features": None}])
def test_features_of_another_shape_are_refused(copy, value):
  (copy / "features.json").write_text(json.dumps({"featuresDict": value}))
  with pytest.raises(UserError, match=r"features\.json"):
    built_dataset.BuiltDataset(copy)


@pytest.mark.parametrize(
  "template", ["../{SPLIT}", "/etc/passwd", "{DATASET.a}", "{x}", 1]
)
def test_shards_outside_of_the_folder_are_not_read(copy, template):
  info = json.loads((copy / "dataset_info.json").read_text())
  info["splits"][0]["filepathTemplate"] = template
  (copy / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(UserError, match=r"dataset_info\.json"):
    built_dataset.BuiltDataset(copy)
