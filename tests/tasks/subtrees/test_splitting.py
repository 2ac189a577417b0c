import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.subtrees import splitting


def chain(count):
  return np.arange(-1, count - 1)


def star(count):
  return np.concatenate([[-1], np.zeros(count - 1, int)])


def random_tree(rng, count, deep=0.5):
  """Each node replies to the one before it, or to any."""
  near = rng.random(count) < deep
  anyone = (rng.random(count) * np.arange(count)).astype(int)
  parents = np.where(near, np.arange(count) - 1, anyone)
  parents[0] = -1
  return parents


def all_but_post(parents):
  return (np.arange(len(parents)) > 0).astype(np.int32)


def seen_by(parents, node, max_ancestors):
  """The definition, one node at a time."""
  up = []
  while (node := int(parents[node])) >= 0:
    up.append(node)
  if len(up) > max_ancestors > 1:
    up = [*up[: max_ancestors - 1], up[-1]]
  return up[:max_ancestors]


def split(parents, is_target=None, size=8, ancestors=3):
  targets = all_but_post(parents) if is_target is None else is_target
  return splitting.split_nodes(
    parents, targets, max_tree_size=size, max_ancestors=ancestors
  )


@st.composite
def trees(draw):
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  parents = random_tree(
    rng, draw(st.integers(1, 120)), draw(st.sampled_from([0, 0.3, 0.6, 0.9, 0.98]))
  )
  is_target = rng.random(len(parents)) < draw(st.sampled_from([0.1, 0.7, 1.0]))
  ancestors = draw(st.integers(1, 6))
  size = max(ancestors, 2) + draw(st.integers(1, 20))
  return parents, is_target, size, ancestors


@given(trees())
def test_each_target_is_a_target_once_and_its_subtree_is_what_it_sees(tree):
  """Design §5, property 3."""
  parents, is_target, size, ancestors = tree
  subtrees = split(parents, is_target, size, ancestors)
  targets = [p.nodes[p.is_target] for p in subtrees]
  np.testing.assert_array_equal(
    np.sort(np.concatenate([np.empty(0, int), *targets])), np.flatnonzero(is_target)
  )
  for subtree in subtrees:
    assert len(subtree.nodes) <= size
    assert subtree.is_target.any()
    assert (np.diff(subtree.nodes) > 0).all()
    mine = subtree.nodes[subtree.is_target].tolist()
    context = {a for t in mine for a in seen_by(parents, t, ancestors)}
    assert set(subtree.nodes.tolist()) == context | set(mine) | {0}


@given(trees())
def test_a_target_sees_the_same_in_its_subtree_as_in_the_tree(tree):
  parents, is_target, size, ancestors = tree
  for subtree in split(parents, is_target, size, ancestors):
    inside = splitting.extract_parents(subtree.nodes, parents)
    assert inside.dtype == np.int32
    seen = splitting.visible_ancestors(inside, ancestors)
    for index in np.flatnonzero(subtree.is_target):
      there = subtree.nodes[seen[index][seen[index] >= 0]].tolist()
      assert there == seen_by(parents, subtree.nodes[index], ancestors)


@given(trees())
def test_a_subtree_cut_again_is_cut_as_well_as_the_tree(tree):
  parents, is_target, size, ancestors = tree
  found = []
  for subtree in split(parents, is_target, size, ancestors):
    inside = splitting.extract_parents(subtree.nodes, parents)
    smallest = splitting.most_context(ancestors) + 1
    for part in split(inside, subtree.is_target, smallest, ancestors):
      assert len(part.nodes) <= smallest
      nodes = subtree.nodes[part.nodes]
      again = splitting.visible_ancestors(
        splitting.extract_parents(part.nodes, inside), ancestors
      )
      for index in np.flatnonzero(part.is_target):
        found.append(nodes[index])
        there = nodes[again[index][again[index] >= 0]].tolist()
        assert there == seen_by(parents, nodes[index], ancestors)
  assert sorted(found) == np.flatnonzero(is_target).tolist()


@given(trees())
def test_visible_ancestors_are_the_nearest_and_the_post(tree):
  parents, _, _, ancestors = tree
  table = splitting.visible_ancestors(parents, ancestors)
  assert table.shape == (len(parents), ancestors)
  for node, row in enumerate(table.tolist()):
    seen = seen_by(parents, node, ancestors)
    assert row == seen + [-1] * (ancestors - len(seen))


@given(trees())
def test_no_subtree_but_one_is_less_than_half_full_of_targets(tree):
  parents, _, size, ancestors = tree
  subtrees = split(parents, np.ones(len(parents)), size, ancestors)
  counts = sorted(int(subtree.is_target.sum()) for subtree in subtrees)
  assert all(2 * count >= size - ancestors for count in counts[1:])


@given(trees())
def test_a_parent_left_out_gives_way_to_the_nearest_ancestor_in_the_subtree(tree):
  parents, is_target, size, ancestors = tree
  for subtree in split(parents, is_target, size, ancestors):
    nodes = subtree.nodes.tolist()
    for node, parent in zip(nodes, splitting.extract_parents(subtree.nodes, parents)):
      up = [a for a in seen_by(parents, node, len(parents)) if a in nodes]
      assert parent == (nodes.index(up[0]) if up else -1)


def test_a_tree_that_fits_is_one_subtree_with_the_post_as_context():
  parents = random_tree(np.random.default_rng(0), 20)
  (subtree,) = split(parents, size=20)
  np.testing.assert_array_equal(subtree.nodes, np.arange(20))
  np.testing.assert_array_equal(subtree.is_target, all_but_post(parents))
  np.testing.assert_array_equal(
    splitting.extract_parents(subtree.nodes, parents), parents
  )


def test_nodes_that_no_target_sees_are_left_out():
  parents = np.array([-1, 0, 1, 0, 3])
  (subtree,) = split(parents, np.array([0, 1, 0, 0, 0]))
  assert subtree.nodes.tolist() == [0, 1]
  assert split(parents, np.zeros(5)) == []


def test_the_post_can_be_a_target_too():
  subtrees = split(star(30), np.ones(30), size=8)
  assert sum(int(p.is_target[0]) for p in subtrees) == 1
  assert sum(int(p.is_target.sum()) for p in subtrees) == 30


def test_siblings_share_a_subtree_and_its_context():
  """5,000 direct replies need no more subtrees than their number asks for."""
  subtrees = split(star(5001), size=64, ancestors=16)
  assert len(subtrees) == -(-5000 // 63)
  assert splitting.count_copies(subtrees) == len(subtrees) - 1


def test_sibling_subtrees_of_unequal_size_share_subtrees():
  """Subtrees of 40, 20, 30 and 30 nodes below the post: two subtrees, not four."""
  parents = [-1]
  for size in (40, 20, 30, 30):
    top = len(parents)
    parents += [0] + [top] * (size - 1)
  subtrees = split(np.array(parents), size=61, ancestors=4)
  assert len(subtrees) == 2


def test_subtrees_of_a_chain_are_mostly_targets():
  subtrees = split(chain(10_000), size=64, ancestors=16)
  assert len(subtrees) <= -(-10_000 // 48)
  assert splitting.count_copies(subtrees) < 10_000 * 16 / 48
  far = splitting.extract_parents(subtrees[-1].nodes, chain(10_000))
  np.testing.assert_array_equal(far, chain(len(far)))


def test_context_copies_are_counted():
  subtrees = split(chain(10), size=6, ancestors=2)
  total = sum(len(p.nodes) for p in subtrees)
  assert splitting.count_copies(subtrees) == total - 10
  assert splitting.count_copies(split(chain(5))) == 0
  assert splitting.count_copies([]) == 0


def test_subtrees_come_in_order_of_their_first_targets():
  parents = random_tree(np.random.default_rng(1), 300)
  first = [p.nodes[p.is_target][0] for p in split(parents)]
  assert first == sorted(first)


@pytest.mark.long
@pytest.mark.parametrize("make", [chain, star, "random"])
def test_a_hundred_thousand_nodes_are_split_fast(make):
  """It takes half a second; the bound leaves room for a slower machine."""
  rng = np.random.default_rng(0)
  parents = random_tree(rng, 100_000) if make == "random" else make(100_000)
  taken = []
  for _ in range(3):
    started = time.process_time()
    subtrees = split(parents, size=64, ancestors=16)
    for subtree in subtrees:
      splitting.extract_parents(subtree.nodes, parents)
    taken.append(time.process_time() - started)
    if taken[-1] < 1:
      break
  assert min(taken) < 2
  assert sum(int(p.is_target.sum()) for p in subtrees) == 99_999


def test_a_subtree_too_small_for_a_deep_comment_is_refused():
  with pytest.raises(UserError, match="max_tree_size"):
    split(chain(10), size=4, ancestors=4)
