"""T5X itself trains our model and reads what we wrote, knowing of neither.

These run where T5X can be imported (see docs/warm_starts.md); what it asks of a model
is held by `tests/models/test_t5x_contract.py` everywhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import commentree
from commentree.launch.main import main
from commentree.training.warm_starts import sources

if importlib.util.find_spec("t5x") is None:
  pytest.skip("T5X cannot be imported", allow_module_level=True)

STEPS = 2
# What flags cannot name is set in files.
TRAIN = f"""
from __gin__ import dynamic_registration
import __main__ as train_script
import few_trees
from t5x import utils
include 't5x/pretrain.gin'
train_script.train.eval_period = {STEPS}
utils.SaveCheckpointConfig.period = {STEPS}
"""
INFER = """
from __gin__ import dynamic_registration
import few_trees
include 't5x/infer.gin'
"""
FEW_TREES = """
from commentree.tasks.seqio_tasks import registry
from commentree.tasks.config.generated import GeneratedTreesConfig
registry.add_generated_task(
  "few_trees", GeneratedTreesConfig(num_train_trees=40, num_validation_trees=8)
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the run lies, and what it imports."""
  folder = tmp_path_factory.mktemp("t5x")
  texts = {"train.gin": TRAIN, "infer.gin": INFER, "few_trees.py": FEW_TREES}
  for name, text in texts.items():
    (folder / name).write_text(text)
  return folder


def under_t5x(folder, program, *flags):
  """Runs one of T5X's programs, unchanged."""
  t5x = pathlib.Path(importlib.util.find_spec("t5x").submodule_search_locations[0])
  gin = pathlib.Path(commentree.__file__).parent / "gin"
  command = [
    *(sys.executable, "-m", f"t5x.{program}"),
    f"--gin_search_paths={gin},{t5x.parent}",
    f"--gin_file={folder / program}.gin",
    "--gin.MIXTURE_OR_TASK_NAME='few_trees'",
    *flags,
  ]
  path = ":".join([str(folder), *sys.path])
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
  # Its gin files include each other by paths from where it lies.
  ended = subprocess.run(
    command, cwd=t5x.parent, env=environment, capture_output=True, text=True
  )
  assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(folder):
  under_t5x(
    folder,
    "train",
    "--gin.forest_layout.ForestLayout.decoder_rows=4",
    f"--gin.MODEL_DIR='{folder}'",
    f"--gin.TRAIN_STEPS={STEPS}",
    "--gin.EVAL_STEPS=1",
  )
  return folder / f"checkpoint_{STEPS}"


def scores_of(folder, checkpoint, output):
  under_t5x(
    folder,
    "infer",
    # A subtree of a tree must fit one forest.
    "--gin.forest_layout.ForestLayout.decoder_rows=32",
    f"--gin.CHECKPOINT_PATH='{checkpoint}'",
    f"--gin.INFER_OUTPUT_DIR='{output}'",
  )
  [written] = [path for path in output.glob("*score*") if path.suffix != ".COMPLETED"]
  lines = map(json.loads, written.read_text().splitlines())
  return np.array([line["score"] for line in lines])


def test_t5x_scores_the_same_by_its_checkpoint_and_by_what_we_made_of_it(
  folder, trained, tmp_path
):
  expected = scores_of(folder, trained, tmp_path / "of_t5x")
  assert np.isfinite(expected).all()
  assert (expected < 0).any()
  for form in ("orbax", "t5x_native"):
    ours = tmp_path / form / trained.name
    assert main(["convert", str(trained), str(ours), f"--to={form}"]) == 0
    scores = scores_of(folder, ours, tmp_path / f"of_{form}")
    np.testing.assert_array_equal(scores, expected)


def test_what_t5x_trained_is_read_whole(trained):
  source = sources.open_source(str(trained))
  names = [name for name in source.arrays if name.startswith("target.")]
  assert "target.decoder.layers_0.encoder_decoder_attention.key.kernel" in names
  for name in names:
    index = tuple(slice(None) for _ in source.arrays[name].shape)
    assert np.isfinite(source.read(name, index)).all(), name
