"""Runs of every objective: from its gin file to a batch that the model takes."""

import json
import re

import jax
import numpy as np
import pytest

from commentree.launch import assemble_run, main
from commentree.launch.settings import gin_cli, typical_forests
from commentree.tasks import data as data_lib
from commentree.tasks.seqio_tasks import registration, registry

GIN = gin_cli.GIN_ROOT / "objectives"

SETTINGS = {
  "TRAIN_STEPS": 30,
  "BATCH_SIZE": 1,
  "EVAL_PERIOD": 0,
  "EVAL_BATCHES": 1,
  "WARMUP_STEPS": 5,
  "LEARNING_RATE": 0.01,
  "TASK_FEATURE_LENGTHS": {"encoder": 32, "decoder": 32},
  "MAX_ANCESTORS": 4,
  "ForestLayout.decoder_rows": 8,
  "SubtreeConfig.max_tree_size": 8,
  "SubtreeConfig.max_comment_tokens": 32,
  "MaskingConfig.rate": 0.3,
  "GeneratedTreesConfig.num_train_trees": 60,
  "GeneratedTreesConfig.num_validation_trees": 10,
  "GeneratedTreesConfig.max_tree_size": 12,
  "GeneratedTreesConfig.num_filler_words": 8,
  "GeneratedTreesConfig.max_filler_words": 8,
  "ModelConfig.emb_dim": 16,
  "ModelConfig.num_heads": 2,
  "ModelConfig.head_dim": 8,
  "ModelConfig.mlp_dim": 32,
  "ModelConfig.num_encoder_layers": 1,
  "ModelConfig.num_decoder_layers": 1,
}
OBJECTIVES = ("clm", "span_corruption", "tlm")


def settings_of(objective, folder, **more):
  given = {
    **SETTINGS,
    "MODEL_DIR": str(folder / objective),
    "CACHE_DIR": str(folder / "cache"),
    **more,
  }
  if objective == "tlm":
    given["LANGUAGES"] = ("en", "xx")
  return given


def load(objective, folder, **more):
  given = settings_of(objective, folder, **more)
  files = ["runs/demo.gin", f"objectives/{objective}.gin"]
  return gin_cli.load(files, [f"{name} = {value!r}" for name, value in given.items()])


@pytest.mark.parametrize("family", ["t5", "roberta"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_model_takes_the_batches_of_every_objective(objective, family, tmp_path):
  run = load(objective, tmp_path, **{"ModelConfig.family": family})
  data = data_lib.open_data(run.data)
  batch = next(data.train_batches(1, 0))
  assert {k: v.shape[1:] for k, v in batch.items()} == data.shape.feature_shapes()
  assert batch["decoder_loss_weights"].sum() > 0
  model = assemble_run.build_model(run, data.task)
  assert model.config.num_languages == (2 if objective == "tlm" else 0)
  shapes = {name: value.shape for name, value in batch.items()}
  with jax.numpy_rank_promotion("raise"):  # as in a run
    params = jax.eval_shape(
      lambda key: model.get_initial_variables(key, shapes)["params"], jax.random.key(0)
    )
    loss, _ = jax.eval_shape(
      lambda p, b, key: model.loss_fn(p, b, key), params, batch, jax.random.key(0)
    )
  assert loss.shape == ()


@pytest.mark.parametrize("objective", ["whole_words", *OBJECTIVES])
def test_the_shape_of_forests_that_nobody_packed_has_what_it_takes(objective, tmp_path):
  run = load(objective, tmp_path)
  shape, _ = typical_forests.typical_shape(run.data, 16)
  registration.register_tasks(run.data)
  found = registry.get_task(run.data.mixture_or_task_name).objective()
  assert shape.optional_features == found.optional_features
  in_group = shape.decoder_rows * shape.decoder_length // shape.masked_groups
  assert found.most_masked(32) <= shape.masked_per_group <= in_group


def test_every_objective_has_a_gin_file_that_tells_its_command():
  for objective in ("mlm", "whole_words", "discourse_markers", *OBJECTIVES):
    text = (GIN / f"{objective}.gin").read_text()
    head = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    assert "commentree train" in head
    assert "What you should see" in head


def test_the_page_of_objectives_names_every_gin_file():
  page = (gin_cli.GIN_ROOT.parent / "docs" / "objectives.md").read_text()
  named = set(re.findall(r"objectives/(\w+)\.gin", page))
  assert named == {path.stem for path in GIN.glob("*.gin")}


def losses(folder):
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_falls_and_a_run_goes_on_bitwise(objective, tmp_path):
  def train(folder, steps):
    given = settings_of(objective, folder, TRAIN_STEPS=steps)
    flags = [f"--gin.{name}={value!r}" for name, value in given.items()]
    files = ["--gin_file=runs/demo.gin", f"--gin_file=objectives/{objective}.gin"]
    schedule = "--gin.ScheduleConfig.name='constant'"
    assert main.main(["train", *files, *flags, schedule]) == 0
    return losses(folder / objective)

  whole = train(tmp_path / "whole", 30)
  train(tmp_path / "parts", 15)
  assert train(tmp_path / "parts", 30) == whole
  values = list(whole.values())
  assert np.mean(values[-5:]) < 0.8 * np.mean(values[:3])
