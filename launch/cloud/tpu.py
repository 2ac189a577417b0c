"""`commentree launch tpu`: TPU VM slices and queued resources, through `gcloud`."""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence

from commentree.errors import UserError
from commentree.launch.cloud import tpu_flags, tpu_watch, worker_scripts
from commentree.launch.cloud.queued_resources import (
  PATIENCE_S,
  QueueState,
  SlicePlace,
  SliceRequest,
  Slices,
)
from commentree.launch.cloud.shell import CommandError, Shell, write_private
from commentree.launch.cloud.tpu_watch import Next, NextAction
from commentree.launch.cloud.worker_install import Package
from commentree.launch.supervision import progress, supervisor
from commentree.launch.supervision.supervisor import say
from commentree.training.cluster.coordination import host_secret

# Slices that are taken away at once are asked for ever more slowly, up to this.
_LONGEST_DELAY_S = 600


def main(argv: Sequence[str]) -> int:
  """Runs one of the verbs; returns the exit code."""
  parser = tpu_flags.parser()
  takes_command = bool(argv) and argv[0] in ("run", "up")
  if takes_command and not {"-h", "--help"} & set(argv):
    arguments, command = supervisor.parse(parser, argv)
  else:
    arguments, command = parser.parse_args(argv), []
  place = SlicePlace(
    arguments.name, arguments.zone, arguments.project, arguments.num_slices
  )
  job = _Job(place, Shell(arguments.dry_run), arguments, command)
  return getattr(job, arguments.verb)()


class _Job:
  """The verbs, over one set of slices."""

  def __init__(
    self,
    place: SlicePlace,
    shell: Shell,
    arguments: argparse.Namespace,
    command: Sequence[str],
  ):
    self._shell = shell
    patience_s = getattr(arguments, "patience_s", PATIENCE_S)
    self._slices = Slices(place, shell, patience_s)
    self._absence = tpu_watch.Absence(patience_s)
    self._arguments = arguments
    self._command = command
    # Mistakes in flags are reported before anything is asked for.
    if arguments.verb in ("create", "up"):
      self._request = _request(arguments)
    if arguments.verb in ("setup", "up"):
      self._package = Package(arguments.package)
      _check_copied(arguments.copy)
    if arguments.verb in ("run", "up"):
      self._env = worker_scripts.parse_env(arguments.env, os.environ)
      self._warn_of_local_model_dir()

  @property
  def _name(self) -> str:
    return self._slices.place.name

  def _say(self, message: str) -> None:
    if not self._shell.dry_run:
      say(message)

  def create(self) -> int:
    """Asks for the slices, and says what they cost."""
    self._slices.create(self._request)
    chips = self._request.chips
    if chips is not None:
      total = chips * self._slices.place.num_slices
      self._say(
        f"{self._name}: {total} chips asked for: {total} chip-hours an hour from ACTIVE"
        f" until `{self._slices.place.delete_line}`"
      )
    return 0

  def wait(self) -> int:
    """Waits until the slices are there."""
    state = self._slices.wait(self._arguments.poll_s)
    if not state.ready:
      raise UserError(
        f"{self._name} is {state.name or 'not there'}"
        + (f": {state.detail}" if state.detail else "")
        + f"; `{self._slices.place.delete_line}`, then create it anew"
      )
    return 0

  def setup(self) -> int:
    """Installs on all workers."""
    with self._staging() as folder:
      self._slices.ssh(worker_scripts.prepare())
      package = self._package.stage(folder, self._shell)
      if copied := [*([package] if package else []), *self._arguments.copy]:
        self._slices.copy(copied)
      self._say(f"{self._name}: installing on all workers, some minutes")
      self._slices.ssh(
        worker_scripts.install(
          self._package.requirement, source=self._package.is_source
        )
      )
      if self._arguments.prepare:
        self._slices.ssh(worker_scripts.prepared(self._arguments.prepare))
    return 0

  def run(self, *, again: bool = False) -> int:
    """Starts the command on all workers."""
    with self._staging() as folder:
      env, secret = (
        pathlib.Path(folder) / name
        for name in (worker_scripts.ENV, worker_scripts.SECRET)
      )
      self._shell.note(f"{env}, mode 600, sets {', '.join(self._env) or 'nothing'}")
      self._shell.note(f"{secret}, mode 600, from `{host_secret.MAKE}`")
      if not self._shell.dry_run:
        write_private(env, worker_scripts.env_file(self._env))
        # New for each start; hosts that run read it when they start again.
        write_private(secret, host_secret.make() + "\n")
      self._slices.copy([str(env), str(secret)])
    max_restarts = self._arguments.max_restarts
    self._slices.ssh(worker_scripts.start(self._command, max_restarts, again=again))
    if not again:
      self._say(
        f"{self._name}: started; `commentree launch tpu logs --name={self._name}`"
      )
    return 0

  def logs(self) -> int:
    """Shows logs; does not return if it follows them."""
    arguments = self._arguments
    shown = worker_scripts.logs(arguments.lines, follow=arguments.follow)
    self._slices.follow(shown, arguments.worker)
    return 0

  def status(self) -> int:
    """Prints the request's state and the workers'."""
    state = self._slices.state()
    if not self._shell.dry_run:
      print(f"{self._name}: {state.name or 'not there'} {state.detail}".rstrip())
      if not state.ready:
        return 0
    for worker in worker_scripts.parse_status(
      self._slices.ask(worker_scripts.status())
    ):
      code = "" if worker.code is None else f" ({worker.code})"
      print(f"{worker.host}: {worker.state}{code}: {worker.last_line}")
    return 0

  def stop(self) -> int:
    """Ends the run on all workers at once; it saves first."""
    self._slices.ssh(worker_scripts.stop(self._arguments.timeout_s))
    return 0

  def delete(self) -> int:
    """Deletes the slices."""
    self._slices.delete()
    return 0

  def up(self) -> int:
    """Brings a run up, and keeps it up until it is over."""
    try:
      return self._keep_up()
    except KeyboardInterrupt:
      say(
        f"{self._name}: no longer watched, the run continues, and its bill;"
        " `up` again watches it, `stop` and `delete` end it"
      )
      return 130

  def _keep_up(self) -> int:
    if self._shell.dry_run:
      return self.create() or self.wait() or self.setup() or self.run()
    poll_s = self._arguments.poll_s
    delay_s, adopt = poll_s, True
    while True:
      self._bring_up(adopt=adopt)
      begun, adopt = time.monotonic(), False
      verdict = self._watch()
      if verdict.next is Next.END:
        break
      if time.monotonic() - begun > _LONGEST_DELAY_S:
        delay_s = poll_s
      say(f"{self._name}: {verdict.reason}; asking for new ones in {delay_s:g} s")
      time.sleep(delay_s)
      delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
    say(f"{self._name}: {verdict.reason} (exit code {verdict.exit_code})")
    if self._slices.state().name:
      if self._arguments.delete_when_done and verdict.exit_code == 0:
        return self.delete()
      say(f"end the bill: {self._slices.place.delete_line}")
    return verdict.exit_code

  def _bring_up(self, *, adopt: bool) -> None:
    """Leaves with the run under way, on slices that are there.

    Args:
      adopt: take slices and a run as they are found; else begin with new ones.
    """
    while True:
      state = self._slices.state()
      if state.name and not (adopt and state.hopeful):
        self._slices.clear(self._arguments.poll_s)
        self._absence.clear()
        state = self._slices.state()
      if not state.name:
        self.create()
      state = self._slices.wait(self._arguments.poll_s)
      if state.name == "FAILED":
        raise UserError(
          f"{self._name} FAILED: {state.detail or 'no reason was given'}; mend that,"
          f" then `{self._slices.place.delete_line}` and `up` again"
        )
      self._check_wanted(state)
      if not state.ready:
        adopt = False
        continue
      try:
        if adopt and self._is_under_way():
          say(f"{self._name}: a run is under way: watching it")
          return
        self.setup()
        self.run(again=True)
        return
      except CommandError as error:
        # Slices may go at any time; no other failure mends itself.
        state = self._slices.state()
        self._check_wanted(state)
        if not state.ready or self._gone_for_good():
          say(f"{self._name}: {error}; the slices went meanwhile")
          adopt = False
        elif self._absence.since is None:
          raise
        else:
          # They may come back as they were, a run under way among them.
          adopt = True
          self._say_again(error)
          time.sleep(self._arguments.poll_s)

  def _check_wanted(self, state: QueueState) -> None:
    """Raises a UserError if a user deleted the slices: they stay deleted."""
    if state.deleted:
      raise UserError(f"{self._name}: a user deleted the slices")

  def _is_under_way(self) -> bool:
    workers = worker_scripts.parse_status(self._slices.ask(worker_scripts.status()))
    return any(worker.state == "running" for worker in workers)

  def _watch(self) -> NextAction:
    """Watches slices and run until it is over or needs new slices."""
    last_line = ""
    while True:
      time.sleep(self._arguments.poll_s)
      workers: list[worker_scripts.WorkerStatus] = []
      try:
        verdict = tpu_watch.judge_queue(self._slices.state())
        if verdict is None:
          workers = worker_scripts.parse_status(
            self._slices.ask(worker_scripts.status())
          )
          verdict = tpu_watch.judge_workers(workers)
          self._absence.clear()
        if verdict.next is Next.START:
          say(f"{self._name}: {verdict.reason}; starting it there")
          self.run(again=True)
      except CommandError as error:
        verdict = self._explain(error)
      if verdict.next in (Next.END, Next.RECREATE):
        return verdict
      if workers and workers[0].last_line != last_line:
        last_line = workers[0].last_line
        say(f"{self._name}: {len(workers)} workers; {last_line}")

  def _explain(self, error: CommandError) -> NextAction:
    """Says why slices do not answer: they may have been taken away this moment."""
    try:
      verdict = tpu_watch.judge_queue(self._slices.state())
      if verdict is None and (reason := self._gone_for_good()):
        verdict = NextAction(Next.RECREATE, reason)
    except CommandError as another:
      verdict, error = None, another
    if verdict is not None:
      return verdict
    self._say_again(error)
    return NextAction(Next.WAIT, str(error))

  def _gone_for_good(self) -> str:
    """Looks at the VMs of an active request: why to ask for new ones; empty if not to.

    Raises:
      CommandError: if gcloud cannot tell.
    """
    return self._absence.judge(self._slices.absent_nodes(), time.monotonic())

  def _say_again(self, error: CommandError) -> None:
    absent = self._absence.named
    what = f"{error}; {absent}" if absent else str(error)
    say(f"{self._name}: {what}; looking again in {self._arguments.poll_s:g} s")

  def _staging(self):
    if self._shell.dry_run:
      return _Named(pathlib.Path(tempfile.gettempdir()) / f"commentree_{self._name}")
    return tempfile.TemporaryDirectory(prefix="commentree_")

  def _warn_of_local_model_dir(self) -> None:
    model_dir = progress.model_dir_of(self._command)
    if model_dir is not None and "://" not in model_dir:
      say(
        f"MODEL_DIR {model_dir!r} is a folder of each VM and ends with it; unless all"
        " workers share it, write gs://BUCKET/FOLDER"
      )


class _Named:
  """A folder that is only spoken of."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __enter__(self) -> str:
    return str(self._path)

  def __exit__(self, *unused) -> None:
    pass


def _check_copied(paths: Sequence[str]) -> None:
  for path in paths:
    if not pathlib.Path(path).is_file():
      raise UserError(f"--copy={path}: no such file")
    if ":" in path:
      raise UserError(f"--copy={path}: scp takes a name with a colon for a host's")


def _request(arguments: argparse.Namespace) -> SliceRequest:
  return SliceRequest(
    accelerator_type=arguments.accelerator_type,
    tpu_type=arguments.type,
    topology=arguments.topology,
    runtime_version=arguments.runtime_version,
    spot=arguments.spot,
    reserved=arguments.reserved,
    service_account=arguments.service_account,
    network=arguments.network,
    subnetwork=arguments.subnetwork,
    valid_until_duration=arguments.valid_until_duration,
  )
