"""`tag` and `classify`, from subtrees to forests; how many labels a model gets."""

import dataclasses
import types

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.launch import assemble_run
from commentree.models.config import ModelConfig
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CommentLabelsConfig,
  LabelsConfig,
  PreprocessingConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests import forest_layout, pack_items, packing
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.objectives import label_objectives, objectives
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span
from commentree.tests.support.tasks.drawn_subtrees import random_subtrees
from commentree.tests.support.tasks.vocabulary_fixture import Characters

SPANS = LabelsConfig(("claim", "premise"))
STANCES = CommentLabelsConfig("label", ("for", "against", "neither"))
LENGTHS = {"encoder": 24, "decoder": 24}


def settings(name):
  return PreprocessingConfig(
    labels=SPANS, comment_labels=STANCES, objective=ObjectiveConfig(name)
  )


def labelled_subtrees(count=40):
  """Random subtrees whose tokens have labels 0 to 4, and nodes classes -1 to 2."""
  rng = np.random.default_rng(1)
  for subtree in random_subtrees(count):
    subtree["token_labels"] = rng.integers(0, 5, len(subtree["tokens"])).astype(
      np.int32
    )
    subtree["comment_labels"] = rng.integers(-1, 3, len(subtree["lengths"])).astype(
      np.int32
    )
    yield subtree


def apply(name, subtrees):
  objective = objectives.build(settings(name), types.SimpleNamespace())
  return objective, [
    objective(subtree, 24, 0, 0, i) for i, subtree in enumerate(subtrees)
  ]


def predictions(forest):
  """What is predicted of each target: its tokens as read, {position: label}."""
  found = []
  segments = forest["decoder_segment_ids"]
  for slot in range(1, segments.max() + 1):
    row, columns = (values for values in np.nonzero(segments == slot))
    row = row[0]
    groups = len(forest["decoder_loss_weights"])
    group, first = divmod(row * segments.shape[1] + columns[0], segments.size // groups)
    used = forest["decoder_loss_weights"][group] > 0
    there = {
      int(position - first): int(label)
      for position, label in zip(
        forest["decoder_masked_positions"][group][used],
        forest["decoder_target_tokens"][group][used],
      )
      if first <= position < first + len(columns)
    }
    tokens = tuple(forest["decoder_input_tokens"][row, columns].tolist())
    found.append((tokens, tuple(sorted(there.items()))))
  return sorted(found)


def wanted(name, subtrees):
  found = []
  for subtree in subtrees:
    ends = np.cumsum(subtree["lengths"])
    for node in np.flatnonzero(subtree["is_target"]):
      tokens = slice(ends[node] - subtree["lengths"][node], ends[node])
      read = tuple(subtree["tokens"][tokens][:24].tolist())
      if name == "tag":
        labels = dict(enumerate(subtree["token_labels"][tokens][:24].tolist()))
      elif subtree["comment_labels"][node] < 0:
        continue
      else:
        labels = {0: int(subtree["comment_labels"][node])}
      found.append((read, tuple(labels.items())))
  return sorted(found)


@pytest.mark.parametrize("name", ["tag", "classify"])
@pytest.mark.parametrize("decoder_rows", [64, 3])  # three rows: subtrees are cut
def test_forests_hold_each_comment_unmasked_with_its_labels(name, decoder_rows):
  subtrees = list(labelled_subtrees())
  objective, made = apply(name, subtrees)
  totals = packing.total(made, (24, 24), 4, objective.most_masked(24))
  layout = ForestLayout(
    decoder_rows, encoder_rows=decoder_rows + 4, encoder_slots=100, max_ancestors=4
  )
  shape = forest_layout.resolve(layout, LENGTHS, totals, objective.optional_features)
  if name == "tag":
    assert (shape.masked_groups, shape.masked_per_group) == (decoder_rows, 24)
  else:
    # One of each target that there may be.
    assert shape.masked_groups == 1
    assert shape.target_slots <= shape.masked_per_group < decoder_rows * 12
  found = []
  for forest in packing.pack(made, shape, 8):
    found += predictions(forest)
  assert len(found) > 50
  assert sorted(found) == wanted(name, subtrees)


def test_cut_subtrees_keep_their_annotations():
  for subtree in labelled_subtrees(20):
    _, (made,) = apply("tag", [subtree])
    item = pack_items.measure(made, 24, 24, 4)
    for target in range(len(item.targets)):
      part = slice(target, target + 1)
      cut = pack_items.part(item, part).subtree
      nodes = cut["node_ids"]
      np.testing.assert_array_equal(
        cut["comment_labels"], subtree["comment_labels"][nodes]
      )
      of_tokens = np.repeat(np.arange(len(subtree["lengths"])), subtree["lengths"])
      kept = np.isin(of_tokens, nodes)
      for of_token in ("token_labels", "target_tokens", "input_tokens"):
        np.testing.assert_array_equal(cut[of_token], made[of_token][kept])


def test_trees_without_labels_are_trained_on_unless_left_out():
  def tree(spans):
    return CommentTree(
      "t",
      [
        Comment("p", -1, None, "title", 0),
        Comment("a", 0, None, "claimed", 1, None, spans),
        Comment("b", 0, None, "plain", 2),
      ],
    )

  counted = {}
  for choice in ("outside", "left_out"):
    builder = SubtreeBuilder(
      Characters(),
      PreprocessingConfig(labels=dataclasses.replace(SPANS, bare_trees=choice)),
    )
    for spans in ((Span(0, 7, "claim"),), ()):
      builder = dataclasses.replace(builder, tokenizer=WithOffsets())
      (subtree,) = builder(tree(spans))
      _, (made,) = apply("tag", [subtree])
      counted[choice, bool(spans)] = int(made["is_masked"].sum())
      assert made["target_tokens"].min() == 0
  assert counted["outside", True] == counted["outside", False] > 12
  assert counted["left_out", True] == counted["outside", True]
  assert counted["left_out", False] == 0


class WithOffsets(Characters):
  def encode_batch_with_offsets(self, texts):
    return [
      (ids, np.stack([np.arange(len(ids)), np.arange(len(ids)) + 1], axis=1))
      for ids in self.encode_batch(texts)
    ]


def test_labels_are_named_by_what_is_predicted():
  assert label_objectives.label_names(settings("tag")) == (
    "O",
    "B-claim",
    "I-claim",
    "B-premise",
    "I-premise",
  )
  assert label_objectives.label_names(settings("classify")) == STANCES.names
  assert label_objectives.label_names(settings("mlm")) == ()


def task(name):
  tokenizer = types.SimpleNamespace(vocab_size=200)
  return types.SimpleNamespace(
    preprocessing=settings(name), tokenizer=tokenizer, tree_source=None
  )


@pytest.mark.parametrize(
  ("objective", "head", "labels"),
  [("tag", "tagging", 5), ("classify", "classification", 3), ("mlm", "masked_lm", 0)],
)
def test_a_model_has_as_many_labels_as_its_data(objective, head, labels):
  sized = assemble_run.with_sizes(ModelConfig(head=head), task(objective))
  assert (sized.vocab_size, sized.num_labels) == (256, labels)
  groups = assemble_run.token_groups(types.SimpleNamespace(task=task(objective)))
  names = label_objectives.label_names(settings(objective))
  assert groups == {name: [number] for number, name in enumerate(names)}


def test_a_head_that_the_objective_does_not_train_is_refused():
  with pytest.raises(UserError, match="'tag' needs 'tagging'; add --gin_file"):
    assemble_run.with_sizes(ModelConfig(), task("tag"))
  with pytest.raises(UserError, match="'mlm' needs 'masked_lm'"):
    assemble_run.with_sizes(ModelConfig(head="tagging"), task("mlm"))
  with pytest.raises(UserError, match="num_labels = 7: the data has 5 labels, O, B-c"):
    assemble_run.with_sizes(ModelConfig(head="tagging", num_labels=7), task("tag"))


def test_objectives_whose_labels_are_not_named_are_refused():
  for name in ("tag", "classify"):
    with pytest.raises(UserError, match=f"is missing: the objective '{name}' needs"):
      DataConfig(
        "commentree_generated",
        LENGTHS,
        preprocessing=PreprocessingConfig(objective=ObjectiveConfig(name)),
      )
