"""`commentree inspect`, from flags to the terminal or a page."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from commentree.launch.main import main
from commentree.launch.settings import gin_cli
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees import markers
from commentree.tasks.vocabulary import sentencepiece_backend
from commentree.tests.support.tasks import written_threads
from commentree.training.checkpointing import run_record
from commentree.training.checkpointing.storage import as_path

SMALL = ["--decoder_length=32", "--encoder_length=32", "--decoder_rows=16"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return f"--cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  replies = [
    {"id": f"c{i}", "parent_id": "t" if i == 0 else f"c{i - 1}", "author": "bob",
     "body": "word &amp; word http://example.org"}
    for i in range(5)
  ]  # fmt: skip
  tree = {"title": "a post", "author": "ann", "comments": replies}
  lines = [json.dumps({**tree, "id": "t"}), "no JSON", json.dumps({**tree, "id": "u"})]
  (folder / "trees.jsonl").write_text("\n".join(lines))
  sentencepiece_backend.write_word_vocabulary(
    ["word", "a", "post"],
    folder / "words.model",
    markers.all_markers(MarkersConfig()),
  )
  return [
    f"--files={folder / 'trees.jsonl'}",
    f"--vocabulary={folder / 'words.model'}",
    "--held_out_share=0",
  ]


def test_generated_trees_are_shown_without_any_flag_but_for_speed(cache, capsys):
  assert main(["inspect", cache, *SMALL]) == 0
  out = capsys.readouterr().out
  assert out.count("\ntree ") == 3
  assert "\x1b" not in out  # it is no terminal
  assert "padding" in out


def test_files_are_shown_with_what_became_of_them(files, capsys):
  assert main(["inspect", *files, *SMALL]) == 0
  out = capsys.readouterr().out
  assert "tree B · u" in out
  assert "-{http://example.org}" in out
  assert "1 skipped: bad JSON" in out


def test_a_page_is_written_and_named(files, tmp_path, capsys):
  page = tmp_path / "new" / "page.html"
  flags = [*files, *SMALL, "--count=1", "--tree_id=u", f"--html={page}"]
  assert main(["inspect", *flags]) == 0
  assert capsys.readouterr().out.strip() == str(page)
  source = page.read_text()
  assert source.startswith("<!doctype html>")
  assert "<h2>u</h2>" in source


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--files=trees.jsonl"], "--vocabulary is missing.*commentree vocab"),
    (["--task=nobodys"], "--task=nobodys: no such task; there are commentree_gen"),
    (
      ["--files=x", "--vocabulary=y", "--gin_file=runs/demo.gin"],
      "--files: the task 'commentree_generated' reads none; add --gin.MIXTURE_OR_TASK",
    ),
    (["--gin_file=runs/demo.gin", "--model_dir=x"], "give one of them"),
    (["--model_dir=nowhere"], "--model_dir=nowhere: holds no config.gin"),
    (["--gin.MAX_ANCESTOR=3"], "no such setting; did you mean MAX_ANCESTORS"),
    (["--max_ancestors=64"], "SubtreeConfig.max_tree_size = 64: must exceed"),
    (["--format=x"], "--format is for --files"),
    (
      ["--files=x.jsonl", "--format=x", "--vocabulary=y"],
      "format 'x': is not known; there are reddit_api, ",
    ),
    (["--count=0"], "count = 0: must be a whole number of at least 1"),
    (["--decoder_length=4"], "TASK_FEATURE_LENGTHS.decoder = 4"),
    (["--gin.MIXTURE_OR_TASK_NAME='nobodys'"], "'nobodys': no such task"),
  ],
)
def test_a_users_mistake_is_one_line_that_names_the_mend(flags, message, capsys):
  assert main(["inspect", *flags]) == 2
  error = capsys.readouterr().err.strip()
  assert "\n" not in error
  assert re.search(message, error)


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
  """The MODEL_DIR of a mixture, as a run leaves it, but for checkpoints."""
  model_dir = tmp_path_factory.mktemp("run")
  settings = {
    "MODEL_DIR": str(model_dir),
    "TRAIN_STEPS": 1,
    "RANDOM_SEED": 7,
    "FILES": files[0].partition("=")[2],
    "VOCABULARY": files[1].partition("=")[2],
    "HELD_OUT_SHARE": 0,
    "MIXTURE_OR_TASK_NAME": "commentree_mixture",
    "MIXTURE": {"mlm": 3, "clm": 1},
    "TASK_FEATURE_LENGTHS": {"encoder": 24, "decoder": 32},
    "ForestLayout.decoder_rows": 16,
    "MaskingConfig.rate": 0.9,
    "CleaningConfig.urls": False,
    "SubtreeConfig.max_ancestors": 2,
    "SubtreeConfig.max_tree_size": 4,
  }
  overrides = [f"{name} = {value!r}" for name, value in settings.items()]
  loaded = gin_cli.load(["runs/pretrain.gin"], overrides)
  record = {"facts": {"forest.encoder_rows": 29, "forest.masked_per_group": 32}}
  contents = {
    "config.gin": gin_cli.text_in_force(loaded).encode(),
    "run.json": json.dumps(record).encode(),
    "vocabulary/vocabulary.model": pathlib.Path(settings["VOCABULARY"]).read_bytes(),
  }
  run_record.write_files(as_path(model_dir), contents)
  return f"--model_dir={model_dir}"


def test_of_a_run_its_mixture_cleaning_subtrees_masks_and_forest_are_shown(run, capsys):
  assert main(["inspect", run]) == 0
  second, first = capsys.readouterr().out.split("75.0% of the subtrees of a run:\n")
  assert second.startswith("25.0% of the subtrees of a run:\ncommentree_files:clm")
  assert first.startswith("commentree_files:mlm")
  for shown in (first, second):
    assert "train · seed 7 · epoch 0" in shown
    assert "cleaned: " in shown  # entities are
    assert "-{http://example.org}" not in shown
    assert "2 subtrees" in shown
    assert "decoder 16 rows of 32" in shown
    assert "encoder 29 rows of 24" in shown
  share = re.search(r"masks +\d+ of \d+ tokens to predict \((\d+)", first)
  assert int(share[1]) > 60
  assert "predicts " in second


def test_overrides_and_flags_change_what_a_run_says(run, capsys):
  flags = ["--task=commentree_files:mlm", "--decoder_length=40", "--max_ancestors=1"]
  overrides = ["--gin.CleaningConfig.urls=True", "--gin.SubtreeConfig.max_ancestors=3"]
  assert main(["inspect", run, *overrides, *flags]) == 0
  out = capsys.readouterr().out
  assert "commentree_files:clm" not in out
  assert "-{http://example.org}" in out
  assert "decoder 16 rows of 40" in out
  assert "rows of 24" in out
  assert "encoder 29" not in out  # recorded of other settings
  assert not re.search(r"sees A\d \(1 hop.*\), A", out)


def test_a_page_of_a_mixture_wants_one_task(run, tmp_path, capsys):
  page = f"--html={tmp_path / 'page.html'}"
  assert main(["inspect", run, page]) == 2
  assert "choose it by --task: commentree_files:clm, " in capsys.readouterr().err
  assert main(["inspect", run, page, "--task=commentree_files:clm"]) == 0


def test_the_command_of_a_run_shows_what_it_would_read(files, capsys):
  settings = [
    "--gin_file=runs/pretrain.gin",
    "--gin.MIXTURE_OR_TASK_NAME='commentree_files'",
    "--gin.FILES='elsewhere.jsonl'",
    "--gin.HELD_OUT_SHARE=1.0",
    "--gin.DataConfig.eval_seed=5",
  ]
  flags = [*files[:2], *SMALL, "--split=validation"]
  assert main(["inspect", *settings, *flags]) == 0
  out = capsys.readouterr().out
  assert "commentree_files · validation · seed 5 · epoch 0" in out
  assert "tree B · u" in out


def test_help_has_examples_and_loads_nothing_heavy():
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      "import sys, commentree.launch.commands.inspect as inspect\n"
      "try:\n  inspect.main(['--help'])\n"
      "finally:\n  assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)",
    ],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert "examples:" in done.stdout
  assert "--html=trees.html" in done.stdout


@pytest.mark.parametrize("name", written_threads.WRITERS)
def test_files_of_every_format_are_shown_told_or_not(files, tmp_path, name, capsys):
  """Also those whose comments lie apart from their posts."""
  paths = written_threads.write(name, tmp_path, 1, count=4)
  flags = ["--files", *paths, *files[1:], *SMALL]
  shown = []
  for told in ([], [f"--format={name}"]):
    assert main(["inspect", *flags, *told]) == 0
    shown.append(capsys.readouterr().out)
  assert shown[0] == shown[1]
  assert "tree A · " in shown[0]
  assert ("labels: " in shown[0]) == (name == "cmv_modes")


def test_labels_of_annotated_files_are_on_the_page(files, tmp_path):
  paths = written_threads.write("cmv_modes", tmp_path, 1, count=4)
  page = tmp_path / "page.html"
  assert main(["inspect", "--files", *paths, *files[1:], *SMALL, f"--html={page}"]) == 0
  assert "<b>claim</b>" in page.read_text()


def test_a_vocabulary_is_trained_on_any_format(tmp_path, capsys):
  paths = written_threads.write("hacker_news", tmp_path, 2, count=30)
  flags = ["--size=120", "--format=hacker_news", f"--output={tmp_path / 'v'}"]
  assert main(["vocab", "--input", *paths, *flags, "--max_users=4"]) == 0
  assert "kept: post missing" in capsys.readouterr().err


def test_columns_of_a_table_are_named_by_a_flag(files, tmp_path, capsys):
  rows = "".join(f"c{i},p,some words of it {i}\n" for i in range(40))
  (tmp_path / "t.csv").write_text("key,up,says\np,,A post\n" + rows)
  flags = [str(tmp_path / "t.csv"), "--columns", "id=key", "parent=up", "text=says"]
  made = ["--size=112", f"--output={tmp_path / 'v'}", "--max_users=4"]
  assert main(["vocab", "--input", *flags, *made]) == 0
  assert "read 41 comments with text" in capsys.readouterr().err
  assert main(["inspect", "--files", *flags, *files[1:], *SMALL]) == 0
  assert "40 kept" in capsys.readouterr().out
