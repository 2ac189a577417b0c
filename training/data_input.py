"""Batches on their way to the devices: the seam to the data, and a prefetch thread."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from commentree.errors import UserError
from commentree.training import partitioning
from commentree.training.cluster.agreement import HostMax
from commentree.training.partitioning import ProcessShard

HostBatch = Mapping[str, np.ndarray]
EvalData = Callable[[ProcessShard], Iterator[HostBatch]]
"""Starts the same finite pass over a share of held-out data each time it is called; at
least one batch, if of padding alone."""

_POLL_SECONDS = 0.2


class TrainBatches(Protocol):
  """Endless batches whose position can be saved and sought."""

  def __next__(self) -> HostBatch:
    """Returns this process's rows of the next global batch."""

  def get_state(self) -> dict[str, Any]:
    """Returns the position after the last batch: JSON-able, never changed later."""

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to where `get_state` was called."""


TrainData = Callable[[ProcessShard], TrainBatches]
"""Opens a share of the training batches, at their beginning."""


def peek(batches: TrainBatches) -> HostBatch:
  """Returns the next batch without moving on."""
  state = batches.get_state()
  batch = next(batches)
  batches.set_state(state)
  return batch


def check_rows(batch: HostBatch, batch_size: int, mesh: Mesh) -> None:
  """Raises UserError unless the batch is as large as set.

  Args:
    batch: this process's rows.
    batch_size: rows over all processes, as set.
    mesh: the mesh.
  """
  rows = num_rows(batch) * partitioning.data_share(mesh).count
  if rows != batch_size:
    raise UserError(
      f"TrainConfig.batch_size = {batch_size}: the data's batches hold {rows}"
    )


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
  """Raises UserError unless a batch divides over the mesh.

  Args:
    batch_size: rows over all processes.
    mesh: the mesh.
    microbatches: parts that the batch is cut into.
  """
  devices = partitioning.batch_parallel(mesh)
  if batch_size % (devices * microbatches):
    raise UserError(
      f"TrainConfig.batch_size = {batch_size}: must be a multiple of"
      f" {devices} data-parallel devices x {microbatches} microbatches"
    )


def num_rows(batch: Mapping[str, Any]) -> int:
  """Returns the examples in a batch."""
  return len(next(iter(batch.values())))


def abstract_batch(batch: HostBatch, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, dtypes and shardings of the global batch that rows are a part of.

  Args:
    batch: this process's rows.
    mesh: the mesh.
  """
  count = partitioning.data_share(mesh).count
  return {
    name: jax.ShapeDtypeStruct(
      (len(values) * count, *values.shape[1:]),
      jax.dtypes.canonicalize_dtype(values.dtype),
      sharding=partitioning.batch_sharding(mesh),
    )
    for name, values in batch.items()
  }


class ToGlobalBatch:
  """Puts this process's rows on its devices, as part of a global batch."""

  def __init__(self, mesh: Mesh):
    """Works out this process's share."""
    self._sharding = partitioning.batch_sharding(mesh)
    self._count = partitioning.data_share(mesh).count

  def __call__(self, batch: HostBatch) -> dict[str, jax.Array]:
    """Returns the global batch."""
    return {name: self._place(np.asarray(values)) for name, values in batch.items()}

  def _place(self, rows: np.ndarray) -> jax.Array:
    shape = (len(rows) * self._count, *rows.shape[1:])
    return jax.make_array_from_process_local_data(self._sharding, rows, shape)


class Stopped(Exception):
  """Some process was asked to stop, and all do."""


def global_batches(
  batches: Iterable[HostBatch],
  mesh: Mesh,
  limit: int | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, jax.Array]]:
  """Yields the global batches of a finite pass until no process has any left.

  Processes run out of batches at different times, and all must take part in each: who
  has none left gives padding.

  Args:
    batches: this process's share of them.
    mesh: the mesh of all processes.
    limit: most batches; None for all.
    stop: asked before every batch.

  Raises:
    Stopped: if any process's `stop` says so.
  """
  place, agreement = ToGlobalBatch(mesh), HostMax(mesh)
  padding: HostBatch = {}
  for batch in itertools.chain(
    itertools.islice(batches, limit), itertools.repeat(None)
  ):
    more, stopped = agreement(batch is not None, stop())
    if stopped:
      raise Stopped
    if not more:
      return
    if batch is not None:
      padding = {name: np.zeros_like(values) for name, values in batch.items()}
    yield place(padding if batch is None else batch)


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
    self._place = ToGlobalBatch(mesh)
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
        self._put((self._place(batch), self._batches.get_state()))
    except BaseException as error:  # every error is handed to the consumer
      self._put(error)

  def _put(self, item: Any) -> None:
    while not self._closed.is_set():
      try:
        return self._ready.put(item, timeout=_POLL_SECONDS)
      except queue.Full:
        continue
