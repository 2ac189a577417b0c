import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.objectives.masking import Masker
from commentree.tasks.objectives.span_corruption import SpanCorruption
from commentree.tasks.seqio_tasks import registry
from commentree.tests.support.tasks.drawn_subtrees import (
  VOCAB_SIZE,
  maskable,
  random_subtrees,
)
from commentree.tests.support.tasks.forest_reading import SHAPE, pack_and_read

START = 1
SENTINELS = np.arange(VOCAB_SIZE + 50, VOCAB_SIZE, -1)


def corruption(density=0.15, mean=3.0, sentinels=SENTINELS):
  config = ObjectiveConfig("span_corruption", density, mean)
  return SpanCorruption(config, START, sentinels, maskable(), "there.model")


def comments(subtree):
  ends = np.cumsum(subtree["lengths"])
  for node in np.flatnonzero(subtree["is_target"]):
    tokens = subtree["tokens"][
      ends[node] - subtree["lengths"][node] : ends[node]
    ].tolist()
    if len(tokens) > 1 or maskable()[tokens[0]]:
      yield tokens


def invert(target):
  """(the comment, its spans) of what is read and predicted."""
  prefix, behind = target.read[: target.prefix], target.read[target.prefix :]
  answers = target.predicted[target.prefix :]
  assert set(target.predicted[: target.prefix]) <= {-1}
  assert -1 not in answers
  assert behind == (START, *answers[:-1])
  spans, last = [], None
  for token in answers:
    if token in SENTINELS:
      last = SENTINELS.tolist().index(token)
      assert last == len(spans), "sentinels come in their order"
      spans.append([])
    else:
      spans[-1].append(token)
  assert spans.pop() == [], "the last sentinel ends it all"
  comment = []
  for token in prefix:
    is_sentinel = token in SENTINELS
    comment += spans[SENTINELS.tolist().index(token)] if is_sentinel else [token]
  assert [t for t in prefix if t in SENTINELS] == SENTINELS[: len(spans)].tolist()
  return comment, spans


@settings(max_examples=60, deadline=None)
@given(
  st.integers(0, 10**6),
  st.integers(2, 60),
  st.sampled_from([0.05, 0.15, 0.5, 0.9]),
  st.sampled_from([1.0, 3.0, 10.0]),
)
def test_what_is_read_and_predicted_is_the_comment_again(seed, longest, density, mean):
  subtrees = random_subtrees(3, seed, max_length=max(3, longest))
  objective = corruption(density, mean)
  row = SHAPE.decoder_length
  expected = []
  for tokens in (c for subtree in subtrees for c in comments(subtree)):
    shown = min(len(tokens), objective.config.longest_corrupted(row))
    expected.append((tokens[:shown], *objective.config.count_noise(shown)))
  masked = [objective(subtree, row, 7, 0, i) for i, subtree in enumerate(subtrees)]
  found = []
  for target in pack_and_read(masked):
    comment, spans = invert(target)
    assert all(spans), "no span is empty"
    found.append((comment, sum(map(len, spans)), len(spans)))
    assert len(target.read) <= row
    assert sum(answer >= 0 for answer in target.predicted) <= objective.most_masked(row)
  assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
  ("length", "expected"),
  [
    (1, (1, 1)),
    (2, (1, 1)),
    (10, (2, 1)),
    (40, (6, 2)),
    (100, (15, 5)),
    (512, (77, 26)),
  ],
)
def test_spans_are_as_many_as_those_of_t5(length, expected):
  # As `t5.data.preprocessors.random_spans_noise_mask` counts them.
  assert ObjectiveConfig("span_corruption").count_noise(length) == expected


@pytest.mark.parametrize("row", [8, 32, 128, 512])
def test_the_longest_comment_shown_fills_its_row_but_for_a_little(row):
  config = ObjectiveConfig("span_corruption")

  def total(length):
    return length + 2 * config.count_noise(length)[1] + 1

  longest = config.longest_corrupted(row)
  assert total(longest) <= row < total(longest + 1)


@pytest.mark.parametrize("first", [5, 10])
def test_a_span_may_begin_anywhere_but_at_a_marker(first):
  length, draws = 26, 4000
  comment = np.append(first, np.arange(11, 10 + length))
  nodes = np.arange(draws + 1, dtype=np.int32)
  subtree = {
    "tokens": np.append(20, np.tile(comment, draws)).astype(np.int32),
    "lengths": np.where(nodes > 0, length, 1).astype(np.int32),
    "is_target": (nodes > 0).astype(np.int32),
  }
  done = corruption()(subtree, 99, 0, 0, 0)
  noise, spans = corruption().config.count_noise(length)
  assert (noise, spans) == (4, 1)
  kept = done["input_tokens"][done["is_masked"] == 0]
  hits = draws - np.bincount(kept, minlength=999)[comment]
  begins = np.arange(int(first == 5), length - noise + 1)
  expected = [
    np.mean((begins <= place) & (place < begins + noise)) for place in range(length)
  ]
  assert np.abs(hits / draws - expected).max() < 5 * 0.5 / np.sqrt(draws)
  if first == 5:
    assert hits[0] == 0


def test_spans_depend_on_seed_epoch_and_example_and_on_nothing_else():
  (subtree,) = random_subtrees(1, nodes=30)

  def draw(**key):
    done = corruption()(subtree, 64, **{"seed": 1, "epoch": 0, "index": 0, **key})
    return done["input_tokens"].tolist()

  assert draw() == draw()
  for key in ({"seed": 2}, {"epoch": 1}, {"index": 1}):
    assert draw() != draw(**key)


def test_a_comment_of_its_authors_marker_alone_is_no_target():
  (subtree,) = random_subtrees(1, nodes=3)
  subtree["tokens"] = np.array([20, 5, 30], np.int32)
  subtree["lengths"] = np.ones(3, np.int32)
  (target,) = pack_and_read([corruption()(subtree, 32, 0, 0, 0)])
  assert invert(target) == ([30], [[30]])


def test_too_few_sentinels_are_told_with_the_command_that_adds_them():
  few = corruption(sentinels=SENTINELS[:3])
  assert few.most_masked(32) == 4 + 1 + 1
  with pytest.raises(UserError, match=r"there\.model: has 3 .*--sentinels=100"):
    few.most_masked(128)
  with pytest.raises(UserError, match="needs 7"):
    few(random_subtrees(1)[0], 128, 0, 0, 0)


def test_generated_trees_have_sentinels_where_spans_are_predicted(tmp_path):
  with_spans = PreprocessingConfig(objective=ObjectiveConfig("span_corruption"))
  task = registry.add_generated_task(
    "spans", preprocessing=with_spans, cache_dir=tmp_path
  )
  assert isinstance(task.objective(), SpanCorruption)
  assert len(task.tokenizer.sentinels) == 100
  plain = registry.add_generated_task("plain", cache_dir=tmp_path)
  assert isinstance(plain.objective(), Masker)
  assert len(plain.tokenizer.sentinels) == 0
  first = [plain.tokenizer.id_to_piece(i) for i in range(plain.tokenizer.vocab_size)]
  assert first == [task.tokenizer.id_to_piece(i) for i in range(len(first))]
