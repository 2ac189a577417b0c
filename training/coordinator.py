"""Host 0's side of what keeps the hosts of a run together.

Every host, host 0 included, holds one TCP connection to the coordinator: it says who it
is, then once a second how far it has come. So the coordinator can name the hosts that
have not come, and later the one that was lost, failed or stands still; it tells all
others, and each ends with the same line.

JAX's own coordination service does not do for that: until all hosts have come it names
none of them, and it ends a process whose host 0 is gone by an abort with a C++ stack.

Messages are JSON objects, one a line. From a host: `hello`, `beat`, `facts`, `failed`,
`done`. To it: `waiting`, `refused`, `go`, `beat`, `agreed`, `end`, `all_done`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import HostLostError, UserError
from .config import HealthConfig

PROTOCOL = "commentree hosts 1"
TICK_SECONDS = 0.5

# A host that says nothing for so long before the start may be replaced by another.
_STALE_SECONDS = 5.0
_HELLO_SECONDS = 10.0
# For the last message to reach the others before host 0's process ends.
_FAREWELL_SECONDS = 0.3
_MAX_LINE_BYTES = 2**24
_MAX_NAMED = 4


@dataclasses.dataclass
class _Member:
  """A host as the coordinator knows it; seconds are those the coordinator saw pass."""

  index: int
  name: str
  where: str
  writer: asyncio.StreamWriter
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
  """Listens on a port of host 0, in a thread of its own, until the process ends."""

  def __init__(
    self, address: str, port: int, count: int, wait_seconds: float, health: HealthConfig
  ):
    """Starts listening.

    Args:
      address: `HOST:PORT` as all hosts were given it, for messages.
      port: the port of this host to listen on.
      count: number of hosts.
      wait_seconds: how long to wait for them.
      health: limits.

    Raises:
      OSError: if the port is taken.
    """
    self._address = address
    self._port = port
    self._count = count
    self._wait_seconds = wait_seconds
    self._health = health
    self._members: dict[int, _Member] = {}
    self._started = False
    self._ended = False
    self._waited_seconds = 0.0
    if socket.has_dualstack_ipv6():
      self._socket = socket.create_server(
        ("", port), family=socket.AF_INET6, dualstack_ipv6=True
      )
    else:
      self._socket = socket.create_server(("", port))
    threading.Thread(
      target=lambda: asyncio.run(self._run()), name="coordinator", daemon=True
    ).start()

  async def _run(self) -> None:
    server = await asyncio.start_server(
      self._serve, sock=self._socket, limit=_MAX_LINE_BYTES
    )
    async with server:
      clock = asyncio.get_running_loop().time
      before = clock()
      while True:
        await asyncio.sleep(TICK_SECONDS)
        # A machine that slept has not waited.
        passed, before = min(clock() - before, 2 * TICK_SECONDS), clock()
        if self._ended:
          continue
        if self._started:
          await self._watch(passed)
        else:
          await self._await_members(passed)

  # ---- One connection --------------------------------------------------------------

  async def _serve(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    member = None
    try:
      hello = await asyncio.wait_for(_read(reader), _HELLO_SECONDS)
      if hello is None or hello.get("protocol") != PROTOCOL:
        return
      member = await self._admit(hello, writer)
      while member is not None:
        message = await _read(reader)
        if message is None:
          return
        member.silent_seconds = 0.0
        await self._hear(member, message)
    except (OSError, ValueError, KeyError, TypeError):
      return  # whoever it was, its connection is of no use
    finally:
      writer.close()
      if member is not None and self._members.get(member.index) is member:
        await self._gone(member)

  async def _admit(
    self, hello: Mapping[str, Any], writer: asyncio.StreamWriter
  ) -> _Member | None:
    member = _Member(int(hello["index"]), hello["name"], hello["where"], writer)
    other = self._members.get(member.index)
    if self._started or self._ended:
      who = f", with {other} of process {other.where}" if other else ""
      reason = f"a run of {self._count} hosts is under way there{who}"
      _send(member, {"refused": reason})
      return None
    if hello["count"] != self._count:
      await self._end(
        UserError(
          f"{member} was started with --process_count={hello['count']}, host 0 with"
          f" --process_count={self._count}: give all hosts the same"
        ),
        also=member,
      )
      return None
    if other is not None and other.silent_seconds < _STALE_SECONDS:
      await self._end(
        UserError(
          f"--process_index={member.index} was given to two processes,"
          f" {other.where} on {other.name} and {member.where} on {member.name}: each"
          " host needs its own"
        ),
        also=member,
      )
      return None
    self._members[member.index] = member
    if len(self._members) == self._count:
      self._started = True
      names = [self._members[i].name for i in range(self._count)]
      self._broadcast({"go": {"port": _free_port(self._port + 1), "names": names}})
    return member

  async def _hear(self, member: _Member, message: Mapping[str, Any]) -> None:
    if "beat" in message:
      member.step, member.what, member.still_seconds = message["beat"]
    elif "facts" in message:
      member.facts = message["facts"]
      if all(m.facts is not None for m in self._members.values()):
        self._compare(message["about"])
    elif "failed" in message:
      failed = message["failed"]
      text = f"{member} failed {member.place}: {failed['message']}"
      await self._end(UserError(text), code=failed["code"], hosts=[member.index])
    elif "done" in message:
      member.done = True
      if all(m.done for m in self._members.values()):
        self._ended = True
        self._broadcast({"all_done": True})

  async def _gone(self, member: _Member) -> None:
    if self._ended:
      return
    if not self._started:
      del self._members[member.index]  # it may come again
      return
    await self._end(
      HostLostError(
        f"{member} is gone: its process ended without a word, {member.place}; see its"
        " log, and start again on every host"
      ),
      hosts=[member.index],
    )

  # ---- All of them -----------------------------------------------------------------

  async def _await_members(self, passed: float) -> None:
    self._waited_seconds += passed
    for member in self._members.values():
      member.silent_seconds += passed
    missing = [i for i in range(self._count) if i not in self._members]
    if self._waited_seconds < self._wait_seconds or 0 not in self._members:
      self._broadcast({"waiting": missing})
      return
    numbers = _named(map(str, missing))
    await self._end(
      HostLostError(
        f"{self._members[0]} waited {self._wait_seconds:g} s at {self._address} for"
        f" {'host' if len(missing) == 1 else 'hosts'} {numbers} of {self._count} in"
        " vain: start the same command on every host of the slice, and see that they"
        " reach that address"
      )
    )

  async def _watch(self, passed: float) -> None:
    limit = self._health.host_timeout_seconds
    for member in self._members.values():
      member.silent_seconds += passed
    quiet = max(self._members.values(), key=lambda m: m.silent_seconds)
    if quiet.silent_seconds > limit:
      await self._end(
        HostLostError(
          f"{quiet} has not been heard of for {limit:g} s, its process is frozen or its"
          f" machine gone; it was {quiet.place}; start again on every host"
        ),
        hosts=[quiet.index],
      )
      return
    behind = self._behind()
    if behind and min(m.still_seconds - self._allowed(m) for m in behind) > 0:
      they = _named(f"{m}, {m.place}," for m in behind)
      seconds = min(m.still_seconds for m in behind)
      verb = "stands" if len(behind) == 1 else "stand"
      await self._end(
        HostLostError(
          f"{they} {verb} still for {seconds:.0f} s and the others wait; the stacks of"
          " its threads are in its log; start again on every host"
        ),
        hosts=[m.index for m in behind],
      )
      return
    self._broadcast({"beat": quiet.silent_seconds})

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
    differences = []
    for index, theirs in facts.items():
      names = [k for k in {**facts[0], **theirs} if facts[0].get(k) != theirs.get(k)]
      if names:
        shown = ", ".join(
          f"{k} = {_shown(theirs.get(k))} (host 0: {_shown(facts[0].get(k))})"
          for k in names[:_MAX_NAMED]
        )
        more = len(names) - _MAX_NAMED
        rest = f" and {more} more" if more > 0 else ""
        differences.append(f"{self._members[index]} has {shown}{rest}")
    text = ""
    if differences:
      text = (
        f"hosts differ in {about}: {_named(differences, '; ')}; start the same command"
        " on every host, with the same files and packages"
      )
    self._broadcast({"agreed": text})

  def _broadcast(self, message: Mapping[str, Any]) -> None:
    for member in self._members.values():
      _send(member, message)

  async def _end(
    self,
    error: UserError,
    *,
    code: int | None = None,
    hosts: Iterable[int] = (),
    also: _Member | None = None,
  ) -> None:
    """Ends the run on all hosts, host 0 last."""
    if self._ended:
      return
    self._ended = True
    verdict = {
      "code": error.exit_code if code is None else code,
      "text": str(error),
      "hosts": list(hosts),
    }
    others = [m for m in self._members.values() if m.index > 0]
    for member in ([also] if also else []) + others:
      _send(member, {"end": verdict})
    await asyncio.sleep(_FAREWELL_SECONDS)
    if 0 in self._members:
      _send(self._members[0], {"end": verdict})


def _send(member: _Member, message: Mapping[str, Any]) -> None:
  if not member.writer.is_closing():
    member.writer.write(json.dumps(message).encode() + b"\n")


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
  line = await reader.readline()
  if not line.endswith(b"\n"):
    return None
  return json.loads(line)


def _free_port(preferred: int) -> int:
  """A port that is free now; the preferred one if it is, as firewalls like it."""
  for port in (preferred, 0):
    with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
      probe.bind(("", port))
      return probe.getsockname()[1]
  raise OSError("no free port")


def _named(names: Iterable[str], separator: str = ", ") -> str:
  names = list(names)
  shown = separator.join(names[:_MAX_NAMED])
  more = len(names) - _MAX_NAMED
  return f"{shown} and {more} more" if more > 0 else shown


def _shown(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else text[:57] + "…"
