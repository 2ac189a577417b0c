"""A run of several hosts continues whatever strangers send to its coordinator."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import time
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import pytest

from commentree.errors import HostLostError, UserError
from commentree.tests.support.training import host_attacks
from commentree.tests.support.training.host_attacks import (
  STRANGERS,
  hello,
  line,
  run_all,
  with_secret,
)
from commentree.tests.support.training.host_processes import (
  SECRET,
  Hosts,
  at_step,
  ends,
  free_port,
)
from commentree.training.cluster.coordination import (
  host_link,
  host_messages,
  host_secret,
  host_server,
)
from commentree.training.cluster.coordination.coordinator import Coordinator
from commentree.training.cluster.coordination.host_messages import Beat, End
from commentree.training.config import HealthConfig

pytestmark = pytest.mark.hosts

_MB = 2**20
_SECRET = SECRET.encode()

# What only somebody who knows the secret can try, once the run is under way.
_UNDER_WAY = "refused: a run of 2 hosts is under way there"
HOSTS_OF_ITS_OWN = {
  "the index of a host that is there": (
    with_secret(_SECRET, index=1),
    f"{_UNDER_WAY}, with host 1 ({socket.gethostname()}) of process ",
  ),
  "an index of no host": (with_secret(_SECRET, index=9), _UNDER_WAY),
  "another count": (with_secret(_SECRET, count=9, index=2), _UNDER_WAY),
  "what a host once said, again": (
    host_attacks.replayed(_SECRET),
    host_attacks.UNPROVEN,
  ),
}


@pytest.fixture
def hosts(tmp_path, monkeypatch):
  private = tmp_path / "private"
  private.mkdir()
  monkeypatch.setenv("TMPDIR", str(private))
  started = Hosts(tmp_path / "logs")
  yield started
  started.kill_all()


def listening(process: subprocess.Popen[str]) -> dict[str, set[str]]:
  """The TCP sockets of a process that listen: by address, the ports (hexadecimal)."""
  inodes = set()
  for link in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
    try:
      inodes.add(os.readlink(link))
    except OSError:
      continue
  found: dict[str, set[str]] = {}
  for table in ("tcp", "tcp6"):
    for row in pathlib.Path(f"/proc/{process.pid}/net/{table}").read_text().split("\n"):
      fields = row.split()
      if len(fields) > 9 and fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
        address, port = fields[1].split(":")
        found.setdefault(address, set()).add(port)
  return found


def peak_bytes(process: subprocess.Popen[str]) -> int:
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def wait_for_port(port: int) -> None:
  end = time.monotonic() + 60
  while time.monotonic() < end:
    try:
      socket.create_connection(("127.0.0.1", port), 1).close()
      return
    except OSError:
      time.sleep(0.1)
  raise AssertionError("nobody listens")


def attack_run(hosts: Hosts, count: int, rounds: int, own, enough) -> None:
  """Attacks a run before all hosts are there and while it computes."""
  port = free_port()
  address = "127.0.0.1", port
  options = {"address": f"127.0.0.1:{port}", "until": str(enough)}
  (first,) = hosts.start(count, {"index": 0}, **options)
  wait_for_port(port)
  before = peak_bytes(first)
  assert run_all(STRANGERS, address) == {}
  assert peak_bytes(first) - before < 32 * _MB
  others = hosts.start(count, *({"index": i} for i in range(1, count)), **options)
  at_step(first, 1)
  before = peak_bytes(first)
  for _ in range(rounds):
    assert run_all({**STRANGERS, **own}, address) == {}
  assert peak_bytes(first) - before < 64 * _MB
  for host in (first, *others):
    assert host.poll() is None
    # The coordinator's, and Gloo's: on the address that was named, and no other.
    assert set(listening(host)) == {"0100007F"}
  enough.touch()
  for host in ends(first, *others):
    assert (host.code, host.err) == (0, [])
  # Of JAX's sockets nothing is left.
  assert list(pathlib.Path(os.environ["TMPDIR"]).glob("commentree_*")) == []


def test_a_run_goes_on_whatever_strangers_send_to_its_coordinator(hosts, tmp_path):
  attack_run(hosts, 2, rounds=1, own=HOSTS_OF_ITS_OWN, enough=tmp_path / "enough")
  log = hosts.log(0)
  # It is said, and not a line for each.
  assert 1 <= log.count("refused a connection from 127.0.0.1") < 10
  assert "Traceback" not in log
  assert SECRET not in log


@pytest.mark.slow
def test_a_run_of_more_hosts_goes_on_for_minutes(hosts, tmp_path):
  attack_run(hosts, 4, rounds=15, own={}, enough=tmp_path / "enough")


def test_a_killed_host_is_named_at_once_while_strangers_attack(hosts):
  port = free_port()
  each = [{"index": i} for i in range(2)]
  run = hosts.start(2, *each, address=f"127.0.0.1:{port}", steps=1000)
  at_step(run[1], 3)
  held = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
  run[1].kill()
  (first,) = ends(run[0])
  for connection in held:
    connection.close()
  assert first.code == 75
  assert first.seconds < 20
  assert "host 1 (" in first.err[0]
  assert "is gone: its process ended without a word" in first.err[0]


# ---- Without processes ---------------------------------------------------------------


def coordinate(count: int, secret: bytes = b"", wait_seconds: float = 30) -> int:
  port = free_port()
  Coordinator("127.0.0.1", port, count, wait_seconds, HealthConfig(), secret)
  return port


def join(port: int, index: int, count: int, secret: bytes = b"", seconds: float = 1):
  address = "127.0.0.1", port
  say = lambda line: None  # noqa: E731
  return host_link.join(address, "here", index, count, seconds, say, secret)


def joined(port: int, count: int, secret: bytes = b"") -> list[host_link.HostLink]:
  with host_attacks.concurrent.futures.ThreadPoolExecutor(count) as pool:
    return [
      link for link, _ in pool.map(lambda i: join(port, i, count, secret), range(count))
    ]


def heard(link: host_link.HostLink, seconds: float) -> list:
  """What a host hears in that time."""
  end = time.monotonic() + seconds
  messages = []
  while (left := end - time.monotonic()) > 0:
    messages += link.receive(left)
  return messages


@pytest.mark.parametrize(
  ("given", "here", "said"),
  [
    (
      b"one secret, long enough",
      b"another secret, long",
      "has another COMMENTREE_HOST",
    ),
    (b"one secret, long enough", b"", "host 0 was given a COMMENTREE_HOST_SECRET and"),
    (b"", b"one secret, long enough", "this host was given a COMMENTREE_HOST_SECRET"),
  ],
)
def test_hosts_with_different_secrets_say_so_and_may_start_again(given, here, said):
  port = coordinate(2, given)
  with pytest.raises(HostLostError) as caught:
    join(port, 1, 2, here)
  assert said in str(caught.value)


def test_without_a_secret_what_does_not_fit_is_refused_and_ends_nothing():
  port = coordinate(2, wait_seconds=4)
  with pytest.raises(UserError, match="--process_count=7, host 0 with"):
    join(port, 1, 7)
  (first,) = [
    host_link.HostLink(host_link.connect(("127.0.0.1", port), 0, 2, secret=b""))
  ]
  with pytest.raises(UserError, match="--process_index=0 was given to two"):
    join(port, 0, 2)
  with pytest.raises(UserError, match="--process_index=5: must be from 0 to 1"):
    join(port, 5, 2)
  # What was refused may be what was waited for: it is said in the end.
  [end] = [m for m in heard(first, 6) if isinstance(m, End)]
  assert end.code == 75
  assert "waited 4 s" in end.text
  assert "refused: host 1 (" in end.text


def test_a_host_is_let_in_while_hundreds_of_connections_are_held():
  port = coordinate(2, _SECRET)
  held = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
  begun = time.monotonic()
  links = joined(port, 2, _SECRET)
  assert time.monotonic() - begun < 2
  for connection in held:
    connection.close()
  for link in links:
    link.close()


@pytest.mark.parametrize(
  "data",
  [
    line(type="beat", step="5", what="step", still_seconds=0),
    line(type="beat", step=5, what="step", still_seconds=-1),
    line(type="failed", code=0, message=""),
    line(type="hello"),
    hello(),
    b"\xff\n",
    b"x" * (host_messages.LINE_BYTES + 2),
    b'{"type":"facts","about":"x","facts":{"a":' + b"[" * 100_000 + b"\n",
  ],
)
def test_a_host_that_says_what_is_no_message_is_named(data):
  port = coordinate(2)
  links = joined(port, 2)
  links[1]._socket.sendall(data)
  [end] = [m for m in heard(links[0], 1.5) if isinstance(m, End)]
  assert (end.code, end.hosts) == (75, [1])
  assert "host 1 (" in end.text
  assert "it said what is no message" in end.text
  links[0].close()


def test_a_defect_in_the_coordinator_does_not_end_the_watching(monkeypatch, caplog):
  port = coordinate(2)
  links = joined(port, 2)
  with monkeypatch.context() as patched:
    patched.setattr(Coordinator, "_watch", mock.Mock(side_effect=KeyError("x")))
    heard(links[0], 1.2)
    assert caplog.text.count("KeyError: 'x'") >= 1
  assert heard(links[0], 1.2)
  for link in links:
    link.close()


def test_a_host_that_reads_nothing_takes_no_memory():
  port = coordinate(2)
  links = joined(port, 2)
  connection = host_server.Connection(mock.Mock())
  transport = mock.Mock(is_closing=lambda: False)
  connection._transport = transport
  transport.get_write_buffer_size = lambda: 2 * _MB
  connection.send(host_messages.AllHeard(0))
  assert not transport.write.called
  for link in links:
    link.close()


def test_the_coordinator_listens_on_the_address_that_is_named_and_no_other():
  port = coordinate(2)
  with pytest.raises(ConnectionRefusedError):
    socket.create_connection(("127.0.0.2", port), 1)
  # A name that no host has here: behind a router this machine has another address.
  sockets, address = host_server.listen("192.0.2.1", free_port())
  assert address == ""
  sockets[0].close()


def test_a_coordinator_that_does_not_know_the_secret_is_not_obeyed():
  """Whoever takes host 0's port first learns no secret, and ends no host."""
  with socket.create_server(("127.0.0.1", 0)) as false:
    port = false.getsockname()[1]

    def pretend():
      connection, _ = false.accept()
      with connection:
        connection.sendall(
          host_messages.encode(
            host_messages.Challenge(host_messages.PROTOCOL, "0" * 64, True)
          )
        )
        said = connection.recv(2**12)
        connection.sendall(host_messages.encode(host_messages.Admitted("0" * 64)))
        connection.sendall(line(type="end", text="stop", code=2, hosts=[]))
        return said

    with host_attacks.concurrent.futures.ThreadPoolExecutor(1) as pool:
      said = pool.submit(pretend)
      with pytest.raises(host_link.Closed, match="no host 0 of commentree that knows"):
        host_link.connect(("127.0.0.1", port), 1, 2, secret=_SECRET)
  assert _SECRET not in said.result()


@pytest.mark.parametrize(
  ("variables", "said"),
  [
    ({"COMMENTREE_HOST_SECRET": "short"}, "has 5 characters, fewer than 16"),
    ({"COMMENTREE_HOST_SECRET_FILE": "/no/such"}, "/no/such: No such file"),
  ],
)
def test_a_secret_that_cannot_be_used_is_named_and_not_shown(variables, said):
  with pytest.raises(UserError, match=r"^COMMENTREE_HOST_SECRET") as caught:
    host_secret.read(variables)
  assert said in str(caught.value)
  assert "short" not in str(caught.value)


def test_a_secret_is_read_from_its_file_anew_each_time(tmp_path):
  path = tmp_path / "secret"
  variables = {"COMMENTREE_HOST_SECRET_FILE": str(path)}
  for secret in ("the first secret of all", "the second secret"):
    path.write_text(secret + "\n")
    assert host_secret.read(variables) == secret.encode()
  assert host_secret.read({}) == b""


_BEAT = host_messages.encode(Beat(5, "step", 1.5))
_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=8,
)


@st.composite
def sent(draw) -> bytes:
  """Bytes; messages with other values; messages of which some bytes are others."""
  kind = draw(st.sampled_from(["bytes", "values", "changed"]))
  if kind == "bytes":
    return draw(st.binary(max_size=300)) + b"\n"
  if kind == "values":
    message = json.loads(draw(st.sampled_from([hello(), _BEAT])))
    field = draw(st.sampled_from([*message, "more"]))
    return json.dumps({**message, field: draw(_VALUES)}).encode() + b"\n"
  data = bytearray(draw(st.sampled_from([hello(), _BEAT])))
  for _ in range(draw(st.integers(1, 4))):
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
  return bytes(data)


@hypothesis.given(st.lists(sent(), min_size=1, max_size=4), st.booleans())
def test_no_bytes_raise_in_the_event_loop(chunks, admitted):
  server = mock.Mock(secret=b"")
  connection = host_server.Connection(server)
  transport = {"is_closing": lambda: False, "get_write_buffer_size": lambda: 0}
  connection._transport = mock.Mock(**transport)
  with mock.patch.object(host_server.asyncio, "get_running_loop"):
    if admitted:
      connection._hello = host_messages.from_host(hello())
      connection.admit()
    for chunk in chunks:
      connection.data_received(chunk)
  assert server.turned_away.call_count <= 1
  assert not any("in the coordinator" in str(c) for c in server.turned_away.mock_calls)
