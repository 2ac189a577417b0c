"""A host's side of its connection to the coordinator; see `coordinator`."""

from __future__ import annotations

import collections
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

from commentree.errors import HostLostError, UserError
from commentree.training.cluster.coordination import host_messages, host_secret
from commentree.training.cluster.coordination.host_messages import (
  FIRST_LINE_BYTES,
  LINE_BYTES,
  PROTOCOL,
  Admitted,
  Beat,
  Challenge,
  End,
  FromCoordinator,
  FromHost,
  Go,
  Hello,
  Lines,
  MessageError,
  Purpose,
  Refused,
  Waiting,
)
from commentree.training.cluster.coordination.shutdown_notice import ShutdownNotice

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_SEND_SECONDS = 5.0
_FIRST_NEWS_SECONDS = 10.0
_NEWS_SECONDS = 20.0
_NO_ANSWER_SECONDS = 10.0

_NO_HOST_0 = "something there takes connections, but is no host 0 of commentree"


class Closed(Exception):
  """The coordinator closed the connection, it broke, or it is of no use."""


class HostLink:
  """The connection of one host."""

  def __init__(self, connection: socket.socket):
    """Takes over a connection, to a coordinator that has proven to be one."""
    self._socket = connection
    self._socket.settimeout(_SEND_SECONDS)
    self._lock = threading.Lock()
    self._lines = Lines(LINE_BYTES)
    self._received: collections.deque[bytes] = collections.deque()

  @property
  def own_address(self) -> str:
    """The address of this machine by which it reaches the coordinator's."""
    return self._socket.getsockname()[0].removeprefix("::ffff:")

  def send(self, message: FromHost) -> None:
    """Sends a message, from any thread.

    Raises:
      Closed: if the peer is gone.
    """
    try:
      with self._lock:
        self._socket.sendall(host_messages.encode(message))
    except OSError as error:
      raise Closed from error

  def receive(self, seconds: float) -> Iterator[FromCoordinator]:
    """Yields what has come; waits so long for the first of it.

    Raises:
      Closed: if nothing more will come, or what has come is no message.
    """
    try:
      if not self._received and select.select([self._socket], [], [], seconds)[0]:
        data = self._socket.recv(2**16)
        if not data:
          raise Closed
        self._received.extend(self._lines.add(data))
      while self._received:
        yield host_messages.from_coordinator(self._received.popleft())
    except (OSError, MessageError) as error:
      raise Closed from error

  def close(self) -> None:
    """Ends the connection."""
    self._socket.close()


def connect(
  address: tuple[str, int],
  index: int,
  count: int,
  purpose: Purpose = "host",
  secret: bytes | None = None,
) -> socket.socket:
  """Connects to the coordinator; both sides prove that they know the secret.

  Args:
    address: host and port to connect to.
    index: which host this is.
    count: number of hosts.
    purpose: what for; see `host_messages.Hello`.
    secret: the secret; None: what this process was given.

  Raises:
    Closed: with the reason, if it is no coordinator of this run, or refuses.
    UserError: if it says that this host was started in a wrong way.
    OSError: if there is no connection.
  """
  secret = host_secret.read() if secret is None else secret
  connection = socket.create_connection(address, _CONNECT_SECONDS)
  try:
    connection.settimeout(_NO_ANSWER_SECONDS)
    challenge = _read_line(connection)
    if not isinstance(challenge, Challenge) or challenge.protocol != PROTOCOL:
      raise Closed(f"{_NO_HOST_0} of this version")
    if challenge.has_secret != bool(secret):
      one, other = ("this host", "host 0") if secret else ("host 0", "this host")
      raise Closed(f"{one} was given a {host_secret.VARIABLE} and {other} was not")
    hello = Hello(
      PROTOCOL,
      purpose,
      index,
      count,
      _name(),
      os.getpid(),
      host_secret.nonce(),
    )
    nonces = challenge.nonce.encode(), hello.nonce.encode()
    proof = host_secret.proof(secret, "host", nonces[0], hello.to_prove())
    connection.sendall(host_messages.encode(hello.with_proof(proof)))
    answer = _read_line(connection)
    if isinstance(answer, Refused):
      if answer.is_mistake:
        raise UserError(answer.reason)
      raise Closed(answer.reason)
    if not isinstance(answer, Admitted) or not host_secret.proves(
      answer.proof, secret, "coordinator", *nonces
    ):
      raise Closed(f"{_NO_HOST_0} that knows this run's secret")
    return connection
  except TimeoutError as error:
    connection.close()
    raise Closed(_NO_HOST_0) from error
  except BaseException:
    connection.close()
    raise


def _name() -> str:
  """This machine's name, as far as messages take it."""
  return "".join(c for c in socket.gethostname() if " " <= c <= "~")[:255]


def _read_line(connection: socket.socket) -> FromCoordinator:
  """Reads one line and no byte more, as what follows may be JAX's."""
  line = b""
  end = time.monotonic() + _NO_ANSWER_SECONDS
  while not line.endswith(b"\n"):
    if time.monotonic() > end:
      raise TimeoutError
    ahead = connection.recv(FIRST_LINE_BYTES, socket.MSG_PEEK)
    if not ahead:
      raise Closed("it closes the connection")
    line += connection.recv(ahead.find(b"\n") + 1 or len(ahead))
    if len(line) > FIRST_LINE_BYTES:
      raise Closed(_NO_HOST_0)
  try:
    return host_messages.from_coordinator(line)
  except MessageError as error:
    raise Closed(_NO_HOST_0) from error


def join(
  address: tuple[str, int],
  shown_address: str,
  index: int,
  count: int,
  wait_seconds: float,
  say: Callable[[str], None],
  secret: bytes | None = None,
) -> tuple[HostLink, list[str]]:
  """Meets the other hosts at the coordinator.

  Args:
    address: host and port to connect to.
    shown_address: what the user calls it.
    index: which host this is.
    count: number of hosts.
    wait_seconds: how long to look for the coordinator; how long to wait for other
      hosts is for it to say.
    say: takes news for people while it takes long.
    secret: the run's secret; None: what this process was given.

  Returns:
    The connection, and all hosts' names.

  Raises:
    UserError: if hosts were started with flags that do not fit.
    HostLostError: if the coordinator or another host does not come in time.
  """
  start = time.monotonic()
  next_news = start + _FIRST_NEWS_SECONDS
  me = f"host {index} ({_name()})"
  while True:
    link, reason = None, ""
    try:
      link = HostLink(connect(address, index, count, secret=secret))
      heard = time.monotonic()
      while True:
        for message in link.receive(_RETRY_SECONDS):
          heard = time.monotonic()
          match message:
            case Go():
              return link, message.names
            case End():
              raise ShutdownNotice.from_message(message).error()
            case Waiting():
              next_news = _news(next_news, me, message.missing, shown_address, say)
        if time.monotonic() - heard > _NO_ANSWER_SECONDS:
          raise Closed("it takes the connection, and then says nothing")
        link.send(Beat(0, "start", 0))
    except Closed as closed:
      reason = str(closed) or "it closes the connection"
    except socket.gaierror as error:
      reason = f"the name is not known here: {error.strerror}"
    except OSError as error:
      reason = (error.strerror or str(error)).lower()
    if link is not None:
      link.close()
    if time.monotonic() - start > wait_seconds:
      raise HostLostError(
        f"{me} found no host 0 at {shown_address} within"
        f" {wait_seconds:g} s ({reason}): start the same command on every host of the"
        " slice, and check that --coordinator_address names host 0"
      )
    next_news = _news(next_news, me, [0], f"{shown_address} ({reason})", say)
    time.sleep(_RETRY_SECONDS)


def _news(
  due: float, me: str, missing: list[int], where: str, say: Callable[[str], None]
) -> float:
  """Says whom this host waits for, if it is time to; returns when to do so next."""
  if time.monotonic() < due:
    return due
  they = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
  hosts = "host" if len(missing) == 1 else "hosts"
  say(
    f"{me} waits for {hosts} {they} at {where}; was the same command started on every"
    " host?"
  )
  return time.monotonic() + _NEWS_SECONDS
