"""The devices of this process, and what they compute of a forest.

The devices are shared out to *groups*, each with all parameters: as many as a model
takes (`PartitioningConfig`), as a rule one. A group computes one forest at a time, by
one program: what else there is to compute, and how many groups there are, changes
nothing in what comes out.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from commentree.errors import UserError
from commentree.models.model import CommentTreeModel
from commentree.training import partitioning, state
from commentree.training.checkpointing import checkpoints
from commentree.training.config import PartitioningConfig

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]
Compute = Callable[[Any, Mapping[str, jax.Array]], Any]
"""From parameters and a batch of one forest to arrays."""

# Forests that a group is given before the first is waited for.
_AHEAD = 2


@dataclasses.dataclass
class _Group:
  """Devices that compute together.

  Attributes:
    mesh: the devices.
    params: the parameters, on them.
  """

  mesh: Mesh
  params: Any


class Devices:
  """This process's devices with a model's parameters on them."""

  def __init__(
    self,
    model: CommentTreeModel,
    config: PartitioningConfig,
    read: Callable[[Any], Any],
    example: Arrays,
  ):
    """Reads the parameters; compiles nothing yet.

    Args:
      model: the model.
      config: how many devices share a model; the axes `data` and `slice` are taken
        for granted.
      read: returns parameters for abstract ones; called once.
      example: a batch, for its shapes.

    Raises:
      UserError: if the devices cannot be shared so.
    """
    self.model = model
    # A forest is computed by all devices of its group, not shared out to them.
    rules = [rule for rule in config.logical_axis_rules if rule[0] != "batch"]
    self._config = dataclasses.replace(
      config, num_slices=1, logical_axis_rules=(*rules, ("batch", None))
    )
    meshes = _meshes(self._config)
    like = [
      state.abstract_params(model, example, mesh, self._config) for mesh in meshes
    ]
    params = read(like[0])
    self._groups = [_Group(meshes[0], params)]
    for mesh, abstract in zip(meshes[1:], like[1:]):
      shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
      self._groups.append(_Group(mesh, jax.device_put(params, shardings)))

  @property
  def params(self) -> Any:
    """The parameters, on the devices of the first group."""
    return self._groups[0].params

  @property
  def count(self) -> int:
    """How many forests are computed at the same time."""
    return len(self._groups)

  def program(self, compute: Compute) -> Program:
    """Returns what computes forests; it is compiled for the first of them."""
    return Program(self._groups, self._config, compute)


class Program:
  """A computation of single forests.

  Attributes:
    tell: is told in a line that it is compiled.
  """

  def __init__(
    self, groups: list[_Group], config: PartitioningConfig, compute: Compute
  ):
    """Compiles nothing yet."""
    self._groups = groups
    self._config = config
    self._jitted = jax.jit(compute)
    self._compiled: dict[int, Any] = {}
    self.tell: Callable[[str], None] = lambda line: None

  def __call__(self, group: int, forest: Arrays) -> Any:
    """Begins to compute a forest; the arrays that it returns may not be there yet."""
    member = self._groups[group]
    batch = {
      name: jax.device_put(values[None], partitioning.replicated(member.mesh))
      for name, values in forest.items()
    }
    if group not in self._compiled:
      started = time.monotonic()
      with partitioning.in_mesh(member.mesh, self._config):
        lowered = self._jitted.lower(member.params, batch)
        self._compiled[group] = lowered.compile()
      self.tell(f"compiled in {time.monotonic() - started:.1f} s")
    return self._compiled[group](member.params, batch)

  def over(
    self,
    forests: Iterable[tuple[Arrays | None, T]],
    ahead: int | None = None,
  ) -> Iterator[tuple[Any, T]]:
    """Computes forests on all groups; yields the arrays of each, in order.

    Args:
      forests: each with what is to come out beside its arrays; None in the place of
        one comes out as it is, in its turn.
      ahead: forests that are begun before the first is waited for.
    """
    count = len(self._groups)
    ahead = _AHEAD * count if ahead is None else ahead
    begun: collections.deque[tuple[Any, T]] = collections.deque()
    number = 0
    for forest, beside in forests:
      if len(begun) >= ahead:
        yield _fetched(begun.popleft())
      if forest is None:
        begun.append((None, beside))
      else:
        begun.append((self(number % count, forest), beside))
        number += 1
    while begun:
      yield _fetched(begun.popleft())


def _fetched(begun: tuple[Any, T]) -> tuple[Any, T]:
  arrays, beside = begun
  # The batch has one example.
  return jax.tree.map(lambda array: np.asarray(array)[0], arrays), beside


def _meshes(config: PartitioningConfig) -> list[Mesh]:
  """Returns a mesh for each group of this process's devices."""
  devices = jax.local_devices()
  whole = config.fsdp_parallel == -1
  size = len(devices) if whole else config.fsdp_parallel * config.model_parallel
  if len(devices) % size:
    raise UserError(
      f"FSDP_PARALLEL = {config.fsdp_parallel} times MODEL_PARALLEL ="
      f" {config.model_parallel}: must divide the {len(devices)} devices of each host,"
      " for a host infers by itself; set --gin.FSDP_PARALLEL and --gin.MODEL_PARALLEL"
    )
  return [
    partitioning.make_mesh(config, devices[first : first + size])
    for first in range(0, len(devices), size)
  ]


def reader(path: Any) -> Callable[[Any], Any]:
  """Returns what reads the parameters of a checkpoint for `Devices`."""
  return lambda like: checkpoints.restore_params(path, like)
