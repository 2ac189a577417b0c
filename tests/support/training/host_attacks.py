"""What strangers may send to a coordinator, and what they see of it.

Each attack connects to the coordinator's port, on loopback, and returns in a few words
what became of it. `SECONDS` bounds each.
"""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from collections.abc import Callable

from commentree.training.cluster.coordination import (
  host_link,
  host_messages,
  host_secret,
)
from commentree.training.cluster.coordination.host_messages import (
  PROTOCOL,
  Hello,
  Refused,
)

SECONDS = 20
HELD = 400
HUGE_BYTES = 200 * 2**20

Address = tuple[str, int]
Attack = Callable[[Address], str]

CLOSED = "closed"
LATE = "closed after some seconds"
UNPROVEN = "refused: the run there has another COMMENTREE_HOST_SECRET than this host"


def connected(address: Address) -> socket.socket:
  """A connection whose challenge has been read."""
  connection = socket.create_connection(address, SECONDS)
  host_link._read_line(connection)
  return connection


def outcome(connection: socket.socket) -> str:
  """What a connection ends with."""
  begun = time.monotonic()
  connection.settimeout(SECONDS)
  data = b""
  try:
    while more := connection.recv(2**16):
      data += more
  except TimeoutError:
    return "left open"
  except OSError:
    pass
  if data:
    message = host_messages.from_coordinator(data.splitlines()[0])
    if isinstance(message, Refused):
      return f"refused: {message.reason}"
    return f"answered: {message}"
  return LATE if time.monotonic() - begun > 2 else CLOSED


def saying(data: bytes) -> Attack:
  """Says that, and waits."""

  def attack(address: Address) -> str:
    with connected(address) as connection:
      try:
        connection.sendall(data)
      except OSError:
        return CLOSED
      return outcome(connection)

  return attack


def line(**message) -> bytes:
  return json.dumps(message).encode() + b"\n"


def hello(**changes) -> bytes:
  """A hello as a host sends it, but for the proof."""
  right = {
    **{"type": "hello", "protocol": PROTOCOL, "purpose": "host", "index": 1},
    **{"count": 2, "name": "stranger", "process": 1, "nonce": "0" * 64},
    **{"proof": "0" * 64},
  }
  return line(**{**right, **changes})


def one_byte_a_time(address: Address) -> str:
  with connected(address) as connection:
    begun = time.monotonic()
    try:
      for byte in hello() * 9:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)
        assert time.monotonic() - begun < SECONDS
    except OSError:
      return LATE if time.monotonic() - begun > 2 else CLOSED
  return "left open"


def gone_in_the_middle(address: Address) -> str:
  for _ in range(50):
    with connected(address) as connection:
      connection.sendall(hello()[:70])
  return CLOSED


def huge_line(address: Address) -> str:
  """Sends a line without an end; the coordinator must not take it all."""
  chunk = b"x" * 2**16
  sent = 0
  with connected(address) as connection:
    try:
      while sent < HUGE_BYTES:
        connection.sendall(chunk)
        sent += len(chunk)
    except OSError:
      # What the kernels of both sides keep, at most.
      return CLOSED if sent < 16 * 2**20 else f"closed after {sent} bytes"
  return "left open"


def many_at_once(address: Address) -> str:
  """Holds hundreds of connections, each with half a message; returns how many stay."""
  held = []
  try:
    for _ in range(HELD):
      held.append(socket.create_connection(address, SECONDS))
      held[-1].sendall(hello()[:70])
    time.sleep(1)
    left = 0
    for connection in held:
      connection.setblocking(False)
      try:
        while connection.recv(2**12):
          pass
      except BlockingIOError:
        left += 1
      except OSError:
        pass
  finally:
    for connection in held:
      connection.close()
  return "most closed" if left < HELD / 2 else f"{left} of {HELD} stay open"


def many_in_turn(address: Address) -> str:
  for _ in range(1000):
    connected(address).close()
  return CLOSED


def with_secret(secret: bytes, **changes) -> Attack:
  """Proves that it knows that secret."""

  def attack(address: Address) -> str:
    with socket.create_connection(address, SECONDS) as connection:
      challenge = host_link._read_line(connection)
      right = host_messages.from_host(hello(**changes))
      assert isinstance(right, Hello)
      nonce = challenge.nonce.encode()
      proof = host_secret.proof(secret, "host", nonce, right.to_prove())
      connection.sendall(host_messages.encode(right.with_proof(proof)))
      return outcome(connection)

  return attack


def replayed(secret: bytes) -> Attack:
  """Sends again what a host sent that knows the secret."""
  right = host_messages.from_host(hello())
  assert isinstance(right, Hello)
  proof = host_secret.proof(secret, "host", b"1" * 64, right.to_prove())
  return saying(host_messages.encode(right.with_proof(proof)))


DEEP = b'{"type":"facts","about":"x","facts":{"a":'

STRANGERS: dict[str, tuple[Attack, str]] = {
  "nothing at all": (saying(b""), LATE),
  "half a message, then nothing": (saying(hello()[:70]), LATE),
  "one byte at a time": (one_byte_a_time, LATE),
  "half a message, then gone, 50 times": (gone_in_the_middle, CLOSED),
  "a line of 200 MB": (huge_line, CLOSED),
  "1 MB of line ends": (saying(b"\n" * 2**20), CLOSED),
  "random bytes": (saying(bytes(range(256)) * 4 + b"\n"), CLOSED),
  "text that is not UTF-8": (saying(b'{"type":"\xff\xfe"}\n'), CLOSED),
  "an HTTP request": (saying(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), CLOSED),
  "a TLS hello": (saying(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n"), CLOSED),
  "JSON nested 1,000 deep": (saying(DEEP + b"[" * 1000 + b"\n"), CLOSED),
  "a list, a number, null": (saying(b"[1]\n5\nnull\n"), CLOSED),
  "an object without a type": (saying(b"{}\n"), CLOSED),
  "a type that is not known": (saying(line(type="shutdown")), CLOSED),
  "a hello without a proof": (saying(hello(proof="")), UNPROVEN),
  "a hello with a wrong proof": (saying(hello()), UNPROVEN),
  "a hello with another secret": (with_secret(b"another secret, long"), UNPROVEN),
  "a hello with no secret": (with_secret(b""), UNPROVEN),
  "a hello of another version": (saying(hello(protocol="commentree hosts 1")), CLOSED),
  "a hello whose index is text": (saying(hello(index="1")), CLOSED),
  "a hello whose index is below 0": (saying(hello(index=-1)), CLOSED),
  "a hello whose index is 10^18": (saying(hello(index=10**18)), CLOSED),
  "a hello whose index is null": (saying(hello(index=None)), CLOSED),
  "a hello with a name of 1 kB": (saying(hello(name="x" * 1000)), CLOSED),
  "a hello whose name holds escapes": (saying(hello(name="\x1b[2J")), CLOSED),
  "a hello with one field more": (saying(hello(more=1)), CLOSED),
  "a hello of another count": (saying(hello(count=7)), UNPROVEN),
  "a beat of a host": (saying(line(type="beat", step=1, what="", still_seconds=0)),
                       CLOSED),
  "a badly typed beat": (saying(line(type="beat", step="x", what=[], still_seconds={})),
                         CLOSED),
  "that a host failed": (saying(line(type="failed", code=2, message="stop")), CLOSED),
  "that a host is done": (saying(line(type="done")), CLOSED),
  "the coordinator's own end": (saying(line(type="end", text="stop", code=2, hosts=[])),
                                CLOSED),
  "a way to JAX's service": (saying(hello(purpose="jax")), UNPROVEN),
}  # fmt: skip

# Beside these the others would be among the connections that are closed for being many.
FLOODS: dict[str, tuple[Attack, str]] = {
  "400 connections at once": (many_at_once, "most closed"),
  "1,000 connections in turn": (many_in_turn, CLOSED),
}


def run_all(
  attacks: dict[str, tuple[Attack, str]], address: Address
) -> dict[str, tuple[str, str]]:
  """Returns the attacks that did not end as expected: how each did, and how it should.

  They run side by side, and the floods after them.
  """
  with concurrent.futures.ThreadPoolExecutor(len(attacks)) as pool:
    futures = {
      name: pool.submit(attack, address) for name, (attack, _) in attacks.items()
    }
  ends = {name: future.result() for name, future in futures.items()}
  ends |= {name: flood(address) for name, (flood, _) in FLOODS.items()}
  expected = {name: end for name, (_, end) in {**attacks, **FLOODS}.items()}
  return {
    name: (end, expected[name])
    for name, end in ends.items()
    if not end.startswith(expected[name])
  }
