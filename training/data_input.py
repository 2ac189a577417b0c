"""Batches on their way to the devices: the seam to the data, and a prefetch thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

HostBatch = Mapping[str, np.ndarray]
EvalData = Callable[[], Iterator[HostBatch]]
"""Starts the same finite pass over held-out data each time it is called."""

_POLL_SECONDS = 0.2


class TrainBatches(Protocol):
  """Endless batches whose position can be saved and sought."""

  def __next__(self) -> HostBatch:
    """Returns this process's rows of the next global batch."""

  def get_state(self) -> dict[str, Any]:
    """Returns the position after the last batch: JSON-able, never changed later."""

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to where `get_state` was called."""


def peek(batches: TrainBatches) -> HostBatch:
  """Returns the next batch without moving on."""
  state = batches.get_state()
  batch = next(batches)
  batches.set_state(state)
  return batch


def check_batch_size(
  batch: HostBatch, batch_size: int, mesh: Mesh, microbatches: int = 1
) -> None:
  """Raises UserError unless the batch is as large as set and divides over the mesh.

  Args:
    batch: this process's rows.
    batch_size: rows over all processes, as set.
    mesh: the mesh.
    microbatches: parts that the batch is cut into.
  """
  rows = len(next(iter(batch.values()))) * jax.process_count()
  if rows != batch_size:
    raise UserError(
      f"TrainConfig.batch_size = {batch_size}: the data's batches hold {rows}"
    )
  if batch_size % (mesh.shape["data"] * microbatches):
    raise UserError(
      f"TrainConfig.batch_size = {batch_size}: must be a multiple of"
      f" {mesh.shape['data']} data-parallel devices x {microbatches} microbatches"
    )


def place(batch: HostBatch, mesh: Mesh) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices, as part of a global batch."""
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(values))
    for name, values in batch.items()
  }


class Prefetcher:
  """Reads, places and buffers batches in a thread, each with the state after it."""

  def __init__(self, batches: TrainBatches, mesh: Mesh, depth: int = 2):
    """Starts reading.

    Args:
      batches: the data; the thread's alone until `close`.
      mesh: where batches go.
      depth: batches buffered.
    """
    self._batches = batches
    self._mesh = mesh
    self._ready: queue.Queue[Any] = queue.Queue(depth)
    self._closed = threading.Event()
    self._thread = threading.Thread(
      target=self._read, name="commentree-prefetch", daemon=True
    )
    self._thread.start()

  def __enter__(self) -> Prefetcher:
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def __next__(self) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Returns the next batch, and the data's state after it."""
    item = self._ready.get()
    if isinstance(item, BaseException):
      # Again, should anyone ask again.
      self._ready.put(item)
      raise item
    return item

  def close(self) -> None:
    """Stops reading and waits for the thread."""
    self._closed.set()
    self._thread.join()

  def _read(self) -> None:
    try:
      while not self._closed.is_set():
        try:
          batch = next(self._batches)
        except StopIteration:
          raise UserError(
            "the training data came to an end: it must repeat for ever"
          ) from None
        self._put((place(batch, self._mesh), self._batches.get_state()))
    except BaseException as error:  # handed to the consumer, whatever it is
      self._put(error)

  def _put(self, item: Any) -> None:
    while not self._closed.is_set():
      try:
        return self._ready.put(item, timeout=_POLL_SECONDS)
      except queue.Full:
        continue
