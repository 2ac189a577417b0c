"""How a process finds out which host of which it is, without starting any."""

from __future__ import annotations

import io
import socket
import time

import pytest
from jax._src.clusters import cloud_tpu_cluster

from commentree.console import Console
from commentree.errors import HostLostError, UserError
from commentree.tests.support.consoles import printed
from commentree.tests.support.training.host_processes import free_port
from commentree.training.cluster import distributed
from commentree.training.cluster.coordination import host_link
from commentree.training.cluster.distributed import HostRank, find_place
from commentree.training.cluster.host_settings import HostSettings
from commentree.training.config import HealthConfig

pytestmark = pytest.mark.hosts

_SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[3-6]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}


@pytest.fixture
def surroundings(monkeypatch):
  """Sets environment variables."""

  def set_all(variables: dict[str, str]) -> None:
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_all


@pytest.mark.parametrize(
  ("flags", "named"),
  [
    ({"process_index": 1}, "--coordinator_address and --process_count is missing"),
    (
      {"coordinator_address": "a:1", "process_count": 2, "process_index": 2},
      "--process_index=2: must be from 0 to 1",
    ),
    (
      {"coordinator_address": "10.0.0.1", "process_count": 2, "process_index": 0},
      "--coordinator_address=10.0.0.1: must be HOST:PORT",
    ),
    (
      {
        "coordinator_address": "a:1",
        "process_count": 2,
        "process_index": 0,
        "mode": "off",
      },
      "--distributed=off",
    ),
    ({"wait_seconds": 0}, "--host_wait_seconds=0"),
  ],
)
def test_flags_that_do_not_fit_are_named(flags, named):
  with pytest.raises(UserError, match=r"^.*$") as caught:
    HostSettings(**flags)
  assert named in str(caught.value)


def test_a_process_of_which_nothing_tells_is_alone():
  assert find_place(HostSettings()) == HostRank()
  with pytest.raises(UserError, match="--distributed=on"):
    find_place(HostSettings(mode="on"))


def test_flags_go_before_surroundings(surroundings):
  surroundings(_SLURM)
  place = find_place(HostSettings("a:1", 2, 1))
  assert (place.address, place.count, place.index) == ("a:1", 2, 1)


def test_slurm_tells_where_the_hosts_are_unless_told_not_to_look(surroundings):
  surroundings(_SLURM)
  place = find_place(HostSettings())
  assert place.address.startswith("node3:")
  assert (place.count, place.index, place.source) == (4, 2, "Slurm")
  assert find_place(HostSettings(mode="off")) == HostRank()


def test_tpu_slices_are_counted_host_by_host(surroundings, monkeypatch):
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  slices = {
    "TPU_WORKER_HOSTNAMES": "localhost,other",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
  }
  surroundings(slices)
  place = find_place(HostSettings())
  assert place == HostRank("localhost:8482", 6, 5, None, "TPU metadata")


def test_the_coordinators_port_can_be_set_where_surroundings_name_the_host(
  surroundings, monkeypatch
):
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  surroundings(
    {
      "TPU_WORKER_HOSTNAMES": "localhost,other",
      "TPU_WORKER_ID": "1",
      "MEGASCALE_COORDINATOR_ADDRESS": "",
      "MEGASCALE_NUM_SLICES": "1",
      "MEGASCALE_SLICE_ID": "0",
      "JAX_COORDINATOR_PORT": "9000",
    }
  )
  assert find_place(HostSettings()).address == "localhost:9000"
  monkeypatch.setenv("JAX_COORDINATOR_PORT", "90000")
  with pytest.raises(UserError, match=r"^JAX_COORDINATOR_PORT=90000: must be"):
    find_place(HostSettings())


def test_a_tpu_that_is_in_use_is_told_before_hosts_wait_for_each_other(monkeypatch):
  def in_use() -> None:
    raise HostLostError("the TPU is in use by process 7")

  monkeypatch.setattr(distributed.tpu_lock, "check", in_use)
  with (
    pytest.raises(HostLostError, match="in use by process 7"),
    distributed.join_cluster(
      HostSettings("127.0.0.1:1", 2, 1), HealthConfig(), None, "m"
    ),
  ):
    pass


def test_a_tpu_host_whose_coordinator_has_no_address_says_so(surroundings, monkeypatch):
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: ("", 404))

  def unknown(name: str) -> str:
    raise socket.gaierror(f"{name} is not known")

  monkeypatch.setattr(socket, "gethostbyname", unknown)
  monkeypatch.setattr(time, "sleep", lambda seconds: None)
  surroundings(
    {
      "TPU_WORKER_HOSTNAMES": "nowhere.invalid,other",
      "TPU_WORKER_ID": "1",
      "MEGASCALE_COORDINATOR_ADDRESS": "",
      "MEGASCALE_NUM_SLICES": "1",
    }
  )
  with pytest.raises(HostLostError, match=r"^TPU metadata .*nowhere\.invalid"):
    find_place(HostSettings(wait_seconds=1))


@pytest.mark.parametrize(
  "variables",
  [
    {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
  ],
)
def test_a_process_with_others_out_of_sight_does_not_run_alone(surroundings, variables):
  surroundings(variables)
  with pytest.raises(UserError, match=r"--process_index=1, or --distributed=off"):
    find_place(HostSettings())


def test_while_waiting_it_says_for_whom_and_where(monkeypatch):
  monkeypatch.setattr(host_link, "_FIRST_NEWS_SECONDS", 0.5)
  port = free_port()
  address = f"127.0.0.1:{port}"
  console = Console(file=io.StringIO(), width=200)
  with pytest.raises(HostLostError, match=r"waited 2 s .* for hosts 1, 2 of 3"):
    distributed.initialize(
      HostRank(address, 3, 0, None, "flags"), 2, HealthConfig(), console
    )
  name = socket.gethostname()
  said = f"host 0 ({name}) waits for hosts 1, 2 at {address}; was the same command"
  assert printed(console).startswith(said)


def test_a_host_without_host_0_says_so_where_it_was_started(monkeypatch, capsys):
  monkeypatch.setattr(host_link, "_FIRST_NEWS_SECONDS", 0.5)
  address = f"127.0.0.1:{free_port()}"
  place = HostRank(address, 3, 1, None, "flags")
  with pytest.raises(HostLostError, match=r"^host 1 .* found no host 0 at"):
    distributed.initialize(place, 1, HealthConfig(), Console(quiet=True))
  said = f"waits for host 0 at {address} (connection refused); was the same command"
  assert said in capsys.readouterr().err


def test_something_else_that_listens_there_is_told_apart(monkeypatch):
  monkeypatch.setattr(host_link, "_NO_ANSWER_SECONDS", 0.5)
  with socket.create_server(("127.0.0.1", 0)) as other:
    address = other.getsockname()
    with pytest.raises(HostLostError, match="is no host 0 of commentree"):
      host_link.join(address, "there", 1, 2, 1.0, lambda line: None)
