import importlib.util

import pytest

from commentree.errors import UserError
from commentree.launch.benchmarks import bench_input
from commentree.launch.commands import cache
from commentree.launch.settings import beam_flags
from commentree.tasks import data
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.data_config import DataConfig

FLAGS = [
  "--gin_file=runs/demo.gin",
  "--gin.MODEL_DIR='m'",
  "--output_cache_dir=nowhere",
]


def test_a_missing_beam_is_told_with_the_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'commentree\[beam\]'"):
    cache.main(FLAGS)


def test_a_number_of_shards_that_is_none_is_refused():
  with pytest.raises(UserError, match="--min_shards=0"):
    cache.main([*FLAGS, "--min_shards=0"])


def test_what_follows_two_dashes_is_beams():
  assert beam_flags.split(["--a=1", "b", "--", "--c=2"]) == (["--a=1", "b"], ["--c=2"])
  assert beam_flags.split(["--a=1"]) == (["--a=1"], [])


def test_a_users_mistake_is_brought_out_of_what_beam_wraps_it_in():
  def fail():
    try:
      raise UserError("a record is damaged")
    except UserError as error:
      raise RuntimeError("while running emit_examples") from error

  with (
    pytest.raises(UserError, match="a record is damaged"),
    beam_flags.errors_in_one_line(),
  ):
    fail()
  with (
    pytest.raises(UserError, match=r"^a shard is missing$"),
    beam_flags.errors_in_one_line(),
  ):
    raise RuntimeError("{{function}} UserError: a shard is missing\nTraceback: ...")
  with pytest.raises(ZeroDivisionError), beam_flags.errors_in_one_line():
    _ = 1 / 0


def test_a_chips_rate_is_that_of_the_compiled_table():
  chip = bench_input.chip_rate("base", "v5e:4x4")
  assert chip is not None
  # Four forests a chip in a step of 417 ms.
  assert chip.forests == pytest.approx(4 / 0.417, rel=0.01)
  with pytest.raises(UserError, match="no such row"):
    bench_input.chip_rate("base", "v9:1x1")


def test_rates_of_the_stages_add_up(tmp_path):
  opened = data.open_data(
    DataConfig(
      "commentree_generated",
      {"encoder": 32, "decoder": 32},
      generated=GeneratedTreesConfig(num_train_trees=60, num_validation_trees=5),
      cache_dir=str(tmp_path),
    ),
    splits=("train",),
  )
  rates = bench_input.measure(opened, rounds=1, seconds=0.05)
  for name in ("forests", "comments", "tokens"):
    one, other, both = (
      getattr(rates[s], name) for s in ("batches", "subtrees", "both")
    )
    assert 1 / both == pytest.approx(1 / one + 1 / other)
    assert both > 0
