"""Listens for hosts, and lets in those that know the run's secret.

Anybody who reaches the port can connect. So before a host is let in, its connection may
hold one short line, for a few seconds; connections beyond a number are closed, the
oldest first of the address that has most. Nothing that is sent here, by strangers or by
hosts, raises in the event loop.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from commentree.training.cluster.coordination import host_messages, host_secret
from commentree.training.cluster.coordination.host_messages import (
  FIRST_LINE_BYTES,
  LINE_BYTES,
  PROTOCOL,
  Admitted,
  Challenge,
  FromCoordinator,
  FromHost,
  Hello,
  MessageError,
  Refused,
)

_log = logging.getLogger("commentree")

# To say who it is, for a connection; to read why it is refused.
HELLO_SECONDS = 5.0
_REFUSED_SECONDS = 2.0

# Connections of which it is not known whose they are, beside one for each host: in all,
# and from one address. Hosts say who they are within milliseconds.
MAX_UNKNOWN = 128
MAX_UNKNOWN_OF_ADDRESS = 64

# Channels to JAX's service of one host, which opens one.
_MAX_CHANNELS = 4

# What a host that does not read may leave to be sent.
_MAX_UNSENT_BYTES = 2**20

_CHANNEL_BYTES = 2**16
_CHANNEL_SECONDS = 120.0
_CHANNEL_RETRY_SECONDS = 0.1
_LOG_SECONDS = 10.0


class Visited(Protocol):
  """What takes part in what hosts say: the coordinator."""

  def hello(self, connection: Connection, hello: Hello) -> None:
    """A host that knows the secret says who it is: to be admitted or refused."""

  def heard(self, connection: Connection, message: FromHost) -> None:
    """An admitted host says something."""

  def lost(self, connection: Connection, why: str) -> None:
    """An admitted host's connection is gone."""


def listen(host: str, port: int) -> tuple[list[socket.socket], str]:
  """Listens on the addresses of this machine that a name stands for.

  Of a name that others know by another address than this machine does, as behind a
  router, on all addresses; so too where this machine's own name stands for loopback
  here, as on Debian.

  Args:
    host: name or address as all hosts were given it.
    port: the port.

  Returns:
    The listening sockets, and the address among them to reach this process at; empty
    if they are all addresses.

  Raises:
    OSError: if the port is taken.
  """
  found = []
  with contextlib.suppress(socket.gaierror):
    infos = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    found = [(family, address) for family, *_, address in infos]
  named_loopback = host == "localhost" or host.startswith("127.") or host == "::1"
  sockets = []
  try:
    for family, address in dict.fromkeys(found):
      if str(address[0]).startswith(("127.", "::1")) and not named_loopback:
        continue
      try:
        # Hosts of a large run come at once.
        sockets.append(socket.create_server(address, family=family, backlog=1024))
      except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
          raise
    if sockets:
      return sockets, sockets[0].getsockname()[0]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return [
      socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    ], ""
  except OSError:
    for opened in sockets:
      opened.close()
    raise


class HostServer:
  """The connections of hosts, and of strangers; used in its event loop alone."""

  def __init__(self, count: int, secret: bytes, visited: Visited, jax_address: str):
    """Serves once `start` is called.

    Args:
      count: number of hosts.
      secret: what hosts have to know; empty: nothing.
      visited: takes what hosts say.
      jax_address: path of the socket of JAX's service, which hosts reach through here.
    """
    self.secret = secret
    self.visited = visited
    self.jax_address = jax_address
    self.channels: collections.Counter[int] = collections.Counter()
    self._max_unknown = MAX_UNKNOWN + count
    self._max_of_address = MAX_UNKNOWN_OF_ADDRESS + count
    self._unknown: dict[Connection, None] = {}
    self._turned_away = 0
    self._logged_at = -_LOG_SECONDS
    self._tasks: set[asyncio.Task[None]] = set()

  async def start(self, sockets: list[socket.socket]) -> None:
    """Takes connections from now on."""
    loop = asyncio.get_running_loop()
    for each in sockets:
      await loop.create_server(lambda: Connection(self), sock=each)

  def came(self, connection: Connection) -> None:
    """Counts a connection of which nothing is known; may close an older one."""
    self._unknown[connection] = None
    addresses = collections.Counter(c.address for c in self._unknown)
    address = connection.address
    if len(self._unknown) > self._max_unknown:
      address, _ = addresses.most_common(1)[0]
    elif addresses[address] <= self._max_of_address:
      return
    oldest = next(c for c in self._unknown if c.address == address)
    oldest.turn_away("too many connections")

  def known(self, connection: Connection) -> None:
    """A connection is known now, or closed."""
    self._unknown.pop(connection, None)

  def turned_away(self, address: str, why: str) -> None:
    """Logs what strangers do, now and then."""
    self._turned_away += 1
    now = asyncio.get_running_loop().time()
    if now - self._logged_at < _LOG_SECONDS:
      return
    self._logged_at = now
    _log.warning(
      "refused a connection from %s: %s (%d so far)", address, why, self._turned_away
    )

  def open_channel(self, connection: Connection, index: int) -> None:
    """Joins a host's connection to JAX's service."""
    self.channels[index] += 1
    carrying = self._carry(*connection.as_streams(), index)
    task = asyncio.get_running_loop().create_task(carrying)
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)

  async def _carry(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int
  ) -> None:
    try:
      from_jax, to_jax = await self._reach_jax()
      await asyncio.gather(_pass(reader, to_jax), _pass(from_jax, writer))
    except (OSError, TimeoutError):
      writer.close()
    finally:
      self.channels[index] -= 1

  async def _reach_jax(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to JAX's service on this host, which may not be up yet."""
    async with asyncio.timeout(_CHANNEL_SECONDS):
      while True:
        try:
          return await asyncio.open_unix_connection(self.jax_address)
        except OSError:
          await asyncio.sleep(_CHANNEL_RETRY_SECONDS)


class Connection(asyncio.Protocol):
  """One connection: a stranger's until it has proven that it is a host's.

  Attributes:
    address: of the other side.
    member: what the coordinator keeps of the host.
  """

  def __init__(self, server: HostServer):
    self.address = ""
    self.member: Any = None
    self._server = server
    self._lines = host_messages.Lines(FIRST_LINE_BYTES)
    self._nonce = host_secret.nonce()
    self._hello: Hello | None = None
    self._admitted = False
    self._closing = False
    self._why_lost = "its process ended without a word"
    self._cancel_deadline: Callable[[], None] = lambda: None

  @property
  def own_address(self) -> str:
    """This machine's address, as the other side reached it."""
    return self._transport.get_extra_info("sockname")[0].removeprefix("::ffff:")

  # ---- For the coordinator -----------------------------------------------------------

  def admit(self) -> None:
    """Lets a host in that has said who it is; proves that this is its coordinator."""
    assert self._hello is not None
    self._known()
    self._admitted = True
    self._lines.limit = LINE_BYTES
    proof = host_secret.proof(
      self._server.secret,
      "coordinator",
      self._nonce.encode(),
      self._hello.nonce.encode(),
    )
    self.send(Admitted(proof))

  def refuse(self, reason: str, *, is_mistake: bool = False) -> None:
    """Tells a host why it is not let in, and closes its connection."""
    self.send(Refused(reason, is_mistake))
    self.close()

  def send(self, message: FromCoordinator) -> None:
    """Sends a message, unless the other side has not read those before."""
    if self._closing or self._transport.is_closing():
      return
    if self._transport.get_write_buffer_size() < _MAX_UNSENT_BYTES:
      self._transport.write(host_messages.encode(message))

  def close(self) -> None:
    """Closes the connection, once what was sent is read or some time has passed."""
    self._known()
    self._closing = True
    self._transport.close()
    loop = asyncio.get_running_loop()
    loop.call_later(_REFUSED_SECONDS, self._transport.abort)

  # ---- For the event loop ------------------------------------------------------------

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    """A connection was opened."""
    self._transport = cast(asyncio.Transport, transport)
    self.address = str((transport.get_extra_info("peername") or ["?"])[0])
    loop = asyncio.get_running_loop()
    deadline = loop.call_later(
      HELLO_SECONDS,
      self.turn_away,
      f"it did not say in {HELLO_SECONDS:g} s which host it is",
    )
    self._cancel_deadline = deadline.cancel
    self.send(Challenge(PROTOCOL, self._nonce, bool(self._server.secret)))
    self._server.came(self)

  def data_received(self, data: bytes) -> None:
    """Something was sent."""
    if self._closing:
      return
    try:
      for line in self._lines.add(data):
        self._read(host_messages.from_host(line))
    except MessageError as error:
      self._misunderstood(str(error))
    except Exception:
      # A defect of ours: the others are watched all the same.
      _log.exception("a message of %s", self.address)
      self._misunderstood("an error in the coordinator")

  def connection_lost(self, exc: Exception | None) -> None:
    """The connection is closed."""
    del exc
    self._known()
    if self._admitted:
      self._admitted = False
      self._server.visited.lost(self, self._why_lost)

  # ---- Here --------------------------------------------------------------------------

  def turn_away(self, why: str) -> None:
    """Closes a stranger's connection, without a word to it."""
    self._known()
    self._closing = True
    self._transport.abort()
    self._server.turned_away(self.address, why)

  def as_streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Hands the connection over: from now on it carries bytes, and no messages."""
    self._admitted, self._closing = False, True
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_CHANNEL_BYTES, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    self._transport.set_protocol(protocol)
    protocol.connection_made(self._transport)
    return reader, asyncio.StreamWriter(self._transport, protocol, reader, loop)

  def _read(self, message: FromHost) -> None:
    if self._closing:
      return
    if self._hello is not None:
      if isinstance(message, Hello):
        raise MessageError("it says twice who it is")
      self._server.visited.heard(self, message)
      return
    if not isinstance(message, Hello) or message.protocol != PROTOCOL:
      raise MessageError("it does not begin as a host of this version does")
    if not host_secret.proves(
      message.proof,
      self._server.secret,
      "host",
      self._nonce.encode(),
      message.to_prove(),
    ):
      self._server.turned_away(self.address, "it does not know this run's secret")
      self.refuse(f"the run there has another {host_secret.VARIABLE} than this host")
      return
    self._hello = message
    if message.purpose == "jax":
      self._open_channel(message.index)
    else:
      self._server.visited.hello(self, message)

  def _open_channel(self, index: int) -> None:
    if self._server.channels[index] >= _MAX_CHANNELS:
      self.refuse("this host has its connections to JAX's service already")
      return
    self.admit()
    self._server.open_channel(self, index)

  def _known(self) -> None:
    self._cancel_deadline()
    self._server.known(self)

  def _misunderstood(self, why: str) -> None:
    if not self._admitted:
      self.turn_away(why)
      return
    self._why_lost = f"it said what is no message ({why[:100]})"
    self._closing = True
    self._transport.abort()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
  """Passes bytes on until either side ends."""
  try:
    while data := await source.read(_CHANNEL_BYTES):
      sink.write(data)
      await sink.drain()
  except OSError:
    pass
  finally:
    sink.close()
