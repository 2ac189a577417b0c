"""Runs the cloud's own commands, or shows what would run.

Commands are argument lists, never strings: a shell sees them only when a dry run
prints them, quoted. Nothing secret goes into them (see `worker_scripts.env_file`).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from commentree.errors import UserError

# Ends a text among the lines of a dry run.
_END = "END_OF_COMMENTREE_TEXT"


class CommandError(UserError):
  """A command of the cloud's failed.

  Attributes:
    output: what it wrote to stderr, if that was kept.
  """

  def __init__(self, message: str, output: str = ""):
    super().__init__(message)
    self.output = output


@dataclasses.dataclass(frozen=True)
class Shell:
  """Runs commands.

  Attributes:
    dry_run: print them to stdout instead, as lines for a shell.
  """

  dry_run: bool = False

  def note(self, text: str) -> None:
    """In a dry run, prints a remark among the commands."""
    if self.dry_run:
      print(f"# {text}")

  def run(self, *commands: Sequence[str]) -> None:
    """Runs commands at the same time, their output shown.

    Raises:
      CommandError: if one fails, once all have ended.
    """
    if self.dry_run:
      for command in commands:
        print(shlex.join(command))
      return
    sys.stdout.flush()
    running = [subprocess.Popen(_found(command)) for command in commands]
    try:
      codes = [process.wait() for process in running]
    except BaseException:
      for process in running:
        process.terminate()
      raise
    for command, code in zip(commands, codes):
      if code:
        raise CommandError(f"{_short(command)} failed with exit code {code}")

  def outputs(self, *commands: Sequence[str]) -> list[str]:
    """Runs commands at the same time; returns what each wrote to stdout.

    In a dry run they are printed, and nothing comes back.

    Raises:
      CommandError: if one fails; holds what it wrote to stderr.
    """
    if self.dry_run:
      self.run(*commands)
      return ["" for _ in commands]
    running = [
      subprocess.Popen(
        _found(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
      )
      for command in commands
    ]
    ended = [process.communicate() for process in running]
    for command, process, (_, error) in zip(commands, running, ended):
      if process.returncode:
        lines = error.strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        raise CommandError(
          f"{_short(command)} failed with exit code {process.returncode}{said}", error
        )
    return [output for output, _ in ended]

  def feed(self, command: Sequence[str], text: str, maker: str | None = None) -> None:
    """Runs a command that reads a text from stdin, its output shown.

    Args:
      command: the command.
      text: what it reads.
      maker: a shell's command that makes another such text: a dry run shows that
        instead of a text that is secret.

    Raises:
      CommandError: if it fails.
    """
    if self.dry_run and maker:
      print(f"{maker} | {shlex.join(command)}")
      return
    if self.dry_run:
      print(f"{shlex.join(command)} <<'{_END}'\n{text}{_END}")
      return
    sys.stdout.flush()
    code = subprocess.run(
      _found(command), input=text, text=True, check=False
    ).returncode
    if code:
      raise CommandError(f"{_short(command)} failed with exit code {code}")

  def replace(self, command: Sequence[str]) -> None:
    """Becomes a command, as for following logs; in a dry run prints it."""
    if self.dry_run:
      print(shlex.join(command))
      return
    sys.stdout.flush()
    found = _found(command)
    os.execv(found[0], list(found))


def write_private(path: pathlib.Path, text: str) -> None:
  """Writes a new file that its owner alone can read."""
  with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
    stream.write(text)


def _found(command: Sequence[str]) -> Sequence[str]:
  path = shutil.which(command[0])
  if path is None:
    raise UserError(f"{command[0]}: no such program on PATH; see docs/pods.md")
  return [path, *command[1:]]


def _short(command: Sequence[str]) -> str:
  """The words of a command before its flags."""
  words = []
  for word in command:
    if word.startswith("-"):
      break
    words.append(word)
  return shlex.join(words)
