from __future__ import annotations

import numpy as np
import pytest
from etils import epath

from commentree.training.metrics import baselines
from commentree.training.metrics.baselines import Baseline

COUNTS = np.array([3, 0, 5])
WEIGHTS = np.full((4, 3), 1 / 3)


def get(folder, mesh, made, with_bags=True, writes=True):
  """Returns the baselines, and how often they were made."""
  times = []

  def make():
    times.append(1)
    return made

  found = baselines.load_or_make(
    epath.Path(folder), mesh, make, with_bags=with_bags, writes=writes
  )
  return found, len(times)


def same(one, other):
  assert one.keys() == other.keys()
  for name, each in one.items():
    np.testing.assert_array_equal(each.counts, other[name].counts)
    if each.bag_weights is None:
      assert other[name].bag_weights is None
    else:
      np.testing.assert_array_equal(each.bag_weights, other[name].bag_weights)


def test_baselines_are_made_once_and_come_back_as_they_were(mesh, tmp_path):
  made = {"held_out": Baseline(COUNTS, WEIGHTS), "a/b": Baseline(COUNTS + 1, WEIGHTS)}
  first, times = get(tmp_path, mesh, made)
  assert times == 1
  again, times = get(tmp_path, mesh, None)
  assert times == 0
  same(first, again)
  same(again, made)
  same(baselines.load(epath.Path(tmp_path), mesh), made)


def test_who_does_not_write_makes_them_all_the_same(mesh, tmp_path):
  made = {"held_out": Baseline(COUNTS, WEIGHTS)}
  assert get(tmp_path, mesh, made, writes=False) == (made, 1)
  assert not list(tmp_path.iterdir())


def test_bags_are_fitted_later_where_a_run_began_without(mesh, tmp_path):
  without = {"held_out": Baseline(COUNTS)}
  get(tmp_path, mesh, without, with_bags=False)
  assert get(tmp_path, mesh, None, with_bags=False)[1] == 0
  whole = {"held_out": Baseline(COUNTS, WEIGHTS)}
  assert get(tmp_path, mesh, whole)[1] == 1
  same(baselines.load(epath.Path(tmp_path), mesh), whole)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_made_again(mesh, tmp_path, damage):
  made = {"held_out": Baseline(np.arange(4000), WEIGHTS)}
  get(tmp_path, mesh, made)
  file = tmp_path / baselines.FILE
  data = file.read_bytes()
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 0xFF
  file.write_bytes(
    {"cut": data[:-30], "flip": bytes(flipped), "empty": b"", "text": b"no"}[damage]
  )
  assert baselines.load(epath.Path(tmp_path), mesh) == {}
  assert get(tmp_path, mesh, made)[1] == 1
  same(baselines.load(epath.Path(tmp_path), mesh), made)


@pytest.mark.parametrize(
  ("others", "is_told"),
  [
    # Some, missing, highest and lowest checksum, of all hosts together.
    (lambda own: (1, 1, own, -own), True),
    (lambda own: (1, 0, own + 1, -own), True),
    (lambda own: (1, 0, own, 1 - own), True),
    (lambda own: (1, 0, own, -own), False),
  ],
)
def test_what_another_host_does_not_read_alike_is_not_used(
  mesh, tmp_path, monkeypatch, others, is_told
):
  made = {"held_out": Baseline(COUNTS, WEIGHTS)}
  get(tmp_path, mesh, made)
  monkeypatch.setattr(baselines, "HostMax", lambda mesh: lambda *said: others(said[2]))
  lines = []
  found = baselines.load(epath.Path(tmp_path), mesh, lines.append)
  if is_told:
    assert found == {}
    assert len(lines) == 1
    assert "hosts do not all read the same" in lines[0]
    # In training all work them out again.
    assert get(tmp_path, mesh, made)[1] == 1
  else:
    same(found, made)
    assert not lines
