from __future__ import annotations

import math

import pytest

from commentree.errors import UserError
from commentree.training import config as config_lib
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig

RECALL = "true/reply_matching/matcher/recall_at_1"


@pytest.mark.parametrize(
  ("make", "named"),
  [
    (lambda: ScheduleConfig(name="sine"), "ScheduleConfig.name"),
    (lambda: ScheduleConfig(warmup_steps=-1), "warmup_steps"),
    (lambda: OptimizerConfig(clip_norm=0.0), "clip_norm"),
    (lambda: config_lib.PartitioningConfig(model_parallel=0), "model_parallel"),
    (
      lambda: config_lib.PartitioningConfig(logical_axis_rules=(("embed", "tpu"),)),
      "logical_axis_rules",
    ),
    (lambda: config_lib.CheckpointConfig(keep=0), "CheckpointConfig.keep"),
    (lambda: config_lib.EvalConfig(conditions=("some",)), "conditions"),
    (lambda: config_lib.EvalConfig(depth_edges=(1, 2)), "depth_edges"),
    (lambda: config_lib.EvalConfig(reply_matching="no"), "reply_matching = 'no'"),
    (lambda: config_lib.EvalConfig(bags_of_words=0), "bags_of_words = 0"),
    (lambda: config_lib.TrainConfig("", 1, 1), "model_dir"),
    (
      lambda: config_lib.EvalConfig(reply_matching=False).check_metric("m", RECALL),
      "needs EvalConfig.reply_matching = True",
    ),
    (lambda: config_lib.EvalConfig().check_metric("m", RECALL + "x"), "no such metric"),
    (
      lambda: config_lib.EvalConfig(("none",)).check_metric("m", RECALL),
      "lacks 'true'",
    ),
    (lambda: ScheduleConfig(learning_rate=math.inf), "learning_rate = inf"),
    (lambda: ScheduleConfig(learning_rate=math.nan), "learning_rate = nan"),
    (lambda: config_lib.TrainConfig("d", 1.5, 1), "train_steps"),
    (
      lambda: config_lib.TrainConfig("d", 1, 8, gradient_accumulation_steps=3),
      "gradient_accumulation_steps",
    ),
    (
      lambda: config_lib.TrainConfig(
        "d", 1, 8, evaluation=config_lib.EvalConfig(conditions=("none",))
      ),
      "best_metric",
    ),
  ],
)
def test_a_bad_setting_is_one_line_that_names_it(make, named):
  with pytest.raises(UserError, match=named) as raised:
    make()
  assert "\n" not in str(raised.value)


def test_lists_from_gin_make_hashable_settings():
  config = config_lib.PartitioningConfig(logical_axis_rules=[["batch", "data"]])
  assert hash(config.logical_axis_rules) == hash((("batch", "data"),))
