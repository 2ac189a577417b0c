"""The order of a mixture: in its proportions, of each task its own, found at once."""

import collections
import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.mixture_config import shares
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.forests import forest_streams, mixing
from commentree.tasks.forests.forest_layout import ForestShape, SubtreeTotals
from commentree.tasks.forests.mixing import MixtureSampler
from commentree.tasks.forests.shuffling import EpochShuffle
from commentree.tasks.objectives.causal import CausalObjective
from commentree.tasks.objectives.masking import Masker
from commentree.tests.support.tasks.drawn_subtrees import (
  MASK_ID,
  VOCAB_SIZE,
  maskable,
  random_subtrees,
)
from commentree.tests.support.tasks.examples import assert_same, take

RATES = st.lists(
  st.one_of(
    st.floats(0.01, 1.0), st.integers(1, 50), st.sampled_from([0.1, 0.7, 1 / 3])
  ),
  min_size=1,
  max_size=7,
)


def parts_of(rates):
  return shares("m", {str(task): rate for task, rate in enumerate(rates)})


@given(RATES)
def test_shares_are_the_rates_as_written_and_make_up_the_whole(rates):
  parts = parts_of(rates)
  assert sum(parts) == 1
  for one, other in itertools.combinations(range(len(rates)), 2):
    exact = Fraction(repr(float(rates[one]))) / Fraction(repr(float(rates[other])))
    assert parts[one] / parts[other] == exact


@given(RATES, st.integers(0, 10**6))
def test_counts_are_within_one_of_the_share_after_any_number_of_blocks(rates, blocks):
  parts = parts_of(rates)
  order = MixtureSampler([5] * len(parts), parts, seed=0)
  counts = order.counts(blocks)
  dealt = blocks * order.block_size
  assert sum(counts) == dealt
  for part, count, later in zip(parts, counts, order.counts(blocks + 1)):
    assert abs(count - part * dealt) <= 1
    assert 0 <= count <= later


@pytest.mark.long
@given(
  RATES,
  st.lists(st.integers(1, 3000), min_size=7, max_size=7),
  st.integers(0, 2**40),
  st.integers(0, 10**6),
)
def test_turns_follow_each_other_and_each_tasks_order_is_its_own(
  rates, examples, seed, block
):
  parts = parts_of(rates)
  order = MixtureSampler(examples[: len(parts)], parts, seed)
  own = [EpochShuffle(number, seed) for number in examples]
  start = block * order.block_size
  turns = order.counts(block) if len(parts) > 1 else [start]
  for position in range(start, start + order.block_size + 5):
    task, turn = order.turn(position)
    assert turn == turns[task]
    turns[task] += 1
  for position in (start, start + 3, start + order.block_size - 1):
    task, turn = order.turn(position)
    assert order[position] == (task, *own[task][turn])


@pytest.mark.long
def test_a_position_is_found_without_those_before():
  parts = parts_of([3, 2, 1])
  examples = [100, 7, 2000]
  forwards = MixtureSampler(examples, parts, seed=5)
  expected = [forwards[position] for position in range(5000)]
  for position in np.random.default_rng(0).permutation(5000)[:300].tolist():
    assert MixtureSampler(examples, parts, seed=5)[position] == expected[position]


def test_tasks_are_shuffled_within_a_block_and_otherwise_in_the_next():
  parts = parts_of([1, 1])
  order = MixtureSampler([10, 10], parts, seed=0)
  tasks = [order.turn(position)[0] for position in range(2 * order.block_size)]
  first, second = tasks[: order.block_size], tasks[order.block_size :]
  assert sum(first) == sum(second) == order.block_size // 2
  assert first != second
  runs = sum(1 for _ in itertools.groupby(first))
  assert 400 < runs < 624  # 512 expected of fair coins
  other = MixtureSampler([10, 10], parts, seed=1)
  assert first != [other.turn(position)[0] for position in range(order.block_size)]


@pytest.mark.parametrize(
  "rate", [0, -1, float("nan"), float("inf"), "much", None, True]
)
def test_rates_that_are_none_are_refused(rate):
  with pytest.raises(UserError, match=r"'b' is .*: must be above 0"):
    shares("m", {"a": 1, "b": rate})


def test_a_task_that_would_hardly_ever_come_is_refused():
  with pytest.raises(UserError, match="'b' is 1e-06 of all"):
    shares("m", {"a": 1, "b": 1e-6})


@pytest.mark.parametrize("least", [3e-5, 1e-4, 7e-4])
def test_turns_once_dealt_to_a_rare_task_are_not_taken_back(least):
  order = MixtureSampler([5, 5, 5], parts_of([1, least, 1]), seed=0)
  counts = [order.counts(blocks)[1] for blocks in range(300)]
  assert all(a <= b for a, b in itertools.pairwise(counts))
  assert counts[-1] >= 298


MASKER = Masker(MaskingConfig(), MASK_ID, maskable())
CAUSAL = CausalObjective(1, 2, np.arange(VOCAB_SIZE) == 5, 40)
SHAPE = ForestShape(32, 32, 4, 6, 16, 24, 4, 6, 32, ("target_prefix_lengths",))


def sources():
  thirds = parts_of([2, 1])
  return [
    forest_streams.SubtreeSource(random_subtrees(50, seed=1), MASKER, thirds[0]),
    forest_streams.SubtreeSource(random_subtrees(20, seed=2), CAUSAL, thirds[1]),
  ]


def batches(read=None, **hosts):
  return forest_streams.TrainForests(
    read or sources(), SHAPE, batch_size=4, seed=7, lookahead=8, **hosts
  )


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_global_batches_of_a_mixture_are_the_same_for_any_number_of_hosts(
  num_hosts,
):
  whole = take(batches(), 5)
  parts = [take(batches(host=h, num_hosts=num_hosts), 5) for h in range(num_hosts)]
  joined = [
    {name: np.concatenate([p[step][name] for p in parts]) for name in whole[0]}
    for step in range(5)
  ]
  assert_same(joined, whole)


def test_a_mixture_resumes_bitwise_from_a_state_like_that_of_one_task():
  undisturbed = batches()
  take(undisturbed, 30)
  state = json.loads(json.dumps(undisturbed.get_state()))
  alone = batches([sources()[0]]).get_state()
  assert {name: set(s) for name, s in state.items()} == {
    name: set(s) for name, s in alone.items()
  }
  expected = take(undisturbed, 12)
  resumed = batches()
  resumed.set_state(state)
  assert_same(take(resumed, 12), expected)


def test_subtrees_of_several_objectives_share_forests():
  shared = 0
  for batch in take(batches(), 10):
    for example in range(4):
      segments = batch["decoder_segment_ids"][example]
      lengths = np.bincount(segments.ravel())[1:]
      prefixes = batch["target_prefix_lengths"][example][: len(lengths)]
      causal = prefixes < lengths
      assert (prefixes[causal] == 0).all()
      shared += bool(causal.any() and not causal.all())
  assert shared > 5


@pytest.mark.long
def test_subtrees_are_read_in_the_proportions_of_the_mixture():
  reads = collections.Counter()

  class Noting:
    def __init__(self, name, subtrees):
      self.name, self.subtrees = name, subtrees

    def __len__(self):
      return len(self.subtrees)

    def __getitem__(self, index):
      reads[self.name] += 1
      return self.subtrees[index]

  read = [
    forest_streams.SubtreeSource(
      Noting(name, source.records), source.objective, source.share
    )
    for name, source in zip("ab", sources())
  ]
  iterator = batches(read)
  while reads.total() < 900:
    next(iterator)
  assert abs(reads["a"] / reads.total() - 2 / 3) < 0.03


def test_totals_of_a_mixture_are_in_its_proportions():
  one = SubtreeTotals(10, 100, 2000, 300, 5, 60, 1200)
  other = SubtreeTotals(1000, 2000, 8000, 8000, 32, 400, 2000)
  assert mixing.mix_totals([one], [Fraction(1)]) is one
  mixed = mixing.mix_totals([one, other], parts_of([3, 1]))
  assert mixed.most_masked == 32
  assert mixed.targets / mixed.subtrees == pytest.approx(0.75 * 10 + 0.25 * 2)
  assert mixed.masked_tokens / mixed.target_tokens == pytest.approx(
    (0.75 * 30 + 0.25 * 8) / (0.75 * 200 + 0.25 * 8)
  )
