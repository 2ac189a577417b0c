"""`regress`, from subtrees to forests, by our way and by SeqIO's."""

import types

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.launch import assemble_run
from commentree.models import batch as batch_lib
from commentree.models.config import ModelConfig
from commentree.tasks.config.objective import TARGET_NUMBERS, ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CommentNumbersConfig,
  PreprocessingConfig,
)
from commentree.tasks.forests import forest_layout, pack_items, packing
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.objectives import label_objectives, objectives
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)
from commentree.tasks.seqio_tasks.registry import CommentTreeTask
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.subtrees import comment_numbers
from commentree.tasks.trees.comment_tree import Comment, CommentTree
from commentree.tests.support.tasks.drawn_subtrees import random_subtrees
from commentree.tests.support.tasks.vocabulary_fixture import Characters

LENGTHS = {"encoder": 24, "decoder": 24}
SETTINGS = PreprocessingConfig(
  comment_numbers=CommentNumbersConfig("score", mean=2.0, standard_deviation=4.0),
  objective=ObjectiveConfig("regress"),
)


def numbered_subtrees(count=40):
  """Random subtrees whose nodes have numbers, a third of them none."""
  rng = np.random.default_rng(1)
  for subtree in random_subtrees(count):
    nodes = len(subtree["lengths"])
    numbers = np.where(rng.random(nodes) < 1 / 3, np.nan, rng.normal(0, 9, nodes))
    yield {**subtree, "comment_numbers": comment_numbers.to_bits(numbers)}


def predictions(forest):
  """What is predicted of each target: its tokens as read, and its number."""
  found = []
  segments = forest["decoder_segment_ids"]
  for slot in range(1, segments.max() + 1):
    rows, columns = np.nonzero(segments == slot)
    in_group = segments.size // len(forest["decoder_loss_weights"])
    group, first = divmod(rows[0] * segments.shape[1] + columns[0], in_group)
    used = forest["decoder_loss_weights"][group] > 0
    positions = forest["decoder_masked_positions"][group][used]
    own = first + np.arange(len(columns))
    assert (positions == own[0]).sum() == 1
    assert not np.isin(positions, own[1:]).any()
    tokens = forest["decoder_input_tokens"][rows[0], columns]
    found.append((tuple(tokens.tolist()), float(forest[TARGET_NUMBERS][slot - 1])))
  return found


def wanted(subtrees):
  for subtree in subtrees:
    numbers = comment_numbers.from_bits(subtree["comment_numbers"])
    ends = np.cumsum(subtree["lengths"])
    for node in np.flatnonzero(subtree["is_target"] * np.isfinite(numbers)):
      tokens = subtree["tokens"][ends[node] - subtree["lengths"][node] : ends[node]]
      learnt = (numbers[node] - 2.0) / 4.0
      yield tuple(tokens[:24].tolist()), pytest.approx(float(learnt), abs=1e-6)


@pytest.mark.parametrize("decoder_rows", [64, 3])  # three rows: subtrees are cut
def test_forests_hold_each_comment_unmasked_with_its_number(decoder_rows):
  subtrees = list(numbered_subtrees())
  objective = objectives.build(SETTINGS, types.SimpleNamespace())
  made = [objective(subtree, 24, 0, 0, i) for i, subtree in enumerate(subtrees)]
  assert set(objective.features) <= set(made[0])
  totals = packing.total(made, (24, 24), 4, objective.most_masked(24))
  layout = ForestLayout(
    decoder_rows, encoder_rows=decoder_rows + 4, encoder_slots=100, max_ancestors=4
  )
  shape = forest_layout.resolve(layout, LENGTHS, totals, objective.optional_features)
  found = []
  for forest in packing.pack(made, shape, 8):
    assert forest[TARGET_NUMBERS].dtype == np.float32
    assert not forest["decoder_target_tokens"].any()
    found += predictions(forest)
  assert len(found) > 50
  assert sorted(found) == sorted(wanted(subtrees), key=lambda pair: pair[0])


def test_cut_subtrees_keep_their_numbers():
  objective = objectives.build(SETTINGS, types.SimpleNamespace())
  for subtree in numbered_subtrees(20):
    item = pack_items.measure(objective(subtree, 24, 0, 0, 0), 24, 24, 4)
    parts = [
      pack_items.part(item, slice(t, t + 1)).numbers for t in range(len(item.targets))
    ]
    np.testing.assert_array_equal(np.concatenate([*parts, []]), item.numbers)


class Scored(TreeSource):
  """A tree whose comments have scores, but for one."""

  def trees(self, split):
    comments = [Comment("p", -1, None, "post", None, score=50)]
    for number, score in enumerate([6, None, -2]):
      text = "abc"[number]
      comments.append(Comment(f"c{number}", 0, None, text, None, score=score))
    yield CommentTree("p", comments)

  def signature(self, split):
    return {}


def test_seqio_and_t5x_get_the_same_numbers():
  task = CommentTreeTask("scored", Scored(), Characters(), SETTINGS)
  ds = task.get_dataset(None, "train", shuffle=False, use_cached=False)
  converter = CommentForestFeatureConverter(layout=ForestLayout(4))
  (forest,) = converter(ds, LENGTHS).as_numpy_iterator()
  assert forest[TARGET_NUMBERS].dtype == np.float32
  assert sorted(number for _, number in predictions(forest)) == [-1.0, 1.0]
  assert forest["decoder_loss_weights"].sum() == 2


def test_data_and_model_agree_on_what_is_float32():
  assert set(forest_layout.FLOAT_FEATURES) == set(batch_lib.FLOAT_FEATURES)


def test_a_number_is_no_label_and_no_token():
  assert label_objectives.label_names(SETTINGS) == ()
  assert not objectives.predicts_tokens(SETTINGS.objective)
  task = types.SimpleNamespace(
    preprocessing=SETTINGS, tokenizer=types.SimpleNamespace(vocab_size=200)
  )
  with pytest.raises(UserError, match="'regress' needs 'regression'; add --gin_file"):
    assemble_run.with_sizes(ModelConfig(), task)
  sized = assemble_run.with_sizes(ModelConfig(head="regression"), task)
  assert (sized.vocab_size, sized.num_labels) == (256, 1)
