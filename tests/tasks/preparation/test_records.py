import json

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.forests import forest_streams
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.objectives.masking import Masker
from commentree.tasks.preparation import records
from commentree.tasks.subtrees.subtree_builder import SUBTREE_FEATURES
from commentree.tests.support.tasks import built_fixture
from commentree.tests.support.tasks.drawn_subtrees import (
  MASK_ID,
  maskable,
  random_subtrees,
)


def parts(folder):
  """Three parts of prepared subtrees, the second without any."""
  subtrees = random_subtrees(30)

  def fill(draft):
    cuts = (subtrees[:12], [], subtrees[12:])
    return [
      records.write_part(records.part_path(draft, number), cut)
      for number, cut in enumerate(cuts)
    ]

  return records.write_parts(folder, fill, {"key": "k"}), subtrees


def same(one, other):
  return one["tree_id"] == other["tree_id"] and all(
    np.array_equal(one[name], other[name]) for name in SUBTREE_FEATURES
  )


def test_parts_are_read_as_one(tmp_path):
  prepared, subtrees = parts(tmp_path / "subtrees")
  assert len(prepared) == 30
  assert all(map(same, prepared, subtrees))
  assert sum(1 for _ in prepared) == 30


def test_the_digest_tells_other_subtrees_but_not_other_parts(tmp_path):
  prepared, subtrees = parts(tmp_path / "subtrees")
  one = records.write(tmp_path / "one", iter(subtrees), {})
  assert one.totals == prepared.totals
  subtrees[7]["tokens"] = subtrees[7]["tokens"] + 1
  other = records.write(tmp_path / "other", iter(subtrees), {})
  assert other.totals.subtrees == 30
  assert other.totals != one.totals


@pytest.mark.long
def test_a_flipped_byte_is_named_or_does_no_harm(tmp_path):
  prepared, subtrees = parts(tmp_path / "subtrees")
  path = records.part_path(tmp_path / "subtrees", 2)
  whole = path.read_bytes()
  del prepared
  messages = []
  # Records first, then what ArrayRecord keeps at the end; much between is padding.
  places = [*range(0, 9_000, 61), *range(9_000, len(whole), 1_777)]
  for offset in places:
    path.write_bytes(whole)
    built_fixture.flip(path, offset)
    for index in range(12, 30):
      try:
        back = records.SubtreeRecords(tmp_path / "subtrees")[index]
      except UserError as error:
        messages.append(str(error))
      else:
        assert same(back, subtrees[index])
  assert len(messages) > 100
  assert all(str(path) in said and "start again" in said for said in messages)


@pytest.mark.parametrize("rest", [0, 100, 40_000])
def test_a_short_part_is_refused_at_start(tmp_path, rest):
  parts(tmp_path / "subtrees")
  path = records.part_path(tmp_path / "subtrees", 2)
  path.write_bytes(path.read_bytes()[:rest])
  with pytest.raises(UserError, match=r"subtrees-00002.array_record: "):
    records.SubtreeRecords(tmp_path / "subtrees")


def test_a_missing_part_is_refused_at_start(tmp_path):
  parts(tmp_path / "subtrees")
  records.part_path(tmp_path / "subtrees", 0).unlink()
  with pytest.raises(UserError, match=r"subtrees-00000.array_record: is missing"):
    records.SubtreeRecords(tmp_path / "subtrees")


class Counting:
  """Subtrees that count how often they are read."""

  def __init__(self, subtrees):
    self.subtrees = subtrees
    self.reads = 0

  def __len__(self):
    return len(self.subtrees)

  def __getitem__(self, index):
    self.reads += 1
    return self.subtrees[index]


@pytest.mark.long
def test_a_first_batch_reads_as_much_after_many_epochs_as_at_the_start(tmp_path):
  prepared, _ = parts(tmp_path / "subtrees")

  def batches(subtrees):
    return forest_streams.TrainForests(
      [
        forest_streams.SubtreeSource(
          subtrees, Masker(MaskingConfig(), MASK_ID, maskable())
        )
      ],
      ForestShape(32, 32, 4, 6, 16, 24, 4, 6, 12),
      batch_size=2,
      seed=7,
      lookahead=8,
    )

  at_start = Counting(prepared)
  next(batches(at_start))
  undisturbed = batches(prepared)
  for _ in range(1_000):
    next(undisturbed)
  state = json.loads(json.dumps(undisturbed.get_state()))
  assert min(stream["next"] for stream in state.values()) > 10 * len(prepared)
  late = Counting(prepared)
  resumed = batches(late)
  resumed.set_state(state)
  expected, found = next(undisturbed), next(resumed)
  assert late.reads <= at_start.reads <= 2 * 8
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name])
