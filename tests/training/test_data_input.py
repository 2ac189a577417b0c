from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tests.support.training import stub
from commentree.training import data_input


class Numbered:
  """Batches that hold their number; raises once `end` are read."""

  def __init__(self, end: int = 1000, error: Exception | None = None):
    self.read = 0
    self._end = end
    self._error = error or StopIteration()

  def __next__(self):
    if self.read == self._end:
      raise self._error
    self.read += 1
    return {"x": np.full((4, 2), self.read, np.int32)}

  def get_state(self):
    return {"read": self.read}

  def set_state(self, state):
    self.read = state["read"]


def test_each_batch_comes_with_the_state_after_it_although_more_are_read(mesh):
  batches = Numbered()
  with data_input.Prefetcher(batches, mesh, depth=3) as prefetcher:
    for number in range(1, 6):
      batch, state = next(prefetcher)
      assert (np.asarray(batch["x"]) == number).all()
      assert state == {"read": number}
    deadline = time.monotonic() + 10
    while batches.read < 6 and time.monotonic() < deadline:
      time.sleep(0.01)
    assert batches.read >= 6


def test_an_error_in_the_data_reaches_the_loop_after_the_batches_before_it(mesh):
  prefetcher = data_input.Prefetcher(Numbered(2, OSError("disk on fire")), mesh)
  next(prefetcher), next(prefetcher)
  for _ in range(2):
    with pytest.raises(OSError, match="disk on fire"):
      next(prefetcher)
  prefetcher.close()


def test_training_data_that_ends_is_the_users_mistake(mesh):
  with (
    data_input.Prefetcher(Numbered(0), mesh) as prefetcher,
    pytest.raises(UserError, match="must repeat for ever"),
  ):
    next(prefetcher)


def test_closing_ends_the_thread_although_nobody_takes_its_batches(mesh):
  before = threading.active_count()
  data_input.Prefetcher(Numbered(), mesh).close()
  assert threading.active_count() == before


def test_peeking_does_not_move_the_data():
  batches = stub.Batches()
  peeked = data_input.peek(batches)
  np.testing.assert_array_equal(
    peeked["decoder_input_tokens"], next(batches)["decoder_input_tokens"]
  )


def test_a_batch_of_another_size_than_set_is_refused(mesh):
  batch = {"x": np.zeros((4, 2))}
  with pytest.raises(UserError, match="batch_size = 8: the data's batches hold 4"):
    data_input.check_rows(batch, 8, mesh)
  with pytest.raises(UserError, match="1 data-parallel devices x 3 microbatches"):
    data_input.check_batch_size(4, mesh, 3)
