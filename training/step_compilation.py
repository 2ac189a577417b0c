"""The train step compiled in a thread, while the state is restored or drawn."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable

import jax


class StepCompilation:
  """A step on its way from Python to a program.

  Tracing holds Python's lock, and is done where it is asked for; compiling does not,
  and is done in a thread. Whoever leaves the context waits for the thread: XLA cannot
  be interrupted, nor survive the end of the process.
  """

  def __init__(self, lower: Callable[[], jax.stages.Lowered]):
    """Traces nothing yet.

    Args:
      lower: traces and lowers the step.
    """
    self._lower = lower
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "commentree-compile")
    self._compiled: concurrent.futures.Future[jax.stages.Compiled] | None = None

  def __enter__(self) -> StepCompilation:
    return self

  def __exit__(self, *unused) -> None:
    self._thread.shutdown()

  def begin(self) -> None:
    """Lowers the step; compiles it in the thread."""
    if self._compiled is None:
      self._compiled = self._thread.submit(self._lower().compile)

  def result(self) -> jax.stages.Compiled:
    """Returns the program once it is compiled; begins if nobody did."""
    self.begin()
    assert self._compiled is not None
    return self._compiled.result()
