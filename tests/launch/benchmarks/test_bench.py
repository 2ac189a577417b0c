"""What `make bench` compares."""

import jax
import numpy as np

from commentree.launch.benchmarks import bench
from commentree.tasks import data as data_lib
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.data_config import DataConfig


def test_each_layout_makes_batches_that_its_model_takes(tmp_path):
  data = data_lib.open_data(
    DataConfig(
      "commentree_generated",
      {"encoder": bench.COMMENT_LENGTH, "decoder": bench.COMMENT_LENGTH},
      generated=GeneratedTreesConfig(num_train_trees=60, num_validation_trees=5),
      cache_dir=str(tmp_path),
    ),
    splits=("train",),
  )
  contenders = bench.make_contenders(data, "float32", (1, 2, 2))
  assert [each.name for each in contenders] == ["forest", "padded", "thread"]
  for each in contenders:
    batch, comments = each.batches[0]
    assert comments > 0
    params = jax.eval_shape(each.init, jax.random.key(0))
    loss, weight = jax.eval_shape(each.loss, params, batch)
    assert loss.shape == weight.shape == ()
  _, padded, _ = contenders
  for batch, comments in padded.batches:
    for stack in ("encoder", "decoder"):
      (ids,) = batch[f"{stack}_segment_ids"]
      assert all(len(set(row[row > 0].tolist())) <= 1 for row in ids)
    assert np.count_nonzero(ids.max(1)) == comments
