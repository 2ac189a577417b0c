"""The baseline that reads whole threads, by its gin file and the usual commands."""

import json

import jax
import pytest

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.exporting import functions
from commentree.launch.inference import run_context
from commentree.launch.settings import gin_cli
from commentree.models.batch import smallest
from commentree.models.model import CommentTreeModel
from commentree.tests.support.launch import made_runs

SETTINGS = {
  **made_runs.SETTINGS,
  "TRAIN_STEPS": 2,
  "BATCH_SIZE": 2,
  "GRADIENT_ACCUMULATION_STEPS": 2,
  "WARMUP_STEPS": 1,
  "EVAL_PERIOD": 0,
  "EVAL_BATCHES": 1,
  "EvalConfig.bags_of_words": False,
  "GeneratedTreesConfig.num_train_trees": 60,
  "GeneratedTreesConfig.num_validation_trees": 10,
  "ModelConfig.max_context_tokens": 16,
  "TrainConfig.trackers": (),
}
FILES = ("runs/demo.gin", "baselines/concatenated_thread.gin")
CONDITIONS = ("true", "shuffled", "parent_only", "none")
SHORT = {"ModelConfig.context": "concatenated", "ModelConfig.max_context_tokens": 16}
POINTER = {"ModelConfig.ancestor_pointer": True}


pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_it_trains_from_the_parameters_of_a_pooled_run_and_is_evaluated(tmp_path):
  pooled = made_runs.make(tmp_path)
  given = {
    **SETTINGS,
    "MODEL_DIR": str(tmp_path / "model"),
    "CACHE_DIR": str(tmp_path / "cache"),
    "INITIAL_CHECKPOINT_PATH": str(pooled / "checkpoint_1"),
  }
  flags = [f"--gin.{name}={value!r}" for name, value in given.items()]
  files = [f"--gin_file={name}" for name in FILES]
  assert main.main(["train", *files, *flags]) == 0
  (start,) = json.loads((tmp_path / "model" / "run.json").read_text())["starts"]
  assert start["warm_start"]["loaded"] > 0
  assert start["warm_start"]["fresh"] == start["warm_start"]["unused"] == []
  rows = [json.loads(x) for x in (tmp_path / "model" / "metrics.jsonl").open()]
  assert [row["step"] for row in rows if "loss" in row] == [1, 2]
  (results,) = [row["results"] for row in rows if "results" in row]
  assert set(CONDITIONS) <= set(results)
  assert results["true"]["cross_attention"]
  assert "vectors" not in results["true"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  return made_runs.make(tmp_path_factory.mktemp("threads"), **SHORT)


def test_it_fills_in_what_its_thread_says_and_embeds_nothing(model_dir):
  model = commentree.load(model_dir)
  assert repr(model).endswith("(mlm): fill, score>")
  reply = {"id": "a", "parent_id": "t", "body": "one <mask>"}

  def filled(title):
    (_, answer) = model.fill({"id": "t", "title": title, "comments": [reply]})
    return answer["masks"][0]["candidates"]

  assert filled("[fact] tulan") != filled("[hop_1]")
  with pytest.raises(UserError, match="--mode=embed: is for runs that pool") as raised:
    model.embed("any text")
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("verb", ["infer", "export"])
def test_commands_refuse_vectors_that_there_are_not_in_one_line(
  model_dir, tmp_path, capsys, verb
):
  out = {"infer": ["--input=-", "--output=-"], "export": [f"--to={tmp_path / 'to'}"]}
  command = [verb, f"--model_dir={model_dir}", "--mode=embed", *out[verb]]
  assert main.main(command) == 2
  error = capsys.readouterr().err
  assert "this run's ModelConfig.context is 'concatenated'" in error
  assert error.count("\n") == 1


@pytest.mark.parametrize(
  "settings",
  [SHORT, POINTER, SHORT | POINTER],
  ids=["thread", "pointer", "thread and pointer"],
)
@pytest.mark.parametrize(("objective", "mode"), [("mlm", "fill"), ("clm", "generate")])
def test_exported_functions_take_all_that_they_read(
  tmp_path, settings, objective, mode
):
  folder = made_runs.make(tmp_path, objective, **settings)
  facts = run_context.of_run(gin_cli.load([str(folder / "config.gin")]))
  model = CommentTreeModel(facts.model_config)
  function = functions.make(mode, facts, model, 1, {})
  inputs = {
    name: jax.ShapeDtypeStruct(given.shape, given.dtype)
    for name, given in function.inputs.items()
  }
  shapes = {name: values.shape for name, values in smallest().items()}
  params = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)["params"]
  )
  found = jax.eval_shape(function.compute, params, inputs)
  assert found.keys() == function.outputs.keys()


@pytest.mark.parametrize("size", ["tiny", "roberta_tiny", "minilm", "bert_base"])
def test_its_file_goes_with_every_family(size):
  files = ["runs/compile.gin", f"models/{size}.gin", FILES[1]]
  config = gin_cli.load(files, []).model
  assert config.context == "concatenated"
  assert config.max_context_tokens == 256
