"""The whole command on generated trees: property 5 of the design, end to end."""

import json
import os
import subprocess
import sys

import pytest

from commentree.launch import main
from commentree.launch.settings import gin_cli
from commentree.tasks.sources import generated
from commentree.training.reports import metrics_log

STEPS = 600
SETTINGS = {
  "MODEL_DIR": None,
  "CACHE_DIR": None,
  "TRAIN_STEPS": STEPS,
  "BATCH_SIZE": 1,
  "EVAL_PERIOD": 0,
  # At 0.003 some seeds end 0.3 nats above the entropy without ancestors.
  "LEARNING_RATE": 0.002,
  "WARMUP_STEPS": 40,
  "ANCESTOR_DROPOUT_RATE": 0.5,
  "TASK_FEATURE_LENGTHS": {"encoder": 32, "decoder": 32},
  "MAX_ANCESTORS": 4,
  "ForestLayout.decoder_rows": 24,
  "SubtreeConfig.max_tree_size": 24,
  "SubtreeConfig.max_comment_tokens": 32,
  "GeneratedTreesConfig.num_train_trees": 2000,
  "GeneratedTreesConfig.num_validation_trees": 100,
  # Grandparents alone are recalled: the parent says nothing of them.
  "GeneratedTreesConfig.hops": (2,),
  "GeneratedTreesConfig.num_values": 4,
  "GeneratedTreesConfig.recall_rate": 1.0,
  "GeneratedTreesConfig.num_filler_words": 8,
  "GeneratedTreesConfig.median_filler_words": 1.0,
  "GeneratedTreesConfig.max_filler_words": 8,
  "GeneratedTreesConfig.max_tree_size": 24,
  "ModelConfig.emb_dim": 64,
  "ModelConfig.num_encoder_layers": 1,
  "ModelConfig.mlp_dim": 128,
  # Other tests have these; here they would only take long to compile.
  "EvalConfig.bags_of_words": False,
  "EvalConfig.reply_matching": False,
}
# It compiles for about as long as it trains.
FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(folder of a finished run, its flags)."""
  folder = tmp_path_factory.mktemp("run")
  settings = {
    **SETTINGS,
    "MODEL_DIR": str(folder / "model"),
    "CACHE_DIR": str(folder / "cache"),
  }
  flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
  command = ["train", "--gin_file=runs/demo.gin", *flags]
  program = [sys.executable, "-m", "commentree.launch.main", *command]
  subprocess.run(program, env={**os.environ, "XLA_FLAGS": FLAGS}, check=True)
  return folder / "model", command


@pytest.fixture(scope="module")
def results(run):
  """What the evaluation after the last step found."""
  folder, _ = run
  (row,) = metrics_log.read(folder / "metrics.jsonl", "eval")
  return row["results"]


@pytest.fixture(scope="module")
def analytic(run):
  folder, _ = run
  config = gin_cli.load([str(folder / "config.gin")]).data.generated
  return generated.analytic_entropies(config)["recall hop 2"]


def test_with_true_ancestors_the_loss_approaches_the_analytic_floor(results, analytic):
  # `make train` comes within 0.05 nats; this short run closes some 0.9 of the gap.
  loss = results["true"]["by_group"]["recall hop 2"]["loss"]
  gap = analytic["none"] - analytic["true"]
  assert analytic["none"] - loss > 0.6 * gap
  assert loss > analytic["true"] - 0.05


@pytest.mark.parametrize("condition", ["none", "parent_only"])
def test_without_them_it_never_knows_more_than_the_entropy_allows(
  results, analytic, condition
):
  loss = results[condition]["by_group"]["recall hop 2"]["loss"]
  assert analytic[condition] - 0.05 < loss < analytic[condition] + 0.5


def test_wrong_ancestors_are_worse_than_none(results):
  groups = {
    name: results[name]["by_group"]["recall hop 2"]
    for name in results
    if name in ("shuffled", "none")
  }
  assert groups["shuffled"]["loss"] > groups["none"]["loss"]


def test_the_run_says_what_it_was(run):
  folder, _ = run
  record = json.loads((folder / "run.json").read_text())
  assert record["starts"][0]["versions"]["jax"]
  assert "BATCH_SIZE = 1" in (folder / "config.gin").read_text()
  steps = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
  losses = [row["step"] for row in steps if "loss" in row]
  assert losses == list(range(1, STEPS + 1))


def test_the_same_command_again_finds_nothing_to_do(run, capsys):
  _, command = run
  assert main.main(command) == 0
  assert "nothing to train" in capsys.readouterr().out


def test_another_setting_in_the_same_folder_is_refused_by_name(run, capsys):
  _, command = run
  assert main.main([*command, "--gin.ModelConfig.emb_dim=32"]) == 2
  assert "ModelConfig.emb_dim" in capsys.readouterr().err


def test_eval_of_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
  assert main.main(["eval", f"--model_dir={tmp_path}"]) == 2
  assert "config.gin" in capsys.readouterr().err


def test_every_verb_has_help_with_examples(capsys):
  for verb in main.VERBS:
    try:
      code = main.main([verb, "--help"])
    except SystemExit as stopped:  # argparse's way
      code = stopped.code
    assert code == 0
    assert "examples:" in capsys.readouterr().out, verb


def test_an_unknown_verb_is_named(capsys):
  assert main.main(["trian"]) == 2
  assert "trian" in capsys.readouterr().err
