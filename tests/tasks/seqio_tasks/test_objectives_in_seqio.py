"""Every objective through SeqIO: its own inspection, and its feature converters."""

import itertools

import numpy as np
import pytest

from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.objective import PREFIXES, ObjectiveConfig
from commentree.tasks.config.preprocessing import PreprocessingConfig, SubtreeConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.seqio_tasks import registry
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)

LENGTHS = {"encoder": 32, "decoder": 32}
CONFIG = GeneratedTreesConfig(num_train_trees=30, max_tree_size=12)


@pytest.fixture(scope="module", params=["clm", "span_corruption", "tlm"])
def task(request, tmp_path_factory):
  languages = ("en",) if request.param == "tlm" else ()
  return registry.add_generated_task(
    f"in_seqio_{request.param}",
    CONFIG,
    PreprocessingConfig(
      objective=ObjectiveConfig(request.param, languages=languages),
      subtrees=SubtreeConfig(max_tree_size=8, max_ancestors=4),
    ),
    tmp_path_factory.mktemp("cache"),
  )


@pytest.fixture(scope="module")
def subtrees(task):
  return task.get_dataset(LENGTHS, split="train", shuffle=False, seed=3)


def test_examples_hold_what_the_objective_adds(task, subtrees):
  assert set(task.output_features) <= set(subtrees.element_spec)
  example = next(subtrees.as_numpy_iterator())
  for name in task.objective().features:
    assert example[name].dtype == np.int32
    assert name in task.output_features
  tokens = [n for n in ("tokens", "input_tokens", "target_tokens") if n in example]
  for name in tokens:
    vocabulary = task.output_features[name].vocabulary
    assert len(vocabulary.decode(example[name].tolist())) > 0


def test_forests_have_the_optional_features_that_the_subtrees_need(task, subtrees):
  converter = CommentForestFeatureConverter(layout=ForestLayout(decoder_rows=8))
  forests = list(itertools.islice(converter(subtrees, LENGTHS).as_numpy_iterator(), 2))
  assert set(forests[0]) == set(converter.MODEL_FEATURES)
  assert (
    task.objective().optional_features
    == converter.forest_shape(task.output_features, LENGTHS).optional_features
  )
  assert set(task.objective().optional_features) <= set(forests[0])
  for forest in forests:
    lengths = np.bincount(forest["decoder_segment_ids"].ravel())[1:]
    if task.preprocessing.objective.name == "span_corruption":
      assert (forest[PREFIXES][: len(lengths)] < lengths).all()
      assert (forest[PREFIXES][: len(lengths)] > 0).all()
    if task.preprocessing.objective.name == "clm":
      assert not forest[PREFIXES].any()
      assert forest["decoder_loss_weights"].sum() == lengths.sum() - len(lengths)


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({}, (8, 32)),
    ({"masked_per_group": 24}, (8, 24)),
    ({"masked_groups": 2}, (2, 128)),
    ({"masked_groups": 1, "masked_per_group": 200}, (1, 200)),
  ],
)
def test_what_is_predicted_of_whole_comments_is_kept_by_row(settings, expected):
  converter = CommentForestFeatureConverter(
    layout=ForestLayout(decoder_rows=8, **settings)
  )
  features = {**converter.TASK_FEATURES, "target_tokens": None}
  shape = converter.forest_shape(features, LENGTHS)
  assert (shape.masked_groups, shape.masked_per_group) == expected
