"""Which streams of a global batch a host reads: plain numbers, without TensorFlow."""

from __future__ import annotations

from commentree.errors import UserError

_MAX_STREAMS = 64


def count_streams(batch_size: int) -> int:
  """Streams of a global batch: the largest power of two dividing it, at most 64.

  It depends on the batch alone, so that every number of hosts dividing it reads the
  same examples in the same rows.
  """
  return min(_MAX_STREAMS, batch_size & -batch_size)


def own_streams(batch_size: int, host: int, num_hosts: int) -> tuple[range, int]:
  """Returns a host's streams of a global batch, and how many all hosts have.

  Raises:
    UserError: if the hosts do not divide the streams.
  """
  num_streams = count_streams(batch_size)
  if num_streams % num_hosts:
    raise UserError(
      f"BATCH_SIZE = {batch_size}: {num_hosts} hosts cannot share its {num_streams}"
      f" data streams evenly; use a multiple of {num_hosts}"
    )
  own = num_streams // num_hosts
  return range(host * own, (host + 1) * own), num_streams
