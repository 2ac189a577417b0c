import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.forests import pack_items, packing
from commentree.tasks.objectives.causal import CausalObjective
from commentree.tasks.objectives.masking import Masker
from commentree.tasks.objectives.span_corruption import SpanCorruption
from commentree.tests.support.tasks.drawn_subtrees import (
  MASK_ID,
  VOCAB_SIZE,
  maskable,
  random_subtrees,
)
from commentree.tests.support.tasks.forest_reading import SHAPE, pack_and_read

START, END, AUTHOR = 1, 2, 5
MLM = Masker(MaskingConfig(), MASK_ID, maskable())
CLM = CausalObjective(START, END, np.arange(VOCAB_SIZE) == AUTHOR, 40)
SPANS = SpanCorruption(
  ObjectiveConfig("span_corruption"), START, np.arange(90, 99), maskable(), "v.model"
)
OBJECTIVES = (MLM, CLM, SPANS)


def apply(objective, subtrees, length=SHAPE.decoder_length):
  return [objective(subtree, length, 7, 0, i) for i, subtree in enumerate(subtrees)]


def comments(subtree):
  ends = np.cumsum(subtree["lengths"])
  for node in np.flatnonzero(subtree["is_target"]):
    yield subtree["tokens"][ends[node] - subtree["lengths"][node] : ends[node]].tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(3, 60))
def test_clm_reads_from_the_start_and_predicts_each_token_once(seed, count, longest):
  subtrees = random_subtrees(count, seed, max_length=longest)
  expected = []
  for tokens in (c for subtree in subtrees for c in comments(subtree)):
    whole = len(tokens) < CLM.max_comment_tokens
    answer = (tokens + [END] * whole)[: SHAPE.decoder_length]
    expected.append(([START, *answer[:-1]], [-1, *answer[1:]]))
  found = pack_and_read(apply(CLM, subtrees))
  assert sorted((list(t.read), list(t.predicted)) for t in found) == sorted(expected)
  assert {t.prefix for t in found} <= {0}


def test_clm_predicts_the_author_only_if_asked():
  predicting = dataclasses.replace(CLM, is_given=np.zeros(VOCAB_SIZE, bool))
  subtrees = random_subtrees(9)
  assert {t.predicted[0] for t in pack_and_read(apply(CLM, subtrees))} == {-1}
  assert {t.predicted[0] for t in pack_and_read(apply(predicting, subtrees))} == {
    AUTHOR
  }


def test_a_comment_of_a_marker_alone_is_predicted_to_end_there():
  subtree = random_subtrees(1, nodes=2)[0]
  subtree["tokens"] = np.array([20, 21, AUTHOR], np.int32)
  subtree["lengths"] = np.array([2, 1], np.int32)
  (target,) = pack_and_read(apply(CLM, [subtree]))
  assert (target.read, target.predicted) == ((START, AUTHOR), (-1, END))


def test_a_comment_cut_off_is_not_predicted_to_end():
  subtree = random_subtrees(1, nodes=2)[0]
  for length, ends in ((12, True), (13, False)):
    subtree["lengths"] = np.array([0, length], np.int32)
    subtree["tokens"] = np.full(length, 20, np.int32)
    cut_at_13 = dataclasses.replace(CLM, max_comment_tokens=13)
    (target,) = pack_and_read(apply(cut_at_13, [subtree]))
    assert (END in target.predicted) == ends
    assert sum(token == 20 for token in target.predicted) == length
    # Nor where a row has no room for the end.
    (target,) = pack_and_read([CLM(subtree, length, 0, 0, 0)])
    assert END not in target.predicted
    assert sum(token == 20 for token in target.predicted) == length


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_in_a_forest_of_several_objectives_each_subtree_is_as_alone(seed, count):
  subtrees = random_subtrees(count, seed)
  mixed = [
    OBJECTIVES[i % len(OBJECTIVES)](subtree, SHAPE.decoder_length, 7, 0, i)
    for i, subtree in enumerate(subtrees)
  ]
  alone = [target for subtree in mixed for target in pack_and_read([subtree])]
  assert sorted(pack_and_read(mixed)) == sorted(alone)
  for target in pack_and_read(apply(MLM, subtrees)):
    assert target.prefix == len(target.read)  # where others may not, all see all


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_a_subtree_too_large_for_a_forest_is_cut_and_nothing_is_lost(objective):
  subtrees = apply(objective, random_subtrees(1, nodes=90))
  small = dataclasses.replace(SHAPE, decoder_rows=99, encoder_rows=99, masked_groups=99)
  large = dataclasses.replace(small, encoder_slots=99, target_slots=99)
  assert len(list(packing.pack(subtrees, large, 1))) == 1
  whole = [
    t._replace(ancestors=len(t.ancestors)) for t in pack_and_read(subtrees, large)
  ]
  cut = [t._replace(ancestors=len(t.ancestors)) for t in pack_and_read(subtrees)]
  assert sorted(cut) == sorted(whole)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_an_objective_adds_what_it_says_and_no_more_than_it_says(objective):
  for subtree in random_subtrees(20, max_length=50):
    done = objective(subtree, 16, 7, 0, 0)
    assert set(done) - set(subtree) == set(objective.features)
    assert all(done[name].dtype == np.int32 for name in objective.features)
    item = pack_items.measure(done, 16, 16, 4)
    in_decoder = done.get("target_lengths", subtree["lengths"])
    assert len(done["input_tokens"]) == in_decoder.sum()
    assert (item.masked <= objective.most_masked(16)).all()
    if "target_lengths" in done:
      assert (done["target_lengths"] <= 16).all()


def test_forests_without_the_features_of_an_objective_are_refused():
  bare = dataclasses.replace(SHAPE, optional_features=())
  with pytest.raises(UserError, match="target_prefix_lengths"):
    list(packing.pack(apply(CLM, random_subtrees(1)), bare, 1))
  assert list(packing.pack(apply(MLM, random_subtrees(1)), bare, 1))


@pytest.mark.parametrize(
  ("settings", "field"),
  [
    ({"name": "bert"}, "name"),
    ({"noise_density": 0}, "noise_density"),
    ({"mean_span": 0.5}, "mean_span"),
    ({"predict_authors": "yes"}, "predict_authors"),
    ({"name": "tlm"}, "languages"),
    ({"name": "tlm", "languages": ("en", "en")}, "languages"),
    ({"name": "clm", "languages": ("en",)}, "languages"),
  ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, field):
  with pytest.raises(UserError, match=f"ObjectiveConfig.{field}"):
    ObjectiveConfig(**settings)
