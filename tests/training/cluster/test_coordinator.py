"""Whom the coordinator holds responsible, by what hosts say; no processes."""

from __future__ import annotations

import concurrent.futures
import time

import pytest

from commentree.errors import HostLostError
from commentree.tests.support.training.host_processes import free_port
from commentree.training.cluster.coordination import host_link
from commentree.training.cluster.coordination.coordinator import Coordinator
from commentree.training.cluster.coordination.host_messages import Beat, Done, End
from commentree.training.config import HealthConfig

pytestmark = pytest.mark.hosts

_STILL = 100.0


@pytest.fixture
def join_all():
  """Joins so many hosts in this process; returns their connections."""
  links = []

  def join(
    count: int, health: HealthConfig, port: int | None = None
  ) -> list[host_link.HostLink]:
    port = port or free_port()
    Coordinator("127.0.0.1", port, count, 30, health)
    address = ("127.0.0.1", port)

    def one(index: int) -> host_link.HostLink:
      return host_link.join(address, "here", index, count, 30, lambda line: None)[0]

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
      links.extend(pool.map(one, range(count)))
    return links

  yield join
  for link in links:
    link.close()


def verdict(link: host_link.HostLink, seconds: float) -> End | None:
  """What the coordinator ends the run with, if it does in that time."""
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0:
    for message in link.receive(left):
      if isinstance(message, End):
        return message
  return None


@pytest.mark.parametrize(
  ("places", "blamed"),
  [
    # Others are a step further, and wait there for the one behind.
    ([(6, "step"), (5, "step"), (6, "step")], [1]),
    # Others are in the step already, or in the same evaluation.
    ([(5, "step"), (5, "step"), (5, "input")], [2]),
    ([(5, "checkpoint"), (5, "eval"), (5, "eval")], [0]),
    # No telling them apart.
    ([(5, "step"), (5, "step"), (5, "step")], [0, 1, 2]),
  ],
)
def test_the_host_that_the_others_wait_for_is_blamed(join_all, places, blamed):
  health = HealthConfig(stall_timeout_seconds=30, allowances={})
  links = join_all(3, health)
  for link, (step, what) in zip(links, places):
    link.send(Beat(step, what, _STILL))
  end = verdict(links[2], 5)
  assert end.hosts == blamed
  assert end.code == 75
  assert "still for 100 s" in end.text


def test_what_takes_long_by_nature_is_given_time(join_all):
  health = HealthConfig(stall_timeout_seconds=30, allowances={"compile": 2 * _STILL})
  links = join_all(3, health)
  for link, what in zip(links, ("step", "compile", "step")):
    link.send(Beat(5, what, _STILL))
  assert verdict(links[0], 1.5) is None
  links[1].send(Beat(5, "compile", 3 * _STILL))
  assert verdict(links[0], 5).hosts == [1]


def test_a_host_that_is_done_holds_nobody_up(join_all):
  links = join_all(2, HealthConfig(stall_timeout_seconds=30))
  links[0].send(Beat(4, "end", _STILL))
  links[0].send(Done())
  links[1].send(Beat(5, "log", 1))
  assert verdict(links[1], 1.5) is None


def test_a_host_of_another_run_waits_for_this_one_to_end(join_all):
  port = free_port()
  links = join_all(2, HealthConfig(), port)
  with pytest.raises(HostLostError, match=r"a run of 2 hosts .* with host 1 \("):
    host_link.join(("127.0.0.1", port), "here", 1, 2, 1.0, lambda line: None)
  assert verdict(links[0], 1.0) is None


def test_many_hosts_are_no_burden(join_all):
  links = join_all(64, HealthConfig())
  before = time.process_time()
  for _ in range(3):
    for link in links:
      link.send(Beat(1, "step", 0))
    assert verdict(links[0], 0.5) is None
  assert time.process_time() - before < 1.0
