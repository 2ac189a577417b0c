"""Decisions that all hosts take alike, though only some have a reason.

A signal, a clock or the end of its data tells one host alone what to do next; were it
to do so alone, the others would wait for it in their next collective for ever. So hosts
tell each other at points that all of them pass, and act on what any one of them said.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from commentree.training import partitioning


class HostMax:
  """The highest of the numbers that the processes say, by a reduction on the mesh.

  Every process calls it equally often, with equally many numbers.

  Attributes:
    alone: whether there is one process only, which agrees with itself at once.
  """

  def __init__(self, mesh: Mesh):
    """Compiles nothing yet.

    Args:
      mesh: the mesh of all processes.
    """
    self.alone = len({device.process_index for device in mesh.devices.flat}) == 1
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._num_devices = mesh.size
    self._highest = jax.jit(
      lambda said: jnp.max(said, axis=0),
      out_shardings=partitioning.replicated(mesh),
    )

  def __call__(self, *said: int) -> tuple[int, ...]:
    """Returns the highest of what was said, number by number, once all have spoken."""
    return _numbers(self.ask(said))

  def ask(self, said: Sequence[int]) -> jax.Array | np.ndarray:
    """Returns the same, perhaps still being worked out; does not wait."""
    mine = np.asarray([said], np.int32)
    if self.alone:
      return mine[0]
    shape = (self._num_devices, mine.shape[1])
    return self._highest(
      jax.make_array_from_callback(shape, self._sharding, lambda _: mine)
    )


class AsyncHostMax:
  """An agreement of some calls ago, so that no one waits for the others' devices.

  A process that is alone acts at once.

  Attributes:
    delay: calls between saying something and all acting on it.
  """

  def __init__(self, mesh: Mesh, numbers: int, delay: int = 2):
    """Nothing was said yet.

    Args:
      mesh: the mesh of all processes.
      numbers: how many numbers are said at a time.
      delay: the delay where there are several processes.
    """
    self._agreement = HostMax(mesh)
    self.delay = 0 if self._agreement.alone else delay
    nothing: jax.Array | np.ndarray = np.zeros(numbers, np.int32)
    self._asked = collections.deque([nothing] * self.delay)

  def __call__(self, *said: int) -> tuple[int, ...]:
    """Says something; returns the highest of what was said `delay` calls ago."""
    self._asked.append(self._agreement.ask(said))
    return _numbers(self._asked.popleft())


def _numbers(highest: jax.Array | np.ndarray) -> tuple[int, ...]:
  return tuple(jax.device_get(highest).tolist())
