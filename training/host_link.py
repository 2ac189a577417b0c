"""A host's side of its connection to the coordinator; see `coordinator`."""

from __future__ import annotations

import collections
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import HostLostError
from .coordinator import PROTOCOL
from .verdict import Verdict

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_SEND_SECONDS = 5.0
_FIRST_NEWS_SECONDS = 10.0
_NEWS_SECONDS = 20.0
_NO_ANSWER_SECONDS = 10.0


class Closed(Exception):
  """The coordinator closed the connection, or it broke."""


class HostLink:
  """The connection of one host."""

  def __init__(self, connection: socket.socket):
    """Takes over a connection."""
    self._socket = connection
    self._socket.settimeout(_SEND_SECONDS)
    self._lock = threading.Lock()
    self._buffer = b""
    self._received: collections.deque[bytes] = collections.deque()

  def send(self, message: Mapping[str, Any]) -> None:
    """Sends a message, from any thread.

    Raises:
      Closed: if there is nobody to take it.
    """
    try:
      with self._lock:
        self._socket.sendall(json.dumps(message).encode() + b"\n")
    except OSError as error:
      raise Closed from error

  def receive(self, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields what has come; waits so long for the first of it.

    Raises:
      Closed: if nothing more will come.
    """
    if not self._received and select.select([self._socket], [], [], seconds)[0]:
      try:
        data = self._socket.recv(2**16)
      except OSError as error:
        raise Closed from error
      if not data:
        raise Closed
      *lines, self._buffer = (self._buffer + data).split(b"\n")
      self._received.extend(lines)
    while self._received:
      try:
        yield json.loads(self._received.popleft())
      except ValueError as error:
        raise Closed from error

  def close(self) -> None:
    """Ends the connection."""
    self._socket.close()


def join(
  address: tuple[str, int],
  shown_address: str,
  index: int,
  count: int,
  wait_seconds: float,
  say: Callable[[str], None],
) -> tuple[HostLink, int, list[str]]:
  """Meets the other hosts at the coordinator.

  Args:
    address: host and port to connect to.
    shown_address: what the user calls it.
    index: which host this is.
    count: number of hosts.
    wait_seconds: how long to look for the coordinator; how long to wait for other
      hosts is for it to say.
    say: takes news for people while it takes long.

  Returns:
    The connection, the port for JAX's own service on host 0, and all hosts' names.

  Raises:
    UserError: if hosts were started with flags that do not fit.
    HostLostError: if the coordinator or another host does not come in time.
  """
  start = time.monotonic()
  next_news = start + _FIRST_NEWS_SECONDS
  name = socket.gethostname()
  hello = {
    "protocol": PROTOCOL,
    "index": index,
    "count": count,
    "name": name,
    "where": str(os.getpid()),
  }
  while True:
    link, reason = None, ""
    try:
      link = HostLink(socket.create_connection(address, _CONNECT_SECONDS))
      link.send(hello)
      heard = time.monotonic()
      while True:
        for message in link.receive(_RETRY_SECONDS):
          heard = time.monotonic()
          if "go" in message:
            return link, message["go"]["port"], message["go"]["names"]
          if "end" in message:
            raise Verdict.from_message(message["end"]).error()
          if "refused" in message:
            reason = message["refused"]
            raise Closed
          next_news = _news(next_news, hello, message["waiting"], shown_address, say)
        if time.monotonic() - heard > _NO_ANSWER_SECONDS:
          reason = "something there takes connections, but is no host 0 of commentree"
          raise Closed
        link.send({"beat": [0, "start", 0]})
    except Closed:
      reason = reason or "it closes the connection"
    except socket.gaierror as error:
      reason = f"the name is not known here: {error.strerror}"
    except OSError as error:
      reason = (error.strerror or str(error)).lower()
    if link is not None:
      link.close()
    if time.monotonic() - start > wait_seconds:
      raise HostLostError(
        f"host {index} ({name}) found no host 0 at {shown_address} within"
        f" {wait_seconds:g} s ({reason}): start the same command on every host of the"
        " slice, and check that --coordinator_address names host 0"
      )
    next_news = _news(next_news, hello, [0], f"{shown_address} ({reason})", say)
    time.sleep(_RETRY_SECONDS)


def _news(
  due: float,
  hello: Mapping[str, Any],
  missing: list[int],
  where: str,
  say: Callable[[str], None],
) -> float:
  """Says whom this host waits for, if it is time to; returns when to do so next."""
  if time.monotonic() < due:
    return due
  they = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
  hosts = "host" if len(missing) == 1 else "hosts"
  say(
    f"host {hello['index']} ({hello['name']}) waits for {hosts} {they} at {where}; was"
    " the same command started on every host?"
  )
  return time.monotonic() + _NEWS_SECONDS
