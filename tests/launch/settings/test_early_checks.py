"""What needs no data is reported before data are read, and before TensorFlow loads."""

import subprocess
import sys

import pytest

from commentree.errors import UserError
from commentree.launch.settings import early_checks, gin_cli

_CODE = (
  "import sys; from commentree.launch.main import main;"
  "code = main(sys.argv[1:]);"
  "heavy = {'tensorflow', 'seqio'} & set(sys.modules);"
  "print('HEAVY', heavy, file=sys.stderr) if heavy else None; sys.exit(code)"
)


def load(tmp_path, *overrides):
  required = [
    f"MODEL_DIR = {str(tmp_path / 'run')!r}",
    "MIXTURE_OR_TASK_NAME = 'commentree_generated'",
    "TRAIN_STEPS = 10",
    "WARMUP_STEPS = 2",
  ]
  return gin_cli.load(["runs/pretrain.gin"], [*required, *overrides])


def check(tmp_path, *overrides):
  run = load(tmp_path, *overrides)
  early_checks.check_settings(run)
  early_checks.check_training(run)
  early_checks.check_devices(run.train)


MATCHER = "reply_matching/matcher"
FILES = ("MIXTURE_OR_TASK_NAME = 'commentree_files'", "VOCABULARY = 'none.model'")


@pytest.mark.parametrize(
  ("overrides", "said"),
  [
    (["OPTIMIZER = 'adamwx'"], "did you mean adamw?"),
    (["ScheduleConfig.name = 'cosin'"], "did you mean cosine?"),
    (["ScheduleConfig.name = 'cosine'", "WARMUP_STEPS = 99"], "warmup_steps = 99"),
    (["MIXTURE_OR_TASK_NAME = 'commentree_flies'"], "did you mean commentree_files?"),
    ([*FILES, "FILES = 'none.jsonl'"], "FILES: none.jsonl: no such file"),
    ([*FILES, f"FILES = {__file__!r}"], "VOCABULARY: none.model: no such vocabulary"),
    (["DISCOURSE_MARKERS = 'none.txt'"], "'none.txt': cannot be read"),
    (["ModelConfig.head = 'tagging'"], "needs 'masked_lm'"),
    (["CheckpointConfig.best_metric = 'true/f1/micro'"], "best_metric"),
    (
      [f"CheckpointConfig.best_metric = 'true/{MATCHER}/recall_at_1'"],
      "no such metric unless ModelConfig.reply_matching_weight is above 0",
    ),
    (
      ["ModelConfig.reply_matching_weight = 0.1", "MAX_ANCESTORS = 1"],
      "MAX_ANCESTORS = 1: must be at least 2",
    ),
    (
      ["ModelConfig.num_thread_layers = 2", "MAX_ANCESTORS = 1"],
      "MAX_ANCESTORS = 1: must be at least 2 with ModelConfig.num_thread_layers",
    ),
    (["INITIAL_CHECKPOINT_PATH = 'none'"], "INITIAL_CHECKPOINT_PATH: "),
    (["MODEL_PARALLEL = 4096"], "model_parallel = 4096"),
    (["MODEL_DIR = '/dev/null/run'"], "cannot be written"),
  ],
)
def test_a_mistake_is_one_line_that_names_the_setting(tmp_path, overrides, said):
  with pytest.raises(UserError) as error:
    check(tmp_path, *overrides)
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_sound_settings_pass(tmp_path):
  check(tmp_path)


def test_a_mixture_names_the_corpus_whose_files_are_missing(tmp_path):
  with pytest.raises(UserError, match=r"CORPORA\['forum'\]: none\.jsonl"):
    check(
      tmp_path,
      "MIXTURE_OR_TASK_NAME = 'commentree_mixture'",
      "MIXTURE = {'forum': 1.0}",
      "CORPORA = {'forum': 'none.jsonl'}",
      "VOCABULARY = 'none.model'",
    )


@pytest.mark.long
@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--gin.OPTIMIZER='adamwx'", "did you mean adamw?"),
    ("--gin.MODEL_PARALLEL=4096", "model_parallel = 4096"),
    ("--gin.INITIAL_CHECKPOINT_PATH='none'", "INITIAL_CHECKPOINT_PATH"),
  ],
)
def test_train_ends_before_tensorflow_is_imported(tmp_path, flag, said):
  command = [sys.executable, "-c", _CODE, "train", "--gin_file=runs/demo.gin"]
  done = subprocess.run(
    [*command, f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}", flag],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert said in done.stderr
  assert "HEAVY" not in done.stderr


def test_a_warm_up_that_outlasts_the_run_is_advised_against(tmp_path):
  (line,) = early_checks.advice(load(tmp_path, "WARMUP_STEPS = 40").train)
  assert "WARMUP_STEPS = 40" in line
  assert "25%" in line
  (line,) = early_checks.advice(load(tmp_path, "WARMUP_STEPS = 2000").train)
  assert "ends at 0.5% of its peak" in line
  assert early_checks.advice(load(tmp_path).train) == []
