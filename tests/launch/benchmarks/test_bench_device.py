"""The bench of devices runs without data, TensorFlow and SeqIO, and counts right."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from commentree.launch.benchmarks import bench_device
from commentree.tasks.forests.forest_layout import ForestShape

PROGRAM = """
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tensorflow", "seqio", "t5x"):
      raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from commentree.launch.benchmarks import bench_device
sys.exit(bench_device.main(sys.argv[1:]))
"""
SETTINGS = {
  "TASK_FEATURE_LENGTHS": {"encoder": 16, "decoder": 16},
  "MAX_ANCESTORS": 2,
  "ForestLayout.decoder_rows": 4,
  "ModelConfig.emb_dim": 16,
  "ModelConfig.num_heads": 2,
  "ModelConfig.head_dim": 8,
  "ModelConfig.mlp_dim": 32,
  "ModelConfig.num_encoder_layers": 1,
  "ModelConfig.num_decoder_layers": 1,
}


@pytest.mark.long
def test_a_device_is_measured_where_tensorflow_and_seqio_are_blocked():
  overrides = [f"--gin.{name}={value!r}" for name, value in SETTINGS.items()]
  options = ["--vocab_size=64", "--comment_tokens=6", "--rounds=1", "--matmul=64"]
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM), "--json", *options, *overrides],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  programs = {program["program"]: program for program in found["programs"]}
  assert list(programs) == ["train", "embed", "fill", "score"]
  for timed in programs.values():
    by_peak = timed["teraflops"] / found["matmul_teraflops"] / found["devices"]
    np.testing.assert_allclose(timed["utilisation"], by_peak)
    assert timed["gib"] > 0
  # All of the same forests: what they hold does not depend on the time.
  tokens = [t["tokens_per_second"] * t["ms"] for t in programs.values()]
  np.testing.assert_allclose(tokens[0], tokens[2:])
  needed = {name: t["teraflops"] * t["ms"] for name, t in programs.items()}
  np.testing.assert_allclose(needed["train"], 3 * needed["fill"])
  assert needed["embed"] < needed["fill"] < needed["score"] < 2 * needed["fill"]


@pytest.mark.parametrize("mean", [6, 48, 100])
def test_comments_are_as_long_in_the_mean_as_asked(mean):
  rng = np.random.default_rng(0)
  trees = [bench_device.draw_tree(rng, mean, 128, 1000) for _ in range(800)]
  lengths = np.concatenate([tree["lengths"] for tree in trees])
  assert lengths.max() == 128
  np.testing.assert_allclose(lengths.mean(), mean, rtol=0.1)
  for tree in trees[:50]:
    assert (tree["parents"] < np.arange(len(tree["parents"]))).all()
    assert (tree["parents"][1:] >= 0).all()


def test_forests_are_full_of_comments_that_see_others():
  shape = ForestShape(128, 128, 11, 16, 40, 60, 4, 1, 320)
  forest = bench_device.draw_forest(np.random.default_rng(0), shape, 48, 1000)
  assert (forest["decoder_segment_ids"] > 0).mean() > 0.85
  assert (forest["ancestor_slots"].max(-1) > 0).sum() > 10
  assert forest["decoder_loss_weights"].sum() > 100
