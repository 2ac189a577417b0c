"""Keeps the processes of a run going: starts, watches, ends and restarts them together.

What to do after which exit is decided in `restart_policy`; here are processes, signals
and time. The hosts of a run live and die together: once one has ended badly, the
others get time to end by themselves, are then told to (SIGTERM), and are killed at
last.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from commentree.errors import UserError
from commentree.launch.main import VERBS
from commentree.launch.supervision import restart_policy
from commentree.launch.supervision.restart_policy import Action, Exit

_TETHER = pathlib.Path(__file__).with_name("die_with_parent.py")
_POLL_S = 0.05
_TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Host:
  """A process to start.

  Attributes:
    name: what messages call it, "host 2".
    command: program and arguments.
    env: its whole environment.
    log: file that takes its output, appended to; None: the supervisor's own output.
  """

  name: str
  command: Sequence[str]
  env: Mapping[str, str]
  log: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """How patient a supervisor is.

  Attributes:
    max_restarts: restarts in a row without progress before it gives up.
    grace_s: seconds that hosts have to end by themselves once one ended badly, and
      again after SIGTERM.
    first_delay_s, longest_delay_s: seconds before a restart; the first doubles up to
      the longest.
  """

  max_restarts: int = 5
  grace_s: float = 30.0
  first_delay_s: float = 1.0
  longest_delay_s: float = 60.0


class Supervisor:
  """Runs hosts until they are done, are told to stop, or fail without progress."""

  def __init__(
    self,
    plan: Callable[[], Sequence[Host]],
    settings: Settings,
    newest_step: Callable[[], int | None] | None = None,
    noun: str = "checkpoint",
  ):
    """Makes a supervisor; `run` starts it.

    Args:
      plan: gives the hosts to start, afresh for each start.
      settings: how patient to be.
      newest_step: gives the newest checkpoint's step, which measures progress;
        without it no restart counts as progress.
      noun: what to call what that counts.
    """
    self._noun = noun
    self._plan = plan
    self._settings = settings
    self._newest_step = newest_step or (lambda: None)
    self._signals: list[int] = []
    self._passed_on = 0

  def run(self) -> int:
    """Supervises until the end; returns the exit code for the whole."""
    with self._signals_caught():
      return self._supervise()

  def _supervise(self) -> int:
    budget = restart_policy.RestartBudget(
      self._settings.max_restarts,
      self._settings.first_delay_s,
      self._settings.longest_delay_s,
    )
    # The first restart counts in any case: where the run began need not be known.
    start, best = 1, None
    while True:
      hosts = self._plan()
      exits = self._run_once(hosts, start)
      decision = restart_policy.decide(exits, self._stop_signal)
      if decision.cause is None:
        return decision.exit_code
      cause = hosts[decision.cause.host]
      what = f"{cause.name} {restart_policy.describe(decision.cause.code)}"
      if decision.action is Action.STOP:
        say(what)
        _show_tail(hosts, exits, decision.cause)
        return decision.exit_code
      newest = self._newest_step()
      progressed = newest is not None and (best is None or newest > best)
      delay = budget.next_delay(progressed=progressed)
      noun = self._noun
      at = f"no {noun} yet" if newest is None else f"newest {noun} {newest}"
      if delay is None:
        say(
          f"{what}; given up after {_count(start, 'start')},"
          f" {_count(budget.used + 1, 'failure')} in a row without a newer {noun}"
          f" ({at})"
          f"{_where(hosts)}"
        )
        _show_tail(hosts, exits, decision.cause)
        return decision.exit_code
      say(
        f"{what} ({at}); start {start + 1} in {delay:g} s, {budget.used} of at most"
        f" {budget.max_restarts} without a newer {noun}"
      )
      deadline = time.monotonic() + delay
      while self._stop_signal is None and time.monotonic() < deadline:
        time.sleep(min(_POLL_S, delay))
      if self._stop_signal is not None:
        return 128 + self._stop_signal
      start, best = start + 1, newest if progressed else best

  def _run_once(self, hosts: Sequence[Host], start: int) -> list[Exit]:
    """Starts all hosts and waits for all; returns their exits, the first one first."""
    running: dict[int, subprocess.Popen] = {}
    exits: list[Exit] = []
    bad_since, told = None, False
    try:
      for i, host in enumerate(hosts):
        running[i] = _start(host, start)
      while running:
        self._pass_signals_on(running.values())
        exits += _collect(running, told=told)
        now = time.monotonic()
        if bad_since is None and not all(map(self._orderly, exits)):
          bad_since = now
        elif bad_since is not None and now - bad_since > self._settings.grace_s:
          number = signal.SIGKILL if told else signal.SIGTERM
          for process in running.values():
            _signal_group(process, number)
          names = ", ".join(hosts[i].name for i in running)
          say(f"{names} did not end in {self._settings.grace_s:g} s: {number.name}")
          bad_since, told = now, True
        time.sleep(_POLL_S)
    finally:
      for process in running.values():
        _signal_group(process, signal.SIGKILL)
    return exits

  def _orderly(self, exit: Exit) -> bool:
    """Whether a host ended as it should: the others then take the time they need."""
    saved = self._stop_signal is not None and 128 + self._stop_signal
    return exit.code in (0, saved)

  @contextlib.contextmanager
  def _signals_caught(self) -> Iterator[None]:
    """Remembers the user's signals while entered."""
    # Under nohup SIGHUP is ignored, and stays so.
    caught = [s for s in _STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    previous = {s: signal.signal(s, self._on_signal) for s in caught}
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)

  def _on_signal(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._signals.append(number)

  @property
  def _stop_signal(self) -> int | None:
    """What the user asked for; a hung-up terminal asks for what SIGTERM asks for."""
    if not self._signals:
      return None
    first = self._signals[0]
    return signal.SIGTERM if first == signal.SIGHUP else first

  def _pass_signals_on(self, processes: Iterable[subprocess.Popen]) -> None:
    """Tells the hosts of the user's first signal; kills them at the second."""
    if self._stop_signal is None or self._passed_on == len(self._signals):
      return
    first, self._passed_on = self._passed_on == 0, len(self._signals)
    name = signal.Signals(self._signals[0]).name
    if first:
      say(f"{name}: waiting for the run to save and end; {name} again kills it")
    for process in processes:
      _signal_group(process, self._stop_signal if first else signal.SIGKILL)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `Settings`."""
  defaults = Settings()
  parser.add_argument(
    "--max_restarts",
    type=int,
    default=defaults.max_restarts,
    metavar="N",
    help="restarts in a row without a newer checkpoint before giving up; a run that"
    " gets on is never given up (default %(default)s)",
  )
  parser.add_argument(
    "--grace_s",
    type=float,
    default=defaults.grace_s,
    metavar="S",
    help="seconds that hosts have to end once one has failed, and again after"
    " SIGTERM (default %(default)g)",
  )


def settings_of(arguments: argparse.Namespace) -> Settings:
  """Returns the settings that flags give.

  Raises:
    UserError: for a number that makes no sense.
  """
  for flag in ("max_restarts", "grace_s"):
    if getattr(arguments, flag) < 0:
      raise UserError(f"--{flag}={getattr(arguments, flag)}: must not be negative")
  return Settings(arguments.max_restarts, arguments.grace_s)


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Returns a launcher's own flags, and the commentree command after `--`.

  Raises:
    UserError: if there is no such command.
  """
  argv = list(argv)
  split = argv.index("--") if "--" in argv else len(argv)
  arguments, command = parser.parse_args(argv[:split]), argv[split + 1 :]
  runnable = [verb for verb in VERBS if verb != "launch"]
  if not command or command[0] not in runnable:
    given = f"{command[0]!r} is no verb" if command else "there is no command"
    raise UserError(
      f"{parser.prog}: {given}; after the flags write -- and one of"
      f" {', '.join(runnable)}, as in -- train --gin_file=runs/demo.gin"
    )
  return arguments, command


def _start(host: Host, start: int) -> subprocess.Popen:
  """Starts a host in a session of its own, tied to this process."""
  output: IO[bytes] | None = None
  if host.log is not None:
    output = host.log.open("ab")
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    headline = f"--- start {start}, {now}: {shlex.join(host.command)}\n"
    output.write(headline.encode())
    output.flush()
  sys.stdout.flush()
  try:
    return subprocess.Popen(
      [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *host.command],
      env=dict(host.env),
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=output,
      start_new_session=True,
    )
  finally:
    if output is not None:
      output.close()


def _collect(running: dict[int, subprocess.Popen], *, told: bool) -> Iterator[Exit]:
  """Takes the hosts that have ended out of those running."""
  for i, process in list(running.items()):
    if (code := process.poll()) is not None:
      # What a host left behind in its group must not meet the next start.
      _signal_group(process, signal.SIGKILL)
      del running[i]
      yield Exit(i, code, ended_by_us=told)


def _signal_group(process: subprocess.Popen, number: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, number)


def _show_tail(hosts: Sequence[Host], exits: Sequence[Exit], cause: Exit) -> None:
  """Prints the end of the failed host's log, unless the console has shown it already.

  The same exit of a host that writes to the console tells the same there.
  """
  log = hosts[cause.host].log
  shown = any(hosts[e.host].log is None and e.code == cause.code for e in exits)
  if log is None or shown:
    return
  with contextlib.suppress(OSError):
    with log.open("rb") as stream:
      stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
      lines = stream.read().decode(errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("--- start ")]
    last = lines[starts[-1] + 1 if starts else 0 :]
    print(*(f"  {line}" for line in last[-_TAIL_LINES:]), sep="\n", file=sys.stderr)


def _where(hosts: Sequence[Host]) -> str:
  logs = [host.log for host in hosts if host.log is not None]
  return f"; logs are in {logs[0].parent}" if logs else ""


def _count(number: int, noun: str) -> str:
  return f"{number} {noun}" + ("" if number == 1 else "s")


def say(message: str) -> None:
  """Tells the operator, in one line on stderr."""
  print(f"commentree launch: {message}", file=sys.stderr, flush=True)
