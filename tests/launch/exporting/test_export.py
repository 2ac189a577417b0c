"""Exported functions run where nothing of ours is, and compute what the model does."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from etils import epath

from commentree.launch import main
from commentree.launch.exporting import functions, runner
from commentree.launch.inference import run_context
from commentree.launch.settings import gin_cli, model_sizes
from commentree.models.batch import smallest
from commentree.models.model import CommentTreeModel
from commentree.tests.support.launch import made_runs
from commentree.tests.support.models import forests
from commentree.tests.support.models.small_models import draw
from commentree.training.checkpointing import storage
from commentree.training.warm_starts import writing

SIZES = [
  "ModelConfig.emb_dim = 16",
  "ModelConfig.num_heads = 2",
  "ModelConfig.head_dim = 8",
  "ModelConfig.mlp_dim = 24",
  "TASK_FEATURE_LENGTHS = {'encoder': 16, 'decoder': 16}",
  "SubtreeConfig.max_comment_tokens = 16",
  "ForestLayout.decoder_rows = 4",
  "ForestLayout.encoder_rows = 4",
  "MAX_ANCESTORS = 3",
]

# A finder that refuses our package and what it takes, before any other is asked.
ELSEWHERE = """
import sys

class Nothing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("commentree", "flax", "tensorflow", "seqio", "orbax"):
      raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Nothing())
"""
PROGRAM = (
  ELSEWHERE
  + """
import json, pathlib
import numpy as np
folder, work = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(folder))
import run

model = run.Exported(folder)
for function in model.spec["functions"]:
  outputs = model(function, **np.load(work / f"{function}_in.npz"))
  np.savez(work / f"{function}_out.npz", **outputs)
if "fill" not in model.spec["functions"]:
  sys.exit()
comments = json.loads((work / "comments.json").read_text())
inputs, places = model.lay_out("fill", comments)
outputs = model("fill", **inputs)
found = {f"{c} {p}": outputs["tokens"][0][rc].tolist() for (c, p), rc in places.items()}
(work / "found.json").write_text(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
  """Returns (gin files, bindings) -> settings, model and parameters of a run there is.

  Its only checkpoint has parameters that are untrained.
  """

  def make(files=(), bindings=()):
    folder = tmp_path_factory.mktemp("run")
    run = gin_cli.load(
      ["runs/demo.gin", *files], [f"MODEL_DIR = '{folder}'", *SIZES, *bindings]
    )
    tokenizer = run_context.of_run(run).tokenizer
    made_runs.write_settings(folder, tokenizer)
    size = tokenizer.vocab_size
    model = CommentTreeModel(
      model_sizes.with_sizes(run.model, run.data.preprocessing, size)
    )
    shapes = {name: x.shape for name, x in smallest().items()}
    params = draw(
      jax.eval_shape(
        lambda: model.get_initial_variables(jax.random.key(0), shapes)["params"]
      )
    )
    tree = {"target": params, "state": {"step": np.int32(0)}}
    path = epath.Path(folder / "checkpoint_0")
    writing.write(writing.TreeArrays(tree), path, "orbax", {"dataset/metadata": "{}"})
    return run, model, params, str(folder)

  return make


@pytest.fixture(scope="module")
def exported(make_run, tmp_path_factory):
  """A run that predicts masked tokens, and what it was exported to.

  Of a run with kernels, which are for one platform.
  """
  run, model, params, model_dir = make_run()
  folder = tmp_path_factory.mktemp("exported") / "to"
  command = ["export", f"--model_dir={model_dir}", f"--to={folder}"]
  command.append('--gin.ModelConfig.attention="pallas"')
  assert main.main([*command, "--mode=fill", "--top_k=3"]) == 0
  return run, model, params, folder


def random_inputs(function, vocab_size):
  """Draws inputs that are no forest; functions are defined for all."""
  rng = np.random.default_rng(0)
  high = {"segment": 5, "slots": 5, "positions": 8, "tokens": vocab_size}
  inputs = {}
  for name, given in function.inputs.items():
    top = next((n for part, n in high.items() if part in name), 3)
    inputs[name] = rng.integers(0, top, given.shape).astype(given.dtype)
  return inputs


def elsewhere(program, *arguments):
  """Runs a program where nothing of ours can be imported."""
  subprocess.run(
    [sys.executable, "-c", program, *map(str, arguments)],
    check=True,
    timeout=300,
    env={
      "JAX_PLATFORMS": "cpu",
      "PATH": "",
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
    },
    cwd="/",
  )


def made_again(run, model, modes, options):
  facts = run_context.of_run(run)
  return {mode: functions.make(mode, facts, model, 1, options[mode]) for mode in modes}


def assert_as_in_the_model(made, params, folder, work):
  for name, function in made.items():
    outputs = np.load(work / f"{name}_out.npz")
    inputs = dict(np.load(work / f"{name}_in.npz"))
    compute = jax.jit(function.compute, compiler_options=forests.QUICK_COMPILE)
    expected = compute(params, inputs)
    spec = json.loads((folder / "spec.json").read_text())["functions"][name]
    assert set(outputs) == set(expected) == set(spec["outputs"])
    for key, values in expected.items():
      about = spec["outputs"][key]
      assert outputs[key].shape == values.shape == tuple(about["shape"])
      assert outputs[key].dtype == values.dtype == np.dtype(about["dtype"])
      np.testing.assert_allclose(outputs[key], values, rtol=1e-4, atol=1e-5)
      if key not in ("ended", "lengths"):
        assert len(np.unique(outputs[key])) > 1, (name, key)


def test_exported_functions_run_without_us_and_compute_what_the_model_does(
  exported, tmp_path
):
  run, model, params, folder = exported
  options = {"fill": {"top_k": 3}}
  made = made_again(run, model, options, options)
  for name, function in made.items():
    inputs = random_inputs(function, model.config.vocab_size)
    np.savez(tmp_path / f"{name}_in.npz", **inputs)
  rng = np.random.default_rng(1)
  forest = [
    c for c in forests.random_forest(rng, (6,), (3, 5), 40, 3) if 0 not in c.distances
  ]
  comments = [
    {
      "tokens": comment.tokens,
      "parent": comment.whole_path[0] if comment.whole_path else -1,
      "predict": comment.masked,
    }
    for comment in forest
  ]
  (tmp_path / "comments.json").write_text(json.dumps(comments))
  elsewhere(PROGRAM, folder, tmp_path)
  assert_as_in_the_model(made, params, folder, tmp_path)

  # The runner's layout of a tree means the same as ours.
  mask = run_context.of_run(run).tokenizer.mask_id
  found = json.loads((tmp_path / "found.json").read_text())
  layout = forests.Layout(6, 6, 16, 8, 12, 3, 8)
  packed = forests.pack(forest, layout)
  tokens = packed["decoder_input_tokens"]
  tokens[tokens == forests.MASK_ID] = mask
  batch = forests.batch_of(packed)
  maskable = run_context.of_run(run).tokenizer.maskable
  logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
  found_logits = np.asarray(logits(params, batch))[0, ..., : len(maskable)]
  best = np.where(maskable, found_logits, -np.inf).argmax(-1)
  assert len(found) == sum(len(c.masked) for c in forest)
  for number, comment in enumerate(forest):
    at = forests.masked_of(batch, 0, comment.target)
    firsts = [found[f"{number} {position}"][0] for position in comment.masked]
    assert best[at].tolist() == firsts


@pytest.mark.slow
@pytest.mark.parametrize(
  ("files", "bindings", "mode", "options"),
  [
    ((), (), "embed", {}),
    ((), (), "score", {}),
    (("objectives/clm.gin",), (), "generate", {"max_tokens": 6}),
    (("objectives/clm.gin",), (), "generate", {"max_tokens": 6, "top_p": 0.9}),
    (("objectives/clm.gin",), (), "generate", {"max_tokens": 6, "beam_width": 3}),
    (
      ("objectives/tag.gin",),
      ("LabelsConfig.names = ('claim', 'premise')", "ModelConfig.tagger = 'crf'"),
      "tag",
      {},
    ),
    (
      ("objectives/classify.gin",),
      (
        "CommentLabelsConfig.source = 'label'",
        "CommentLabelsConfig.names = ('a', 'b')",
      ),
      "classify",
      {},
    ),
    (
      ("objectives/regress.gin",),
      (
        "CommentNumbersConfig.source = 'score'",
        "CommentNumbersConfig.transform = 'log'",
      ),
      "regress",
      {},
    ),
  ],
  ids=["embed", "score", "greedy", "sample", "beam", "tag", "classify", "regress"],
)
def test_every_mode_runs_without_us_and_computes_what_the_model_does(
  make_run, tmp_path, files, bindings, mode, options
):
  run, model, params, model_dir = make_run(files, bindings)
  folder = tmp_path / "to"
  flags = [f"--{name}={value}" for name, value in options.items()]
  command = ["export", f"--model_dir={model_dir}", f"--to={folder}", f"--mode={mode}"]
  assert main.main([*command, *flags]) == 0
  made = made_again(run, model, [mode], {mode: options})
  inputs = random_inputs(made[mode], model.config.vocab_size)
  if mode == "generate":
    inputs["wanted"][:] = True
    inputs["first_tokens"][:] = -1
  np.savez(tmp_path / f"{mode}_in.npz", **inputs)
  elsewhere(PROGRAM, folder, tmp_path)
  assert_as_in_the_model(made, params, folder, tmp_path)


def test_what_is_exported_says_what_it_is(exported):
  _, _, params, folder = exported
  spec = json.loads((folder / "spec.json").read_text())
  assert list(spec["functions"]) == ["fill"]
  assert spec["weights"] == ["model.safetensors"]
  assert (folder / spec["vocabulary"]["file"]).stat().st_size > 0
  readme = (folder / "README.md").read_text()
  for name, about in spec["functions"].items():
    assert f"## {name}" in readme
    data = (folder / about["file"]).read_bytes()
    function = jax.export.deserialize(bytearray(data))
    assert function.platforms == ("cpu", "tpu", "cuda")
    # Parameters are no constants: what is not passed would have to be in there.
    assert len(function.in_avals) == len(jax.tree.leaves(params)) + len(about["inputs"])


def test_the_runner_says_what_does_not_fit():
  model = runner.Exported.__new__(runner.Exported)
  inputs = {
    "encoder_input_tokens": (1, 1, 4),
    "encoder_segment_ids": (1, 1, 4),
    "encoder_positions": (1, 1, 4),
    "encoder_slot_depths": (1, 2),
  }
  about = {"inputs": {}, "settings": {}}
  for name, shape in inputs.items():
    about["inputs"][name] = {"shape": shape, "dtype": "int32"}
  model.spec = {"functions": {"embed": about}}
  arrays, slots = model.lay_out("embed", [{"tokens": [5, 6], "parent": -1}])
  assert slots == {0: 0}
  assert arrays["encoder_segment_ids"].tolist() == [[[1, 1, 0, 0]]]
  assert arrays["encoder_slot_depths"].tolist() == [[0, -1]]
  with pytest.raises(ValueError, match="no encoder row has room for 5"):
    model.lay_out("embed", [{"tokens": [5] * 5, "parent": -1}])
  with pytest.raises(ValueError, match="room for 2, not for 3"):
    model.lay_out("embed", [{"tokens": [5], "parent": -1}] * 3)
  with pytest.raises(ValueError, match="encoder_positions has the shape"):
    runner.check("embed", about["inputs"], {**arrays, "encoder_positions": np.ones(3)})
  with pytest.raises(ValueError, match="takes"):
    runner.check("embed", about["inputs"], {})


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--mode=generate"], "this run's is mlm"),
    (["--temperature=0.5"], "--temperature: is of no use"),
    (["--batch_size=0"], "--batch_size=0"),
    (["--gin.ModelConfig.emb_dim=24"], "is of another model than the settings"),
    (["--step=7"], "7"),
    (["--mode=fill", "--top_k=0"], "--top_k=0"),
  ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(
  exported, tmp_path, capsys, flags, said
):
  run, _, _, _ = exported
  command = ["export", f"--model_dir={run.train.model_dir}", f"--to={tmp_path / 'to'}"]
  assert main.main([*command, *flags]) == 2
  error = capsys.readouterr().err
  assert said in error
  assert error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_as_it_is(exported, capsys):
  run, _, _, folder = exported
  before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
  command = ["export", f"--model_dir={run.train.model_dir}", f"--to={folder}"]
  assert main.main(command) == 2
  assert "is there already" in capsys.readouterr().err
  assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir()) == before


def test_an_export_that_fails_leaves_nothing(exported, tmp_path, monkeypatch):
  run, _, _, _ = exported

  def refuse(file, text):
    raise OSError(28, "no space left on device")

  monkeypatch.setattr(storage, "write_text", refuse)
  command = ["export", f"--model_dir={run.train.model_dir}", f"--to={tmp_path / 'to'}"]
  assert main.main([*command, "--mode=embed"]) == 74
  assert list(tmp_path.iterdir()) == []
