"""Numbers of comments, from files to subtrees."""

import dataclasses
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.console import Console
from commentree.errors import UserError
from commentree.tasks import data
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CommentNumbersConfig,
  MarkersConfig,
  PreprocessingConfig,
  SubtreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.preparation import preparing, records
from commentree.tasks.seqio_tasks import registration, registry
from commentree.tasks.sources import generated
from commentree.tasks.subtrees import comment_numbers
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.subtrees.subtree_counts import SubtreeCounts
from commentree.tasks.trees.comment_tree import Comment, CommentTree
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees
from commentree.tests.support.tasks.vocabulary_fixture import Characters

SCORES = CommentNumbersConfig("score")
LABELS = CommentNumbersConfig("label")


def read(number):
  return comment_numbers.read(number)


def test_labels_are_read_as_the_numbers_that_they_are_written_as():
  assert read("-2.5") == -2.5
  assert read(" 1e3 ") == 1000
  assert read(7) == 7
  for odd in ("", "for", "1_000", "nan", "inf", "-inf", "1e39", "1,5", "0x10", "true"):
    assert math.isnan(read(odd)), odd


@given(st.floats(-1e30, 1e30), st.sampled_from(["none", "log"]))
def test_what_is_learnt_comes_back_as_the_number_that_it_was(number, transform):
  config = CommentNumbersConfig("label", transform, mean=0.5, standard_deviation=2.0)
  learnt = (config.transformed(number) - config.mean) / config.standard_deviation
  assert config.restored(learnt) == pytest.approx(number, rel=1e-9, abs=1e-9)
  assert config.transformed(-number) == -config.transformed(number)


def test_a_number_too_large_for_floats_comes_back_as_infinite():
  assert CommentNumbersConfig("label", "log").restored(-1e4) == -math.inf
  assert math.isnan(CommentNumbersConfig("label", "log").restored(math.nan))


@given(st.lists(st.floats(width=32)))
def test_bits_are_the_numbers(numbers):
  there = np.array(numbers, np.float32)
  bits = comment_numbers.to_bits(there)
  assert bits.dtype == np.int32
  np.testing.assert_array_equal(comment_numbers.from_bits(bits), there)


def tree():
  return CommentTree(
    "t",
    [
      Comment("p", -1, None, "title", 0, score=1000, label="9"),
      Comment("a", 0, None, "x" * 25, 1, score=3, label="-1.5"),
      Comment("b", 1, None, "short", 2, label="for"),
      Comment("c", 0, None, "other", 3, score=-5),
    ],
  )


@pytest.mark.parametrize(
  ("config", "numbers", "missing", "odd"),
  [
    (SCORES, [1000, 3, np.nan, -5], 1, 0),
    (LABELS, [9, -1.5, np.nan, np.nan], 1, 1),
    (
      CommentNumbersConfig("score", "log", 2.0, 3.0),
      [np.log(1001), np.log(4), np.nan, -np.log(6)],
      1,
      0,
    ),
  ],
)
def test_a_comments_number_is_at_the_node_that_it_begins_in(
  config, numbers, missing, odd
):
  settings = SubtreeConfig(
    max_tree_size=4, max_ancestors=2, max_comment_tokens=10, long_comments="chunk"
  )
  preprocessing = PreprocessingConfig(
    markers=MarkersConfig(authors=False), comment_numbers=config, subtrees=settings
  )
  builder = SubtreeBuilder(Characters(), preprocessing)
  found = {}
  for subtree in builder(tree()):
    assert subtree["comment_numbers"].dtype == np.int32
    there = comment_numbers.from_bits(subtree["comment_numbers"])
    for node, number in zip(subtree["node_ids"].tolist(), there.tolist(), strict=True):
      found.setdefault(node, []).append(number)
    again = records.decode(records.encode(subtree))
    np.testing.assert_array_equal(again["comment_numbers"], subtree["comment_numbers"])
  for node, number in enumerate(numbers):
    known = [x for x in found[node] if not math.isnan(x)]
    assert known == pytest.approx([number] * len(known))
    assert bool(known) == (not math.isnan(number))
  # The post's is no comment's to predict: it is not counted.
  counts, own = builder.counts, np.array(numbers[1:])
  own = own[np.isfinite(own)]
  assert (counts.numbers, counts.numbers_missing, counts.numbers_odd) == (
    len(own),
    missing,
    odd,
  )
  assert counts.number_moments() == pytest.approx((own.mean(), own.std()))
  assert (counts.with_score, counts.with_label) == (2, 2)


def test_counts_of_parts_add_up_to_those_of_the_whole():
  one, other = SubtreeCounts(), SubtreeCounts()
  for counts, numbers in ((one, [1.0, 2.0]), (other, [6.0])):
    counts.numbers = len(numbers)
    counts.number_sum = sum(numbers)
    counts.number_squares = sum(x * x for x in numbers)
  one.add(other)
  assert one.number_moments() == pytest.approx((3.0, np.std([1, 2, 6])))
  assert "3 comments with numbers: mean 3, standard deviation 2.16" in one.report()
  assert SubtreeCounts().report_numbers() == ""


# ---- What a run is told --------------------------------------------------------------


def settings(tmp_path, numbers, *comments, objective="regress"):
  path = write_trees(tmp_path / "in", *(record(f"p{i}", c) for i, c in comments))
  trees = GeneratedTreesConfig()
  vocabulary = generated.vocabulary(trees, MarkersConfig(), str(tmp_path))
  return DataConfig(
    "commentree_files",
    {"encoder": 8, "decoder": 8},
    files=str(path),
    held_out_share=0.0,
    cache_dir=str(tmp_path / "cache"),
    vocabulary=str(vocabulary),
    preprocessing=PreprocessingConfig(
      comment_numbers=numbers, objective=ObjectiveConfig(objective)
    ),
  )


def prepared(config):
  registration.register_tasks(config)
  task = registry.get_task("commentree_files")
  told = io.StringIO()
  preparing.prepare(task, "train", config, Console(file=told, width=1000))
  return told.getvalue()


def test_numbers_are_told_when_prepared_and_when_used_again(tmp_path):
  comments = [(i, comment(f"a{i}", f"p{i}", score=i)) for i in range(9)]
  config = settings(tmp_path, SCORES, *comments)
  for begins in ("prepared train: ", "train: "):
    told = prepared(config)
    assert told.startswith(begins)
    assert "9 comments with numbers: mean 4, standard deviation 2.582" in told
    assert "(0 more have none, 0 one that is not finite)" in told
    assert "learnt best" not in told


def test_numbers_far_from_what_is_learnt_well_come_with_settings_that_mend_it(tmp_path):
  comments = [(i, comment(f"a{i}", f"p{i}", label=1000 + i)) for i in range(9)]
  config = settings(tmp_path, LABELS, *comments)
  advice = (
    "--gin.CommentNumbersConfig.mean=1e+03"
    " --gin.CommentNumbersConfig.standard_deviation=2.58"
  )
  assert advice in prepared(config)
  near = CommentNumbersConfig("label", mean=1004.0, standard_deviation=2.5)
  preprocessing = dataclasses.replace(config.preprocessing, comment_numbers=near)
  told = prepared(dataclasses.replace(config, preprocessing=preprocessing))
  # The same subtrees: both settings apply when those are read.
  assert told.startswith("train: ")
  assert "learnt best" not in told


def test_data_without_any_number_are_refused_by_the_field_and_what_there_is(tmp_path):
  comments = [(i, comment(f"a{i}", f"p{i}", score=None, label="x")) for i in range(9)]
  with pytest.raises(UserError, match="none of the 9 comments") as error:
    data.open_data(settings(tmp_path, SCORES, *comments))
  message = str(error.value)
  assert "CommentNumbersConfig.source = 'score'" in message
  assert "(0 have a score, 9 a label)" in message
  assert "\n" not in message


def test_other_numbers_prepare_anew_and_other_constants_do_not():
  config = DataConfig("commentree_generated", {"encoder": 8, "decoder": 8})

  def shaping(numbers):
    changed = PreprocessingConfig(comment_numbers=numbers)
    registration.register_tasks(dataclasses.replace(config, preprocessing=changed))
    return preparing.settings(registry.get_task("commentree_generated"), "train")

  assert shaping(SCORES) != shaping(CommentNumbersConfig())
  assert shaping(SCORES) != shaping(CommentNumbersConfig("score", "log"))
  assert shaping(SCORES) == shaping(CommentNumbersConfig("score", mean=2.0))


@pytest.mark.parametrize(
  "wrong",
  [
    {"source": "subreddit"},
    {"source": "score", "transform": "sqrt"},
    {"source": "score", "standard_deviation": 0.0},
    {"transform": "log"},
    {"mean": 1.0},
  ],
)
def test_settings_of_numbers_that_cannot_be_are_refused(wrong):
  with pytest.raises(UserError, match=r"CommentNumbersConfig\.\w+"):
    CommentNumbersConfig(**wrong)


def test_regress_without_a_source_of_numbers_is_refused():
  with pytest.raises(UserError, match=r"CommentNumbersConfig\.source is missing"):
    DataConfig(
      "commentree_generated",
      {"encoder": 8, "decoder": 8},
      preprocessing=PreprocessingConfig(objective=ObjectiveConfig("regress")),
    )


# ---- What a build tells --------------------------------------------------------------


def test_a_build_counts_scores_and_labels_that_are_numbers(tmp_path):
  scores, labels = [5, -3, 0, None, -4], ["1.5", "for", -2, 4, None]
  path = write_trees(
    tmp_path / "in",
    record(
      "p",
      *(
        comment(f"c{i}", "p", score=score, label=label)
        for i, (score, label) in enumerate(zip(scores, labels, strict=True))
      ),
      score=1000,
      label=99,
    ),
  )
  stats = building_fixture.build([path], tmp_path / "out", BuildConfig()).stats
  known = [5, -3, 0, -4]
  facts = stats["distributions"]["comment_score"]
  assert facts["number"] == 4
  assert facts["mean"] == np.mean(known)
  assert facts["standard_deviation"] == pytest.approx(np.std(known), abs=1e-3)
  assert facts["histogram"] == {"4-7": 1, "-3--2": 1, "0": 1, "-7--4": 1}
  numbers = [1.5, -2, 4]
  assert stats["label_numbers"] == {
    "number": 3,
    "mean": pytest.approx(np.mean(numbers), rel=1e-5),
    "standard_deviation": pytest.approx(np.std(numbers), rel=1e-5),
  }
