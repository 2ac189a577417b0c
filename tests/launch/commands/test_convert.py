from __future__ import annotations

import io
import json

import numpy as np
import orbax.checkpoint as ocp
import pytest

from commentree.console import Console
from commentree.launch import assemble_run, main
from commentree.launch.settings import gin_cli
from commentree.tests.support.consoles import printed
from commentree.tests.support.training.warm_starts import written_by_t5x

SETTINGS = [
  "--gin_file=runs/demo.gin",
  "--gin.ModelConfig.emb_dim=16",
  "--gin.ModelConfig.num_heads=2",
  "--gin.ModelConfig.head_dim=16",
  "--gin.ModelConfig.mlp_dim=48",
  "--gin.TRAIN_STEPS=200",
]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  folder = tmp_path_factory.mktemp("t5") / "checkpoint_1000"
  return str(written_by_t5x.write(folder, written_by_t5x.t5_arrays()))


def test_a_runs_first_checkpoint_holds_what_the_plan_says(t5, tmp_path, capsys):
  target = str(tmp_path / "run" / "checkpoint_0")
  assert main.main(["convert", t5, target, *SETTINGS, "--dry_run"]) == 0
  said = capsys.readouterr().out
  for part in ("51 loaded", "2 grown", "1 fresh", f"would write {target}"):
    assert part in said
  assert list(tmp_path.iterdir()) == []

  assert main.main(["convert", t5, target, *SETTINGS]) == 0
  assert "step 0 with a new optimizer" in capsys.readouterr().out
  folder = tmp_path / "run" / "checkpoint_0"
  record = json.loads((folder / "warm_start.json").read_text())
  assert (record["path"], record["loaded"]) == (t5, 51)
  assert "INITIAL_CHECKPOINT_PATH" in (folder.parent / "config.gin").read_text()
  with ocp.PyTreeCheckpointer() as plain:
    tree = plain.restore(folder / "state")
  assert tree["state"]["step"] == 0
  np.testing.assert_array_equal(
    tree["target"]["decoder"]["layers_1"]["mlp"]["wo"]["kernel"],
    written_by_t5x.t5_arrays()["target.decoder.layers_1.mlp.wo.kernel"],
  )


def test_training_with_dry_run_tells_where_it_would_start(t5, tmp_path, capsys):
  where = f"--gin.MODEL_DIR={str(tmp_path / 'run')!r}"
  path = f"--gin.INITIAL_CHECKPOINT_PATH={t5!r}"
  assert main.main(["train", *SETTINGS, where, path, "--dry_run"]) == 0
  said = capsys.readouterr().out
  assert f"a new MODEL_DIR would start from {t5}, a T5X native checkpoint" in said
  assert "ancestors.null_vector" in said
  assert not (tmp_path / "run").exists()


def test_forms_are_changed_without_settings(t5, tmp_path, capsys):
  target = str(tmp_path / "checkpoint_1000")
  assert main.main(["convert", "--to=orbax", t5, target]) == 0
  assert "wrote" in capsys.readouterr().out
  assert (tmp_path / "checkpoint_1000" / "state").is_dir()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["nowhere", "x/checkpoint_1"], "nowhere: there is no such checkpoint"),
    (["FROM", "x/mine"], "name it checkpoint_<step>"),
    (["FROM", "x/checkpoint_1", "--gin.A=1"], "give the --gin_file"),
    (["FROM", "x/checkpoint_7", *SETTINGS], "a start has step 0"),
    (
      ["FROM", "x/checkpoint_0", *SETTINGS, "--gin.INITIAL_CHECKPOINT_PATH='a'"],
      "it is FROM",
    ),
    (
      ["FROM", "x/checkpoint_0", *SETTINGS, "--gin.ModelConfig.mlp_dim=40"],
      "parameters do not fit",
    ),
  ],
)
def test_a_users_mistake_is_one_line(
  t5, arguments, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  arguments = [t5 if argument == "FROM" else argument for argument in arguments]
  assert main.main(["convert", *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ([], True),
    (["SubtreeConfig.sequence_ends = True"], False),
    (["ModelConfig.family = 't5'"], False),
    (["INITIAL_CHECKPOINT_PATH = None"], False),
  ],
)
def test_a_warm_start_of_robertas_family_without_ends_is_told_of_them(settings, said):
  bindings = [
    "MODEL_DIR = 'm'",
    "TRAIN_STEPS = 1",
    "MIXTURE_OR_TASK_NAME = 'commentree_generated'",
    "INITIAL_CHECKPOINT_PATH = 'roberta-base'",
    *settings,
  ]
  files = ["runs/pretrain.gin", "models/roberta_tiny.gin"]
  console = Console(file=io.StringIO(), width=250)
  assemble_run.advise_sequence_ends(gin_cli.load(files, bindings), console)
  assert ("SubtreeConfig.sequence_ends = True" in printed(console)) == said
