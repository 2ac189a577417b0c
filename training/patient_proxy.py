"""A local door to JAX's coordination service on host 0 that outlasts host 0.

JAX's client ends its process by an abort, with a C++ stack and no word on which host
was lost, in the instant that its connection to the service breaks. So the hosts other
than 0 connect to the service through this proxy, which keeps their side open: whoever
was lost is then named by `watchdog`, and JAX's own heartbeats still notice, later.
"""

from __future__ import annotations

import socket
import threading
import time

_CHUNK_BYTES = 2**16
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.1


class PatientProxy:
  """Passes bytes between a port of this machine and one of another, in threads.

  Attributes:
    port: the port of 127.0.0.1 to connect to.
  """

  def __init__(self, host: str, port: int):
    """Starts to listen; the other side need not be there yet."""
    self._target = (host, port)
    self._patient = True
    self._doors: list[socket.socket] = []
    self._listener = socket.create_server(("127.0.0.1", 0))
    self.port: int = self._listener.getsockname()[1]
    _in_thread(self._accept)

  def give_up(self) -> None:
    """From now on a connection that ended there ends here, too."""
    self._patient = False
    for door in self._doors:
      _shut(door)

  def _accept(self) -> None:
    while True:
      here, _ = self._listener.accept()
      _in_thread(self._serve, here)

  def _serve(self, here: socket.socket) -> None:
    there = self._connect()
    if there is None:
      return
    for end in (here, there):
      end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _in_thread(self._back, there, here)
    _pass(here, there)
    _shut(there)

  def _back(self, there: socket.socket, here: socket.socket) -> None:
    _pass(there, here)
    self._doors.append(here)
    if not self._patient:
      _shut(here)

  def _connect(self) -> socket.socket | None:
    while self._patient:
      try:
        connection = socket.create_connection(self._target, _CONNECT_SECONDS)
        connection.settimeout(None)
        return connection
      except OSError:
        time.sleep(_RETRY_SECONDS)
    return None


def _pass(source: socket.socket, sink: socket.socket) -> None:
  """Passes bytes on until either side ends."""
  try:
    while data := source.recv(_CHUNK_BYTES):
      sink.sendall(data)
  except OSError:
    return


def _shut(end: socket.socket) -> None:
  try:
    end.shutdown(socket.SHUT_RDWR)
  except OSError:
    return


def _in_thread(target, *arguments: socket.socket) -> None:
  threading.Thread(target=target, args=arguments, name="proxy", daemon=True).start()
