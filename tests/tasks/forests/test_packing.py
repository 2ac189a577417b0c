import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.forests import forest_layout, pack_items, packing
from commentree.tasks.forests.forest_layout import ForestLayout, ForestShape
from commentree.tasks.objectives.masking import Masker
from commentree.tasks.seqio_tasks import feature_converters
from commentree.tests.support.tasks.drawn_subtrees import (
  MASK_ID,
  maskable,
  random_subtree,
  random_subtrees,
)

MASKER = Masker(MaskingConfig(), MASK_ID, maskable())
SHAPE = ForestShape(
  encoder_length=32,
  decoder_length=32,
  encoder_rows=6,
  decoder_rows=10,
  encoder_slots=24,
  target_slots=32,
  max_ancestors=4,
  masked_groups=10,
  masked_per_group=12,
)


def masked_subtrees(count, seed=0, **kwargs):
  subtrees = random_subtrees(count, seed, **kwargs)
  return [MASKER(p, SHAPE.decoder_length, 0, 0, i) for i, p in enumerate(subtrees)]


def walk_up(parents, node):
  while parents[node] >= 0:
    node = parents[node]
    yield node


def expected_targets(subtrees, max_ancestors=SHAPE.max_ancestors):
  """What each target must look like, computed one comment at a time."""
  for subtree in subtrees:
    starts = np.cumsum(subtree["lengths"]) - subtree["lengths"]

    def words(node, name, length, starts=starts, subtree=subtree):
      end = starts[node] + min(subtree["lengths"][node], length)
      return tuple(subtree[name][starts[node] : end].tolist())

    for node in np.flatnonzero(subtree["is_target"]):
      masked = words(node, "is_masked", SHAPE.decoder_length)
      if not any(masked):
        continue
      up = list(walk_up(subtree["parents"], node))
      seen = up if len(up) <= max_ancestors else [*up[: max_ancestors - 1], up[-1]]
      clean = words(node, "tokens", SHAPE.decoder_length)
      yield (
        words(node, "input_tokens", SHAPE.decoder_length),
        tuple((c, t) for c, (t, m) in enumerate(zip(clean, masked)) if m),
        int(subtree["depths"][node]),
        tuple(
          (
            words(a, "tokens", SHAPE.encoder_length),
            int(subtree["depths"][node] - subtree["depths"][a]),
            int(subtree["depths"][a]),
          )
          for a in seen
        ),
      )


def read_segments(forest, side):
  """segment id -> (row, first column, tokens), checking that it is contiguous."""
  tokens, ids = forest[f"{side}_input_tokens"], forest[f"{side}_segment_ids"]
  segments = {}
  for segment in range(1, ids.max() + 1):
    rows, columns = np.nonzero(ids == segment)
    assert len(set(rows)) == 1, "a comment never straddles rows"
    assert (np.diff(columns) == 1).all(), "a comment is contiguous"
    np.testing.assert_array_equal(
      forest[f"{side}_positions"][rows, columns], np.arange(len(columns))
    )
    segments[segment] = (rows[0], columns[0], tuple(tokens[rows, columns].tolist()))
  return segments


def found_targets(forest):
  encoded = read_segments(forest, "encoder")
  for segment, (row, first, tokens) in read_segments(forest, "decoder").items():
    rows, row_length = forest["decoder_segment_ids"].shape
    groups = len(forest["decoder_loss_weights"])
    group, start = divmod(row * row_length + first, rows // groups * row_length)
    used = forest["decoder_loss_weights"][group] == 1
    masked = tuple(
      (int(position - start), int(token))
      for position, token in zip(
        forest["decoder_masked_positions"][group][used],
        forest["decoder_target_tokens"][group][used],
      )
      if start <= position < start + len(tokens)
    )
    slots = forest["ancestor_slots"][segment - 1]
    hops = forest["ancestor_distances"][segment - 1]
    yield (
      tokens,
      masked,
      int(forest["target_depths"][segment - 1]),
      tuple(
        (encoded[s][2], int(h), int(forest["encoder_slot_depths"][s - 1]))
        for s, h in zip(slots, hops)
        if s
      ),
    )


@settings(max_examples=25, deadline=None)
@given(
  st.integers(0, 10**6),
  st.integers(1, 60),
  st.integers(1, 30),
  # Room for the masked tokens of full rows, and for a few of them.
  st.sampled_from([(10, 12), (2, 40), (1, 120), (1, 16)]),
)
def test_every_target_stands_in_the_forests_once_with_its_own_ancestors(
  seed, count, lookahead, masked
):
  subtrees = masked_subtrees(count, seed)
  groups, in_group = masked
  shape = dataclasses.replace(SHAPE, masked_groups=groups, masked_per_group=in_group)
  forests = list(packing.pack(subtrees, shape, lookahead))
  found = [target for forest in forests for target in found_targets(forest)]
  assert sorted(found) == sorted(expected_targets(subtrees))


def test_only_comments_that_a_target_sees_are_encoded():
  subtrees = masked_subtrees(30)
  forests = list(packing.pack(subtrees, SHAPE, 16))
  for forest in forests:
    slots = set(range(1, forest["encoder_segment_ids"].max() + 1))
    assert slots == set(forest["ancestor_slots"][forest["ancestor_slots"] > 0].tolist())
    assert (forest["encoder_slot_depths"] >= 0).sum() == len(slots)


def test_shapes_and_types_never_change():
  for forest in packing.pack(masked_subtrees(40), SHAPE, 16):
    assert {k: v.shape for k, v in forest.items()} == SHAPE.feature_shapes()
    assert {v.dtype for k, v in forest.items() if k != "decoder_loss_weights"} == {
      np.dtype(np.int32)
    }


def test_a_subtree_too_large_for_a_forest_is_cut_and_nothing_is_lost():
  subtrees = masked_subtrees(3, nodes=90)
  forests = list(packing.pack(subtrees, SHAPE, 4))
  found = [target for forest in forests for target in found_targets(forest)]
  assert sorted(found) == sorted(expected_targets(subtrees))


def test_room_that_no_whole_subtree_fits_is_filled_with_parts_and_nothing_is_lost():
  # Comments of two tokens, which take three fifths of a forest's: no two subtrees fit.
  subtrees = masked_subtrees(20, nodes=96, max_length=3, deep=0.0)
  shape = dataclasses.replace(SHAPE, target_slots=160, encoder_slots=160)
  shape = dataclasses.replace(shape, masked_per_group=32)
  totals = packing.total(subtrees, (32, 32), SHAPE.max_ancestors, 32)
  assert 0.5 < totals.target_tokens / len(subtrees) / (10 * 32) < 0.7
  forests = list(packing.pack(subtrees, shape, 8))
  found = [target for forest in forests for target in found_targets(forest)]
  assert sorted(found) == sorted(expected_targets(subtrees))
  assert len(forests) < 0.8 * len(subtrees)


def without_text(subtree, nodes):
  """The subtree with no tokens at some nodes."""
  starts = np.cumsum(subtree["lengths"]) - subtree["lengths"]
  gone = np.concatenate(
    [np.arange(starts[n], starts[n] + subtree["lengths"][n]) for n in nodes]
  )
  lengths = subtree["lengths"].copy()
  lengths[nodes] = 0
  is_target = np.where(lengths, subtree["is_target"], 0)
  tokens = np.delete(subtree["tokens"], gone)
  return {**subtree, "tokens": tokens, "lengths": lengths, "is_target": is_target}


def who_sees_whom(item):
  ids = item.subtree["node_ids"]
  seen = np.where(item.ancestors >= 0, ids[item.ancestors], -1)
  return list(zip(ids[item.targets].tolist(), map(tuple, seen.tolist())))


@pytest.mark.parametrize("max_ancestors", [1, 3])
def test_a_part_sees_what_the_whole_does_where_comments_have_no_text(max_ancestors):
  # A deep thread: 2 and 4 have no text, so those below see fewer than they may.
  subtree = random_subtrees(1, nodes=9, deep=1.0)[0]
  masked = MASKER(without_text(subtree, [2, 4]), 32, 0, 0, 0)
  whole = pack_items.measure(masked, 32, 32, max_ancestors)
  wanted = who_sees_whom(whole)
  assert len(wanted) == 6
  for first, last in itertools.combinations(range(7), 2):
    once = pack_items.part(whole, slice(first, last))
    later = pack_items.part(whole, slice(first // 2, None))
    twice = pack_items.part(later, slice(first - first // 2, last - first // 2))
    for found in (once, twice):
      assert who_sees_whom(found) == wanted[first:last]
      assert found.sizes == once.sizes


def test_what_fills_room_whole_does_not_wait_on_as_a_subtree_of_nothing(monkeypatch):
  monkeypatch.setattr(packing, "_MAX_MISFITS", 1)
  shape = ForestShape(8, 10, 1, 2, 8, 8, 4, 2, 10)

  def subtree(*lengths):
    one = random_subtrees(1, nodes=len(lengths), max_length=3, deep=0.0)[0]
    one["parents"][1:] = 0
    tokens = np.full(sum(lengths), 50, np.int32)
    changes = {"lengths": np.array(lengths, np.int32), "tokens": tokens}
    return MASKER({**one, **changes}, 10, 0, 0, 0)

  packer = packing.Packer(shape, 3)
  # Of the second the size fits best into what the first leaves, two times 4 tokens.
  for key, lengths in enumerate([(2, 6, 6), (6, 8), (2, 3, 3)]):
    (item,) = packing.fitting_items(subtree(*lengths), shape)
    packer.pool.append(packing.Waiting(key, item))
  forest = packer.next_forest()
  assert np.count_nonzero(forest["decoder_segment_ids"]) == 18
  assert [waiting.key for waiting in packer.pool] == [1]


def test_of_a_subtree_that_fits_no_empty_forest_some_goes_all_the_same():
  """As may happen to what is left of a subtree: rows are filled by no exact rule."""
  # Short comments, each below three that fill an encoder row: no two go together.
  (subtree,) = masked_subtrees(1, nodes=1 + 3 * 4, max_length=3)
  subtree = {**subtree, "lengths": np.array([32] + [32, 32, 32, 2] * 3, np.int32)}
  subtree["parents"] = np.array(
    [-1, *(p for b in (1, 5, 9) for p in (0, b, b + 1, b + 2))]
  )
  subtree["depths"] = np.array([0, *[1, 2, 3, 4] * 3], np.int32)
  subtree["is_target"] = np.array([0, *[0, 0, 0, 1] * 3], np.int32)
  subtree["tokens"] = (
    np.arange(10, 10 + subtree["lengths"].sum(), dtype=np.int32) % 80 + 10
  )
  subtree["input_tokens"] = subtree["tokens"]
  subtree["is_masked"] = np.repeat(subtree["is_target"], subtree["lengths"])
  packer = packing.Packer(SHAPE, 4)
  packer.pool = [packing.Waiting(0, pack_items.measure(subtree, 32, 32, 4))]
  forests = []
  while packer.pool:
    forests.append(packer.next_forest())
    assert forests[-1]["decoder_segment_ids"].any()
  found = [target for forest in forests for target in found_targets(forest)]
  assert sorted(found) == sorted(expected_targets([subtree]))
  assert len(forests) == 3


@pytest.mark.parametrize(
  "settings", [{"encoder_rows": 3}, {"encoder_slots": 3}, {"masked_per_group": 1}]
)
def test_a_layout_that_might_not_hold_some_comment_is_refused_at_the_start(settings):
  with pytest.raises(UserError, match=next(iter(settings))):
    forest_layout.resolve(
      ForestLayout(max_ancestors=4, **settings),
      {"encoder": 32, "decoder": 32},
      forest_layout.SubtreeTotals(1, 9, 90, 9, 5, 5, 50),
    )


@settings(max_examples=50, deadline=None)
@given(
  st.integers(0, 10**6),
  st.integers(1, 60),
  st.sampled_from([(10, 12), (2, 40), (1, 120), (1, 16), (10, 32)]),
)
def test_what_surely_fits_does(seed, nodes, masked):
  groups, in_group = masked
  shape = dataclasses.replace(SHAPE, masked_groups=groups, masked_per_group=in_group)
  (subtree,) = masked_subtrees(1, seed, nodes=nodes)
  item = pack_items.measure(subtree, 32, 32, SHAPE.max_ancestors)
  fits = packing.ForestBuilder(shape).add(item)
  assert fits or not packing.surely_fits(item.pack_sizes, shape)


def test_rows_with_room_for_all_their_tokens_as_masked_ones_do_not_keep_subtrees_out():
  shape = dataclasses.replace(SHAPE, masked_groups=10, masked_per_group=32)
  sizes = forest_layout.PackSizes(128, 32, 8, 4, masked=128)
  assert packing.surely_fits(sizes, shape)
  assert not packing.surely_fits(sizes, dataclasses.replace(shape, masked_per_group=31))


def test_groups_of_masked_tokens_are_of_as_many_rows_each():
  with pytest.raises(
    UserError, match="masked_groups = 7: must divide decoder_rows = 64"
  ):
    ForestLayout(masked_groups=7)


def test_masked_tokens_have_less_padding_by_forest_than_by_row():
  subtrees = masked_subtrees(1500, max_length=24)
  totals = packing.total(subtrees, (32, 32), 4, MASKER.most_masked(32))
  used = {}
  for groups in (1, 32):
    shape = forest_layout.resolve(
      ForestLayout(decoder_rows=32, max_ancestors=4, masked_groups=groups),
      {"encoder": 32, "decoder": 32},
      totals,
    )
    fill = packing.Fill()
    weights = []
    for forest in list(packing.pack(subtrees, shape, 256))[:-8]:
      fill.add(forest)
      weights.append(forest["decoder_loss_weights"].mean())
    # The rows fill up all the same.
    assert fill.decoder > 0.94
    used[groups] = np.mean(weights)
  assert used[1] > 0.9 > 1.1 * used[32]


def test_an_example_of_padding_has_no_slots_and_no_weight():
  forest = packing.empty_forest(SHAPE)
  assert not forest["decoder_loss_weights"].any()
  assert (forest["encoder_slot_depths"] == -1).all()


def test_rows_fill_up_when_there_is_enough_to_choose_from():
  subtrees = masked_subtrees(1500, max_length=24)
  totals = packing.total(subtrees, (32, 32), 4, 0)
  shape = forest_layout.resolve(
    ForestLayout(decoder_rows=32, max_ancestors=4),
    {"encoder": 32, "decoder": 32},
    totals,
  )
  fill = packing.Fill()
  for forest in list(packing.pack(subtrees, shape, 256))[:-8]:
    fill.add(forest)
  assert fill.decoder > 0.94
  assert fill.encoder > 0.85


def test_small_forests_have_room_for_what_parts_of_deep_trees_bring_along():
  rng = np.random.default_rng(0)
  drawn = [random_subtree(rng, rng.integers(2, 400), 24, 0.98) for _ in range(60)]
  subtrees = [MASKER(subtree, 64, 0, 0, index) for index, subtree in enumerate(drawn)]

  def totals(shape):
    return packing.total(subtrees, (64, 64), 16, 0, shape)

  def choose(found):
    lengths = {"encoder": 64, "decoder": 64}
    return forest_layout.resolve(ForestLayout(decoder_rows=16), lengths, found)

  def filled(shape):
    fill = packing.Fill()
    # As in a stream: while there is enough to choose from.
    for forest in itertools.islice(packing.pack(subtrees, shape, 64), 50):
      fill.add(forest)
    return fill.decoder

  # A part of a subtree has its ancestors to encode too, for which there is no room in
  # what whole subtrees would need.
  for_whole = choose(totals(None))
  fitted, _ = forest_layout.fit(choose, totals(None), totals)
  assert fitted.encoder_rows > 1.2 * for_whole.encoder_rows
  assert filled(fitted) > filled(for_whole) + 0.07


def test_a_shape_that_cuts_nothing_is_chosen_once():
  subtrees = masked_subtrees(50, max_length=24)
  chosen = []

  def choose(found):
    chosen.append(found)
    return forest_layout.resolve(ForestLayout(), {"encoder": 32, "decoder": 32}, found)

  def totals(shape):
    return packing.total(subtrees, (32, 32), 16, 0, shape)

  forest_layout.fit(choose, totals(None), totals)
  assert len(chosen) == 1


def test_an_ancestor_without_text_is_passed_over():
  subtree = random_subtrees(1, nodes=4, deep=1.0)[0]
  # The post (node 0) has no text: as if its tokens were never there.
  length = subtree["lengths"][0]
  subtree = {
    **subtree,
    "tokens": subtree["tokens"][length:],
    "lengths": subtree["lengths"].copy(),
  }
  subtree["lengths"][0] = 0
  forest = next(packing.pack([MASKER(subtree, 32, 0, 0, 0)], SHAPE, 1))
  assert (forest["ancestor_slots"][:3] > 0).sum(axis=1).tolist() == [0, 1, 2]
  assert forest["ancestor_distances"][2][:2].tolist() == [1, 2]


def test_row_lengths_are_checked_by_name():
  with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS"):
    forest_layout.row_lengths({"inputs": 128})


def test_a_subtree_with_nothing_to_predict_is_a_forest_of_padding():
  (subtree,) = masked_subtrees(1)
  nothing = {**subtree, "is_masked": np.zeros_like(subtree["is_masked"])}
  forest = feature_converters._forest_of(nothing, SHAPE)
  assert not forest["decoder_segment_ids"].any()
