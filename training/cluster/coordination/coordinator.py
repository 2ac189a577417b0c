"""Host 0's side of what keeps the hosts of a run together.

Every host, host 0 included, holds one TCP connection to the coordinator: it says who it
is, then twice a second how far it has come. So the coordinator can name the hosts that
have not come, and later the one that was lost, failed or stands still; it tells all
others, and each ends with the same line.

JAX's own coordination service does not do for that: until all hosts have come it names
none of them, and it ends a process whose host 0 is gone by an abort with a C++ stack.

`host_messages` says what is said, `host_server` who is listened to.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Iterable
from typing import Any

from commentree import differences
from commentree.differences import listed
from commentree.errors import HostLostError, UserError
from commentree.training.cluster.coordination.host_messages import (
  Agreed,
  AllDone,
  AllHeard,
  Beat,
  Done,
  End,
  Facts,
  Failed,
  FromCoordinator,
  FromHost,
  Go,
  Hello,
  Waiting,
)
from commentree.training.cluster.coordination.host_server import (
  Connection,
  HostServer,
  listen,
)
from commentree.training.config import HealthConfig

_log = logging.getLogger("commentree")

TICK_SECONDS = 0.5

# A host that says nothing for so long before the start may be replaced by another.
_STALE_SECONDS = 5.0
# For the last message to reach the others before host 0's process ends.
_FAREWELL_SECONDS = 0.3
_MAX_NAMED = 4
_MAX_TEXT_CHARS = 4096
_MAX_LOGGED_DEFECTS = 10


@dataclasses.dataclass
class _Member:
  """A host as the coordinator knows it; seconds are those the coordinator saw pass."""

  index: int
  name: str
  process: int
  connection: Connection
  silent_seconds: float = 0.0
  step: int = 0
  what: str = "start"
  still_seconds: float = 0.0
  done: bool = False
  facts: dict[str, Any] | None = None

  def __str__(self) -> str:
    return f"host {self.index} ({self.name})"

  @property
  def place(self) -> str:
    return f"at step {self.step:,}, in {self.what}"


class Coordinator:
  """Listens on a port of host 0, in a thread of its own, until the process ends.

  Attributes:
    listens_at: the address that it listens on; empty for all of this machine's.
    reached_at: the address at which another host has reached it.
  """

  def __init__(
    self,
    host: str,
    port: int,
    count: int,
    wait_seconds: float,
    health: HealthConfig,
    secret: bytes = b"",
    jax_address: str = "",
  ):
    """Starts listening.

    Args:
      host: this host's name or address as all hosts were given it.
      port: the port of this host to listen on.
      count: number of hosts.
      wait_seconds: how long to wait for them.
      health: limits.
      secret: what hosts have to know; empty: nothing.
      jax_address: path of the socket of JAX's own service on this host.

    Raises:
      OSError: if the port is taken.
    """
    self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    self._count = count
    self._wait_seconds = wait_seconds
    self._health = health
    self._members: dict[int, _Member] = {}
    self._unfit: dict[int, str] = {}
    self._started = False
    self._ended = False
    self._waited_seconds = 0.0
    self._defects = 0
    self.reached_at = ""
    self._server = HostServer(count, secret, self, jax_address)
    self._sockets, self.listens_at = listen(host, port)
    threading.Thread(
      target=lambda: asyncio.run(self._run()), name="coordinator", daemon=True
    ).start()

  async def _run(self) -> None:
    await self._server.start(self._sockets)
    clock = asyncio.get_running_loop().time
    before = clock()
    while True:
      await asyncio.sleep(TICK_SECONDS)
      # A machine that slept has not waited.
      passed, before = min(clock() - before, 2 * TICK_SECONDS), clock()
      try:
        self._tick(passed)
      except Exception:
        # A defect of ours: the hosts are watched all the same.
        self._defects += 1
        if self._defects <= _MAX_LOGGED_DEFECTS:
          _log.exception("the coordinator")

  def _tick(self, passed: float) -> None:
    if self._ended:
      return
    if self._started:
      self._watch(passed)
    else:
      self._await_members(passed)

  # ---- One host ----------------------------------------------------------------------

  def hello(self, connection: Connection, hello: Hello) -> None:
    """Admits or refuses a host that knows the secret."""
    member = _Member(hello.index, hello.name, hello.process, connection)
    other = self._members.get(member.index)
    if self._started or self._ended:
      who = f", with {other} of process {other.process}" if other else ""
      connection.refuse(f"a run of {self._count} hosts is under way there{who}")
      return
    if hello.count != self._count:
      self._does_not_fit(
        member,
        f"{member} was started with --process_count={hello.count}, host 0 with"
        f" --process_count={self._count}: give all hosts the same",
      )
      return
    if not hello.index < hello.count:
      self._does_not_fit(
        member,
        f"{member} was started with --process_index={hello.index}: must be from 0 to"
        f" {hello.count - 1}",
      )
      return
    if other is not None and other.silent_seconds < _STALE_SECONDS:
      self._does_not_fit(
        member,
        f"--process_index={member.index} was given to two processes,"
        f" {other.process} on {other.name} and {member.process} on {member.name}: each"
        " host needs its own",
      )
      return
    connection.member = self._members[member.index] = member
    if member.index > 0:
      self.reached_at = connection.own_address
    if other is not None:
      other.connection.close()
    connection.admit()
    if len(self._members) == self._count:
      self._started = True
      self._broadcast(Go([self._members[i].name for i in range(self._count)]))

  def _does_not_fit(self, member: _Member, text: str) -> None:
    """Ends the run, if it is one of its hosts that was started in a wrong way.

    Without a secret it may be a stranger: then only it receives the error.
    """
    if self._server.secret:
      member.connection.member = member
      member.connection.admit()
      self._end(UserError(text), also=member.connection)
    else:
      self._unfit[member.index] = text
      self._unfit = dict(list(self._unfit.items())[-_MAX_NAMED:])
      member.connection.refuse(text, is_mistake=True)

  def heard(self, connection: Connection, message: FromHost) -> None:
    """Takes what an admitted host says."""
    member: _Member = connection.member
    if self._members.get(member.index) is not member:
      return  # another has taken its place
    member.silent_seconds = 0.0
    match message:
      case Beat():
        member.step, member.what = message.step, message.what
        member.still_seconds = message.still_seconds
      case _ if not self._started:
        return
      case Facts():
        member.facts = message.facts
        if all(m.facts is not None for m in self._members.values()):
          self._compare(message.about)
      case Failed():
        text = f"{member} failed {member.place}: {message.message}"
        self._end(UserError(text), code=message.code, hosts=[member.index])
      case Done():
        member.done = True
        if all(m.done for m in self._members.values()):
          self._ended = True
          self._broadcast(AllDone())

  def lost(self, connection: Connection, why: str) -> None:
    """Notices that the connection of an admitted host is gone."""
    member: _Member = connection.member
    if self._members.get(member.index) is not member or self._ended:
      return
    if not self._started:
      del self._members[member.index]  # it may come again
      return
    self._end(
      HostLostError(
        f"{member} is gone: {why}, {member.place}; see its log, and start again on"
        " every host"
      ),
      hosts=[member.index],
    )

  # ---- All of them -------------------------------------------------------------------

  def _await_members(self, passed: float) -> None:
    self._waited_seconds += passed
    for member in self._members.values():
      member.silent_seconds += passed
    missing = [i for i in range(self._count) if i not in self._members]
    if self._waited_seconds < self._wait_seconds or 0 not in self._members:
      self._broadcast(Waiting(missing))
      return
    numbers = listed(map(str, missing), _MAX_NAMED)
    self._end(
      HostLostError(
        f"{self._members[0]} waited {self._wait_seconds:g} s at {self._address} for"
        f" {'host' if len(missing) == 1 else 'hosts'} {numbers} of {self._count} in"
        " vain: start the same command on every host of the slice, and see that they"
        f" reach that address{self._unfit_named()}"
      )
    )

  def _unfit_named(self) -> str:
    """What was refused, as it may be what was waited for."""
    if not self._unfit:
      return ""
    return f"; refused: {listed(self._unfit.values(), _MAX_NAMED, '; ')}"

  def _watch(self, passed: float) -> None:
    limit = self._health.host_timeout_seconds
    for member in self._members.values():
      member.silent_seconds += passed
    quiet = max(self._members.values(), key=lambda m: m.silent_seconds)
    if quiet.silent_seconds > limit:
      self._end(
        HostLostError(
          f"{quiet} has not been heard of for {limit:g} s, its process is frozen or its"
          f" machine gone; it was {quiet.place}; start again on every host"
        ),
        hosts=[quiet.index],
      )
      return
    behind = self._behind()
    if behind and min(m.still_seconds - self._allowed(m) for m in behind) > 0:
      they = listed((f"{m}, {m.place}," for m in behind), _MAX_NAMED)
      seconds = min(m.still_seconds for m in behind)
      verb = "stands" if len(behind) == 1 else "stand"
      self._end(
        HostLostError(
          f"{they} {verb} still for {seconds:.0f} s and the others wait; the stacks of"
          " its threads are in its log; start again on every host"
        ),
        hosts=[m.index for m in behind],
      )
      return
    self._broadcast(AllHeard(quiet.silent_seconds))

  def _behind(self) -> list[_Member]:
    """The hosts that all others wait for, as far as they can be told apart."""
    members = [m for _, m in sorted(self._members.items()) if not m.done]
    if not members:
      return []
    step = min(m.step for m in members)
    last = [m for m in members if m.step == step]
    # In a step or an evaluation a host may just be waiting for one that is elsewhere.
    return [m for m in last if m.what not in self._health.waiting_phases] or last

  def _allowed(self, member: _Member) -> float:
    return self._health.allowance(member.what)

  def _compare(self, about: str) -> None:
    """Tells all hosts whether they all said the same."""
    facts = {i: m.facts or {} for i, m in sorted(self._members.items())}
    for member in self._members.values():
      member.facts = None
    differing = []
    for index, theirs in facts.items():
      found = differences.find(facts[0], theirs)
      if found:
        texts = [f"{name} = {here} (host 0: {host_0})" for name, host_0, here in found]
        differing.append(f"{self._members[index]} has {listed(texts, _MAX_NAMED)}")
    text = ""
    if differing:
      text = (
        f"hosts differ in {about}: {listed(differing, _MAX_NAMED, '; ')}; start the"
        " same command on every host, with the same files and packages"
      )
    self._broadcast(Agreed(text))

  def _broadcast(self, message: FromCoordinator) -> None:
    for member in self._members.values():
      member.connection.send(message)

  def _end(
    self,
    error: UserError,
    *,
    code: int | None = None,
    hosts: Iterable[int] = (),
    also: Connection | None = None,
  ) -> None:
    """Ends the run on all hosts, host 0 last."""
    if self._ended:
      return
    self._ended = True
    code = error.exit_code if code is None else code
    end = End(str(error)[:_MAX_TEXT_CHARS], code, list(hosts))
    others = [m.connection for m in self._members.values() if m.index > 0]
    for connection in ([also] if also else []) + others:
      connection.send(end)
    if 0 in self._members:
      loop = asyncio.get_running_loop()
      loop.call_later(_FAREWELL_SECONDS, self._members[0].connection.send, end)
