"""A trace of some steps, for XProf: `TrainConfig.profile_steps`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from commentree.training.checkpointing import storage


class StepProfile:
  """Traces the steps from one to another, on each host its own.

  A trace that cannot be taken or written is told in a line; the run goes on.
  """

  def __init__(
    self,
    steps: tuple[int, int] | None,
    folder: epath.Path,
    say: Callable[[str], None] = storage.print_line,
  ):
    """Traces nothing yet.

    Args:
      steps: the first and the last; None for none.
      folder: where the trace goes, in TensorBoard's layout.
      say: tells the user a line.
    """
    first, last = steps or (0, -1)
    self._steps = range(first, last + 1)
    self._folder = folder
    self._say = say
    self._taken: list[int] = []
    self._local = ""

  @contextlib.contextmanager
  def on(self, step: int, before: Any) -> Iterator[None]:
    """Traces what is within, if it is a step of those.

    Args:
      step: which it is.
      before: arrays that are waited for first, so that the trace has no earlier step.
    """
    if self._steps and step > self._steps[-1]:
      self._say(
        f"no profile of steps {self._steps[0]:,} to {self._steps[-1]:,}: the run"
        " continues after them"
      )
      self._steps = range(0)
    if step in self._steps and not self._taken:
      jax.block_until_ready(before)
      self._try(self._start)
    if step not in self._steps:
      yield
      return
    self._taken.append(step)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def after(self, step: int, results: Any) -> None:
    """Ends the trace after the last of the steps.

    Args:
      step: the step that was taken.
      results: its arrays, which are waited for.
    """
    if self._taken and step == self._steps[-1]:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Ends the trace of a run that ends within those steps; else does nothing."""
    if self._taken:
      self._try(self._stop)
      self._taken = []
    self._steps = range(0)

  def _start(self) -> None:
    # JAX writes into no bucket.
    is_remote = storage.is_remote(self._folder)
    self._local = tempfile.mkdtemp() if is_remote else os.fspath(self._folder)
    jax.profiler.start_trace(self._local)

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    if storage.is_remote(self._folder):
      _copy(pathlib.Path(self._local), self._folder)
      shutil.rmtree(self._local)
    self._say(
      f"profile of steps {self._taken[0]:,} to {self._taken[-1]:,}: pip install xprof;"
      f" tensorboard --logdir {self._folder}"
    )

  def _try(self, act: Callable[[], None]) -> None:
    try:
      act()
    except Exception as error:
      self._steps = range(0)
      self._say(
        f"no profile of steps in {self._folder} ({storage.reason(error)}): training"
        " continues without it"
      )


def _copy(source: pathlib.Path, target: epath.Path) -> None:
  """Copies files into a folder, which may lie in a bucket."""
  for file in source.rglob("*"):
    if file.is_file():
      copy = target / str(file.relative_to(source))
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
