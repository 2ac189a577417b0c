"""Whether a command moved on.

Training does by the newest `checkpoint_<step>` in its MODEL_DIR, inference by how many
parts of its output are done.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

_FLAG = "--gin.MODEL_DIR="
_OUTPUT = "--output"
_CHECKPOINT = re.compile(r"checkpoint_(\d+)/?$")
_PART = re.compile(r"\d+-\d+-(\d+|end)\.\w+")
_REMOTE = re.compile(r"\w+://")
_LISTING = """
import sys
from etils import epath
print(*(path.name for path in epath.Path(sys.argv[1]).iterdir()), sep="\\n")
"""
_LISTING_TIMEOUT_S = 120


def model_dir_of(command: Sequence[str]) -> str | None:
  """Returns the value of `--gin.MODEL_DIR=` in a command; None if it has none."""
  for argument in reversed(command):
    if argument.startswith(_FLAG):
      try:
        value = ast.literal_eval(argument.removeprefix(_FLAG))
      except (SyntaxError, ValueError):
        return None
      return value if isinstance(value, str) else None
  return None


def output_of(command: Sequence[str]) -> str | None:
  """Returns the value of `--output` in a command; None if it has none."""
  following = [*command[1:], ""]
  for argument, after in reversed(list(zip(command, following))):
    name, equals, value = argument.partition("=")
    if name == _OUTPUT:
      return (value if equals else after) or None
  return None


def noun(command: Sequence[str]) -> str:
  """Returns what a command's progress is counted in."""
  return "part" if "infer" in command else "checkpoint"


def reader(command: Sequence[str]) -> Callable[[], int | None]:
  """Returns what tells how far a command has come, None where nothing is to be seen."""
  if noun(command) == "part":
    output = output_of(command)
    return lambda: None if output is None else parts_of(output)
  model_dir = model_dir_of(command)
  return lambda: None if model_dir is None else newest_step(model_dir)


def newest_step(model_dir: str) -> int | None:
  """Returns the step of the newest checkpoint, None if none can be seen.

  A bucket is listed by a process of its own: what reads buckets is heavy, and a
  supervisor must outlive a library that hangs.
  """
  if _REMOTE.match(model_dir):
    return _newest(_list_remote(model_dir))
  try:
    return _newest(os.listdir(model_dir))
  except OSError:
    return None


def parts_of(output: str) -> int | None:
  """Returns how many parts of an output are done, None if none can be seen."""
  folder = f"{output}.parts"
  try:
    names = _list_remote(folder) if _REMOTE.match(folder) else os.listdir(folder)
  except OSError:
    return None
  return sum(map(bool, map(_PART.fullmatch, names))) or None


def _newest(names: Iterable[str]) -> int | None:
  found = (_CHECKPOINT.match(name) for name in names)
  return max((int(match[1]) for match in found if match), default=None)


def _list_remote(model_dir: str) -> list[str]:
  try:
    done = subprocess.run(
      [sys.executable, "-P", "-c", _LISTING, model_dir],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=_LISTING_TIMEOUT_S,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return []
  return done.stdout.split("\n")
