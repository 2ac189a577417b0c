"""gin settings from the command line, checked before anything heavy is imported.

Flags are T5X's: `--gin_file` (repeatable, later files win), `--gin_search_paths` and
`--gin.NAME=VALUE`. What T5X lets pass is an error here: a misspelt macro, a missing
REQUIRED setting (all are reported at once), a value of the wrong kind.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import gin
from gin import config as gin_config

from ..errors import UserError
from . import quiet
from .configurables import RunConfig, register

GIN_ROOT = pathlib.Path(__file__).parent.parent / "gin"

_OVERRIDE = "--gin."
_REQUIRED = "%gin.REQUIRED"
_IMPORT = re.compile(r"^(?:import|from)\s", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A checked command line.

  Attributes:
    run: the settings of all parts.
    arguments: the flags that are not gin's.
    text: every binding in force, as a gin file.
  """

  run: RunConfig
  arguments: argparse.Namespace
  text: str


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns (other arguments, `NAME=VALUE` of each `--gin.NAME=VALUE`).

  Raises:
    UserError: for a `--gin.` flag without a value.
  """
  others, overrides = [], []
  for argument in argv:
    if not argument.startswith(_OVERRIDE):
      others.append(argument)
      continue
    name, equals, value = argument.removeprefix(_OVERRIDE).partition("=")
    if not equals or not name or not value:
      raise UserError(f"{argument}: write it as --gin.NAME=VALUE")
    overrides.append(f"{name} = {value}")
  return others, overrides


def add_gin_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds T5X's gin flags to a parser; `--gin.NAME=VALUE` is taken off before it."""
  parser.add_argument(
    "--gin_file",
    action="append",
    default=[],
    required=required,
    metavar="FILE",
    help="gin file, sought in --gin_search_paths; repeatable, later ones win",
  )
  parser.add_argument(
    "--gin_search_paths",
    default="",
    metavar="DIRS",
    help="comma-separated folders to seek gin files in, before the current one and"
    " those of commentree",
  )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Parsed:
  """Parses flags and gin settings into a checked `RunConfig`.

  Raises:
    UserError: for anything the user can mend, in one line.
  """
  others, overrides = split_overrides(argv)
  arguments = parser.parse_args(others)
  run = load(arguments.gin_file, overrides, arguments.gin_search_paths)
  return Parsed(run, arguments, gin.config_str(max_line_length=88))


def load(
  files: Sequence[str], overrides: Sequence[str] = (), search_paths: str = ""
) -> RunConfig:
  """Builds the settings of a run from gin files and `NAME = VALUE` overrides.

  Raises:
    UserError: for anything the user can mend, in one line.
  """
  gin.clear_config(clear_constants=False)
  register()
  # gin would also seek 'runs/common.gin' in an importable package `runs`, and fails on
  # a folder of that name without an __init__.py, such as that of a user's MODEL_DIRs.
  del gin_config._FILE_READERS[1:]
  # The current folder is searched by gin itself, last; ours come with the package.
  folders = [p for p in search_paths.split(",") if p] + [".", str(GIN_ROOT)]
  for folder in reversed(folders):
    gin.add_config_file_search_path(folder)
  # A module that a gin file imports, to register tasks, may lie where one works.
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  for path in files:
    if _IMPORT.search(_find(path, folders).read_text("utf-8", "replace")):
      quiet.load_tensorflow()  # before the module that registers tasks does, aloud
    _guarded(lambda path=path: gin.parse_config_file(path), path)
  known = set(_macros())
  for override in overrides:
    name = override.partition(" =")[0]
    _check_name(name, known)
    _guarded(lambda text=override: gin.parse_config(text), f"--gin.{name}", override)
  _check_macros(known)
  _check_required()
  return _guarded(lambda: gin.get_configurable(RunConfig)(), "settings")


def _find(path: str, folders: Iterable[str]) -> pathlib.Path:
  for candidate in (pathlib.Path(path), *(pathlib.Path(f) / path for f in folders)):
    if candidate.is_file():
      return candidate
  available = sorted(
    str(p.relative_to(GIN_ROOT)) for p in GIN_ROOT.rglob("*.gin") if p.is_file()
  )
  hint = suggestion(path, available) or f"; there are {', '.join(available)}"
  raise UserError(f"--gin_file={path}: no such file{hint}")


def _macros() -> dict[str, Any]:
  """Macros in force and their values, unevaluated."""
  return {
    scope: parameters["value"]
    for (scope, selector), parameters in gin_config._CONFIG.items()
    if selector == "gin.macro" and "value" in parameters
  }


def _references(value: Any) -> Iterable[str]:
  """Macros that a bound value refers to."""
  if isinstance(value, gin_config.ConfigurableReference):
    if value.configurable.selector == "gin.macro":
      yield "/".join(value.scopes) if value.scopes else value.selector
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _references(key)
      yield from _references(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _references(item)


def _check_name(name: str, macros: set[str]) -> None:
  """Refuses a setting that no file declares."""
  if "." in name:
    return  # gin itself checks Configurable.parameter
  if name not in macros:
    raise UserError(
      f"--gin.{name}: no such setting{suggestion(name, macros)}; the gin files given"
      f" declare {', '.join(sorted(macros)) or 'none'}"
    )


def _check_macros(known: set[str]) -> None:
  """Refuses macros that nothing reads: a misspelling would change nothing, silently."""
  used = {
    reference
    for parameters in gin_config._CONFIG.values()
    for value in parameters.values()
    for reference in _references(value)
  }
  for name in sorted(known - used):
    raise UserError(f"{name}: nothing reads this setting{suggestion(name, used)}")


def _check_required() -> None:
  missing = sorted(n for n, value in _macros().items() if str(value) == _REQUIRED)
  if missing:
    flags = " ".join(f"--gin.{name}=…" for name in missing)
    raise UserError(f"missing REQUIRED settings: {', '.join(missing)}; add {flags}")


def _guarded(action, where: str, text: str | None = None):
  """Runs a gin action; its errors become one line that names the setting."""
  logging.disable(logging.ERROR)  # gin logs each search path that lacks a file
  try:
    return action()
  except UserError as error:
    # gin adds lines on which configurable was being called.
    raise UserError(str(error).splitlines()[0]) from error
  except (
    SyntaxError,
    ValueError,
    TypeError,
    OSError,
    ImportError,
    AttributeError,
  ) as e:
    raise UserError(_one_line(e, where, text)) from e
  finally:
    logging.disable(logging.NOTSET)


def _one_line(error: Exception, where: str, text: str | None) -> str:
  cause: BaseException = error
  while cause.__cause__ is not None:
    cause = cause.__cause__
  if isinstance(cause, UserError):
    return str(cause)
  message = " ".join(str(error).split())
  message = re.sub(r" In (file|bindings string) .*$", "", message)
  if found := re.search(r"No configurable matching '?([\w./]+)'?", message):
    return f"{where}: no such setting {found[1]!r}" + suggestion(
      found[1], [c.__name__ for c in register()]
    )
  if found := re.search(
    r"Configurable '?([\w.]+)'? doesn't have a parameter named '?(\w+)'?", message
  ):
    owner = found[1].rpartition(".")[2]
    fields = next(
      (
        [f.name for f in dataclasses.fields(c)]
        for c in register()
        if c.__name__ == owner
      ),
      [],
    )
    return f"{where}: {owner} has no setting {found[2]!r}" + suggestion(
      found[2], fields
    )
  if isinstance(cause, ModuleNotFoundError):
    return f"{where}: {message}: start where that module lies, or install it"
  if isinstance(error, SyntaxError):
    if text is not None:
      value = text.partition(" = ")[2]
      return (
        f"{where}={value}: is not a Python literal; text needs quotes,"
        f" as in {where}='\"{value}\"'"
      )
    line = f", line {error.lineno}" if error.lineno else ""
    return f"{where}{line}: {error.msg or 'is not valid gin'}"
  if found := re.search(r"unexpected keyword argument '(\w+)'", message):
    return f"{where}: no such setting {found[1]!r}"
  return f"{where}: {message}"


def suggestion(name: str, known: Iterable[str]) -> str:
  """A question whether the nearest known name was meant, or nothing."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
  return f"; did you mean {close[0]}?" if close else ""
