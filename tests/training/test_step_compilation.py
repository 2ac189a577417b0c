"""The train step is compiled beside the restore, and only where steps are left."""

import threading

import pytest

from commentree.tests.support.training import stub
from commentree.training import initial_state
from commentree.training.step_compilation import StepCompilation
from commentree.training.train import train


class Lowered:
  """What was lowered: notes the thread in which it is compiled."""

  def __init__(self, error=None):
    self.begun, self.go_on = threading.Event(), threading.Event()
    self.thread, self.error = None, error

  def compile(self):
    self.thread = threading.current_thread()
    self.begun.set()
    assert self.go_on.wait(60)
    if self.error:
      raise self.error
    return self


def test_a_step_is_lowered_once_where_it_is_asked_for_and_compiled_in_a_thread():
  lowered, asked = Lowered(), []

  def lower():
    asked.append(threading.current_thread())
    return lowered

  with StepCompilation(lower) as compilation:
    compilation.begin()
    assert lowered.begun.wait(60)  # while here something else goes on
    compilation.begin()
    lowered.go_on.set()
    assert compilation.result() is lowered
  assert asked == [threading.current_thread()]
  assert lowered.thread is not threading.current_thread()


def test_what_nobody_began_is_compiled_when_it_is_needed():
  lowered = Lowered()
  lowered.go_on.set()
  with StepCompilation(lambda: lowered) as compilation:
    assert not lowered.begun.is_set()
    assert compilation.result() is lowered


def test_an_error_of_the_compiler_is_raised_where_the_step_is_needed():
  lowered = Lowered(MemoryError("too large"))
  lowered.go_on.set()
  with StepCompilation(lambda: lowered) as compilation:
    compilation.begin()
    with pytest.raises(MemoryError, match="too large"):
      compilation.result()


@pytest.fixture
def order(monkeypatch):
  """What of a start was done, in order."""
  done = []

  def noting(target, name):
    original = getattr(target, name)

    def noted(*args, **kwargs):
      done.append(name)
      return original(*args, **kwargs)

    monkeypatch.setattr(target, name, noted)

  noting(StepCompilation, "begin")
  noting(initial_state, "restore_or_initialize")
  return done


@pytest.mark.long
def test_compiling_begins_before_a_restore_and_not_where_no_step_is_left(
  make_config, order, console
):
  def run(steps):
    order.clear()
    config = make_config(train_steps=steps)
    train(config, stub.StubModel(), stub.Batches, console=console)
    return order

  assert run(1)[:2] == ["begin", "restore_or_initialize"]
  assert run(2)[:2] == ["begin", "restore_or_initialize"]
  assert run(2) == ["restore_or_initialize"]
