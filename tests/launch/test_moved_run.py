"""A MODEL_DIR is all that its model takes: moved, and used from elsewhere."""

import json
import os
import shutil

import pytest

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees.markers import all_markers
from commentree.tasks.vocabulary import vocabulary_files
from commentree.tasks.vocabulary.sentencepiece_backend import write_word_vocabulary
from commentree.tests.support.launch import made_runs
from commentree.tests.support.tasks.vocabulary_fixture import like_roberta
from commentree.training.checkpointing import run_record
from commentree.training.checkpointing.storage import as_path

WORDS = ("bama", "deni", "gipo", "kolu", "tera")
TREES = [
  {
    "id": f"t{i}",
    "title": " ".join(WORDS),
    "comments": [
      {"id": f"c{i}", "parent_id": f"t{i}", "body": " ".join(WORDS[i % 5 :])}
    ],
  }
  for i in range(40)
]


def flags(folder, **settings):
  given = {
    **{k: v for k, v in made_runs.SETTINGS.items() if not k.startswith("Generated")},
    # To Rich, a style that ends; it ended the run, too.
    "MODEL_DIR": str(folder / "first" / "run[/red]"),
    "CACHE_DIR": str(folder / "cache"),
    "MIXTURE_OR_TASK_NAME": "commentree_files",
    "FILES": str(folder / "trees.jsonl"),
    "VOCABULARY": str(folder / "words.model"),
    "HELD_OUT_SHARE": 0.5,
    "WARMUP_STEPS": 0,
    "EVAL_BATCHES": 1,
    "EvalConfig.conditions": ("true",),
    "EvalConfig.bags_of_words": False,
    "EvalConfig.reply_matching": False,
    "TrainConfig.trackers": (),
    **settings,
  }
  return [f"--gin.{name}={value!r}" for name, value in given.items()]


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
  """A finished run that was moved, and whose vocabulary is gone."""
  folder = tmp_path_factory.mktemp("moved")
  made_runs.write(folder / "trees.jsonl", TREES)
  write_word_vocabulary(WORDS, folder / "words.model", all_markers(MarkersConfig()))
  command = ["train", "--gin_file=runs/demo.gin", *flags(folder)]
  assert main.main(command) == 0
  model_dir = folder / "first" / "run[/red]"
  assert f"saved as {model_dir}" in (model_dir / "logs" / "host_0.log").read_text()
  stored = model_dir / "vocabulary" / "vocabulary.model"
  assert stored.read_bytes() == (folder / "words.model").read_bytes()
  before = stored.stat().st_mtime_ns
  assert main.main(command) == 0
  assert stored.stat().st_mtime_ns == before
  (folder / "elsewhere").mkdir()
  shutil.move(model_dir, folder / "elsewhere" / "run")
  (folder / "words.model").unlink()
  return folder


@pytest.fixture
def here(moved, monkeypatch):
  """The folder that the run was moved to, as the current one."""
  monkeypatch.chdir(moved / "elsewhere")
  return moved / "elsewhere"


def test_python_and_infer_take_the_vocabulary_in_the_folder(moved, here):
  model = commentree.load("run")
  (post, comment) = model.embed(TREES[0])
  assert post["vectors"].shape == comment["vectors"].shape
  assert model.run.tokenizer.path == str(here / "run" / "vocabulary/vocabulary.model")
  trees, output = (
    f"--input={moved / 'trees.jsonl'}",
    f"--output={here / 'scores.jsonl'}",
  )
  assert main.main(["infer", "--model_dir=run", "--mode=score", trees, output]) == 0
  assert len((here / "scores.jsonl").read_text().splitlines()) == 2 * len(TREES)


def test_eval_takes_it_and_leaves_the_cache_of_the_run_alone(moved, here, capsys):
  cache = f"--gin.CACHE_DIR={str(moved / 'another')!r}"
  assert main.main(["eval", "--model_dir=run", cache, "--json=out.json"]) == 0
  assert json.loads((here / "out.json").read_text())["true"]["loss"] > 0
  assert (moved / "another" / "subtrees").is_dir()


def test_export_takes_it(here):
  assert main.main(["export", "--model_dir=run", "--to=made", "--mode=embed"]) == 0
  stored = here / "run" / "vocabulary" / "vocabulary.model"
  assert (here / "made" / "vocabulary.model").read_bytes() == stored.read_bytes()


def test_another_vocabulary_in_the_folder_is_refused(moved, tmp_path):
  shutil.copytree(moved / "elsewhere" / "run", tmp_path / "run")
  stored = tmp_path / "run" / "vocabulary" / "vocabulary.model"
  write_word_vocabulary(WORDS[::-1], stored, all_markers(MarkersConfig()))
  with pytest.raises(UserError, match="another vocabulary"):
    commentree.load(tmp_path / "run")


def test_the_copy_is_whole_and_the_only_one(tmp_path):
  json_file = like_roberta(tmp_path / "roberta.json")
  content = json_file.read_bytes()
  other = tmp_path / "words.model"
  write_word_vocabulary(WORDS, other, [])
  model_dir = as_path(tmp_path / "run")
  for path in (other, json_file):
    files = vocabulary_files.to_store(path, path.read_bytes())
    run_record.write_files(model_dir, files)
  assert vocabulary_files.find_stored(model_dir).read_bytes() == content
  assert os.listdir(model_dir / "vocabulary") == ["tokenizer.json"]


def test_the_copy_knows_what_the_vocabulary_was_grown_from(tmp_path):
  source = tmp_path / "roberta.json"
  like_roberta(source)
  assert (
    main.main(["vocab", f"--from={source}", f"--output={tmp_path}/grown.json"]) == 0
  )
  grown = tmp_path / "grown.json"
  model_dir = as_path(tmp_path / "run")
  files = vocabulary_files.to_store(grown, grown.read_bytes())
  run_record.write_files(model_dir, files)
  stored = vocabulary_files.find_stored(model_dir)
  known = vocabulary_files.grown_from(stored, stored.read_bytes())
  assert known == (vocabulary_files.content_hash(source.read_bytes()),)
