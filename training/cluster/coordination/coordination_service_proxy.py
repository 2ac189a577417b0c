"""A local door to JAX's coordination service on host 0 that outlasts host 0.

JAX's client ends its process by an abort, with a C++ stack and no word on which host
was lost, in the instant that its connection to the service breaks. So the hosts other
than 0 connect to the service through this proxy, which keeps their side open: whoever
was lost is then named by `watchdog`, and JAX's own heartbeats still notice, later.

The service does not check who they are. So it listens on a socket in a folder that only
its user may enter, and so does this proxy; between the two bytes go through the
coordinator's port, which asks for the run's secret.
"""

from __future__ import annotations

import pathlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable

_CHUNK_BYTES = 2**16
_RETRY_SECONDS = 0.1

# The kernel takes paths of 107 bytes.
_MAX_PATH_BYTES = 100


class PrivateSocket:
  """A path for a socket, in a folder of this user's alone.

  Attributes:
    path: of the socket, which nothing listens on yet.
  """

  def __init__(self):
    """Makes the folder."""
    folder = tempfile.mkdtemp(prefix="commentree_")
    if len(folder.encode()) > _MAX_PATH_BYTES - len("/jax"):
      shutil.rmtree(folder)
      folder = tempfile.mkdtemp(prefix="commentree_", dir="/tmp")
    self.path = str(pathlib.Path(folder) / "jax")

  def remove(self) -> None:
    """Removes the folder; what is connected stays so."""
    shutil.rmtree(pathlib.Path(self.path).parent, ignore_errors=True)


class CoordinationServiceProxy:
  """Passes bytes between a socket of this machine and the service, in threads."""

  def __init__(self, path: str, connect: Callable[[], socket.socket]):
    """Starts to listen.

    Args:
      path: of the socket to connect to.
      connect: connects to the service; raises an OSError where it is not there yet.
    """
    self._connect_there = connect
    self._patient = True
    self._doors: list[socket.socket] = []
    self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    self._listener.bind(path)
    self._listener.listen()
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
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        connection = self._connect_there()
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
