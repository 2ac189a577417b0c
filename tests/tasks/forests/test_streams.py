import collections
import dataclasses
import json

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.forests import forest_streams, packing
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.objectives.masking import Masker
from commentree.tasks.preparation import records
from commentree.tests.support.tasks.drawn_subtrees import (
  MASK_ID,
  maskable,
  random_subtrees,
)
from commentree.tests.support.tasks.examples import assert_same, take

MASKER = Masker(MaskingConfig(), MASK_ID, maskable())
SHAPE = ForestShape(32, 32, 4, 6, 16, 24, 4, 6, 12)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("prepared") / "subtrees"
  return records.write(folder, iter(random_subtrees(60)), {"key": "k"})


def batches(prepared, batch_size=4, **hosts):
  return forest_streams.TrainForests(
    [forest_streams.SubtreeSource(prepared, MASKER)],
    SHAPE,
    batch_size=batch_size,
    seed=7,
    lookahead=8,
    **hosts,
  )


def test_subtrees_come_back_from_disk_as_they_were(prepared):
  for index, subtree in enumerate(random_subtrees(60)):
    back = prepared[index]
    assert back["tree_id"] == subtree["tree_id"]
    for name in ("tokens", "lengths", "parents", "depths", "is_target", "node_ids"):
      np.testing.assert_array_equal(back[name], subtree[name])


class Counting:
  """An objective that counts what it was at."""

  def __init__(self):
    self.seen = []

  def __call__(self, subtree, length, seed, epoch, index):
    self.seen.append(index)
    return MASKER(subtree, length, seed, epoch, index)

  def most_masked(self, length):
    return MASKER.most_masked(length)


def test_a_sample_has_the_totals_of_its_subtrees_and_looks_again_at_those_it_cuts(
  prepared,
):
  lengths = (SHAPE.encoder_length, SHAPE.decoder_length)
  masked = [MASKER(prepared[i], lengths[1], 0, 0, i) for i in range(60)]
  most = MASKER.most_masked(lengths[1])
  objective = Counting()
  sample = forest_streams.Sample(prepared, objective, lengths, SHAPE.max_ancestors)
  for shape in (None, SHAPE, dataclasses.replace(SHAPE, decoder_rows=12)):
    expected = packing.total(masked, lengths, SHAPE.max_ancestors, most, shape)
    assert sample.totals(shape) == expected
  assert sample.totals(SHAPE) != sample.totals()
  assert set(objective.seen) == set(range(60))
  objective.seen.clear()
  roomy = ForestShape(32, 32, 99, 99, 999, 999, 4, 1, 999)
  assert sample.totals(roomy) == sample.totals()
  assert not objective.seen


def test_an_epoch_is_a_permutation_and_the_next_another():
  order = forest_streams.EpochShuffle(1500, seed=3)
  first = [order[p] for p in range(1500)]
  second = [order[p] for p in range(1500, 3000)]
  assert sorted(i for _, i in first) == list(range(1500))
  assert sorted(i for _, i in second) == list(range(1500))
  assert {e for e, _ in first} == {0}
  assert {e for e, _ in second} == {1}
  assert [i for _, i in first] != [i for _, i in second]
  assert [i for _, i in first] != list(range(1500))


def test_resuming_gives_the_batches_that_would_have_come(prepared):
  undisturbed = batches(prepared)
  take(undisturbed, 9)
  state = json.loads(json.dumps(undisturbed.get_state()))
  # Of some subtrees a part is gone.
  assert any(first for s in state.values() for *_, first in s["pool"])
  expected = take(undisturbed, 12)
  resumed = batches(prepared)
  resumed.set_state(state)
  assert_same(take(resumed, 12), expected)


def test_resuming_reads_no_more_than_the_pool(prepared):
  class Counting:
    reads = 0

    def __len__(self):
      return len(prepared)

    def __getitem__(self, index):
      Counting.reads += 1
      return prepared[index]

  undisturbed = batches(prepared, batch_size=1)
  take(undisturbed, 200)
  state = undisturbed.get_state()
  resumed = batches(Counting(), batch_size=1)
  resumed.set_state(state)
  assert Counting.reads <= 8


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(prepared, num_hosts):
  whole = take(batches(prepared), 5)
  parts = [
    take(batches(prepared, host=host, num_hosts=num_hosts), 5)
    for host in range(num_hosts)
  ]
  joined = [
    {name: np.concatenate([p[step][name] for p in parts]) for name in whole[0]}
    for step in range(5)
  ]
  assert_same(joined, whole)


def test_over_an_epoch_every_subtree_is_read_once(prepared):
  read = []

  class Noting:
    def __len__(self):
      return len(prepared)

    def __getitem__(self, index):
      read.append(index)
      return prepared[index]

  iterator = batches(Noting(), batch_size=1)
  while len(read) < 60:
    next(iterator)
  assert sorted(read[:60]) == list(range(60))


@pytest.mark.long
def test_over_some_epochs_no_subtree_is_seen_much_more_often_than_another(monkeypatch):
  seen = collections.Counter()
  build = packing.ForestBuilder.build

  def noted(builder):
    seen.update({item.subtree["tree_id"] for item in builder._items})
    return build(builder)

  monkeypatch.setattr(packing.ForestBuilder, "build", noted)
  subtrees = [p for p in random_subtrees(600, max_length=12) if len(p["lengths"]) > 1]
  source = forest_streams.SubtreeSource(subtrees, MASKER)
  some = forest_streams.TrainForests(
    [source], SHAPE, batch_size=4, seed=7, lookahead=256
  )
  while sum(seen.values()) < 3.9 * len(subtrees):
    next(some)
  assert len(seen) == len(subtrees)
  # A pool of 256 subtrees a stream, of which there are 4, would hold two epochs.
  assert set(seen.values()) <= {3, 4, 5}


def test_hosts_that_cannot_share_the_batch_are_told(prepared):
  with pytest.raises(UserError, match="BATCH_SIZE = 6"):
    batches(prepared, batch_size=6, host=0, num_hosts=4)


def evaluation(prepared, host=0, num_hosts=1):
  return list(
    forest_streams.eval_batches(
      prepared,
      MASKER,
      SHAPE,
      batch_size=4,
      seed=0,
      lookahead=8,
      host=host,
      num_hosts=num_hosts,
    )
  )


def test_evaluation_sees_every_subtree_once_and_pads_the_last_batch(prepared):
  first = evaluation(prepared)
  assert_same(first, evaluation(prepared))
  targets = sum(
    int((p["is_target"] * (p["lengths"] > 1)).sum()) for p in random_subtrees(60)
  )
  found = sum(int(b["decoder_segment_ids"].max((1, 2)).sum()) for b in first)
  assert found == targets
  assert all(b["decoder_input_tokens"].shape[0] == 4 for b in first)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_evaluate_the_rows_of_the_same_global_batches(prepared, num_hosts):
  whole = evaluation(prepared)
  rows = 4 // num_hosts
  for host in range(num_hosts):
    own = evaluation(prepared, host, num_hosts)
    assert 0 < len(own) <= len(whole)
    mine = slice(host * rows, (host + 1) * rows)
    expected = [{k: v[mine] for k, v in batch.items()} for batch in whole]
    assert_same(own, expected[: len(own)])
    # What this host leaves out once its streams have ended is padding.
    assert not any(b["decoder_segment_ids"].any() for b in expected[len(own) :])


def test_a_host_without_held_out_subtrees_still_has_a_batch_of_padding(prepared):
  one_subtree = [prepared[0]]
  (batch,) = evaluation(one_subtree, host=3, num_hosts=4)
  assert not batch["decoder_loss_weights"].any()


def test_a_state_without_our_stream_is_refused(prepared):
  with pytest.raises(UserError, match="BATCH_SIZE"):
    batches(prepared).set_state({"0": {"next": 0, "pool": []}})


def test_an_unfinished_preparation_leaves_nothing_to_be_read(tmp_path):
  def broken():
    yield random_subtrees(1)[0]
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError):
    records.write(tmp_path / "subtrees", broken(), {"key": "k"})
  assert not list(tmp_path.iterdir())


def test_damaged_records_are_named(tmp_path):
  folder = tmp_path / "subtrees"
  records.write(folder, iter(random_subtrees(5)), {"key": "k"})
  meta = json.loads((folder / "META.json").read_text())
  (folder / "META.json").write_text(json.dumps({**meta, "subtrees": 9}))
  with pytest.raises(UserError, match="delete the folder"):
    records.SubtreeRecords(folder)


def test_no_trees_at_all_is_said(tmp_path):
  with pytest.raises(UserError, match="no comment trees"):
    records.write(tmp_path / "subtrees", iter(()), {"key": "k"})
