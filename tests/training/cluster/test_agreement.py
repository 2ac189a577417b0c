"""One process here; over several, see `test_train_on_hosts`."""

from __future__ import annotations

from commentree.training import partitioning
from commentree.training.cluster import agreement
from commentree.training.config import PartitioningConfig


def test_a_process_alone_agrees_with_itself_at_once():
  mesh = partitioning.make_mesh(PartitioningConfig())
  agree = agreement.AsyncHostMax(mesh, 2)
  assert agree.delay == 0
  assert agree(15, False) == (15, 0)
  assert agreement.HostMax(mesh)(True, False) == (1, 0)
