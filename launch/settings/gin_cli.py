"""gin settings from the command line, checked before anything heavy is imported.

Flags are T5X's: `--gin_file` (repeatable, later files win), `--gin_search_paths` and
`--gin.NAME=VALUE`. What T5X lets pass is an error here: a misspelt macro, a missing
REQUIRED setting (all are reported at once), a value of the wrong kind.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import pathlib
import pprint
import re
import sys
import tokenize
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

import gin
from commentree import compat
from commentree.errors import UserError, suggestion
from commentree.launch.settings import config_data, library_noise
from commentree.launch.settings.configurables import RunConfig, register
from gin import config as gin_config

GIN_ROOT = pathlib.Path(__file__).parents[2] / "gin"

_OVERRIDE = "--gin."
_REQUIRED = "%gin.REQUIRED"
# Settings that need not be given where another is.
_INSTEAD = {"TRAIN_STEPS": "TRAIN_EPOCHS"}
_IMPORT = re.compile(r"^\s*(?:import|from)\s", re.MULTILINE)
_LONGEST_VALUE = 100
_WIDTH = 88
_INCLUDE = re.compile(r"^\s*include\s+(['\"])(.+)\1", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A checked command line.

  Attributes:
    run: the settings of all parts.
    arguments: the flags that are not gin's.
    text: every setting in force, defaults included, as a gin file.
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


def add_override_flag(parser: argparse.ArgumentParser | Any) -> None:
  """Lists `--gin.NAME=VALUE` in a parser's help; `split_overrides` takes them off."""
  parser.add_argument(
    f"{_OVERRIDE}NAME=VALUE",
    action="store_true",
    dest="overrides",
    default=argparse.SUPPRESS,
    help="a setting, before those of files; VALUE as Python writes it, so text in"
    " quotes of its own: --gin.MODEL_DIR='\"runs/mine\"'; repeatable",
  )


def add_gin_flags(
  parser: argparse.ArgumentParser | Any, *, required: bool = True
) -> None:
  """Adds T5X's gin flags to a parser, or to a group of its arguments."""
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
  add_override_flag(parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Parsed:
  """Parses flags and gin settings into a checked `RunConfig`.

  Raises:
    UserError: for anything the user can mend, in one line.
  """
  others, overrides = split_overrides(argv)
  arguments = parser.parse_args(others)
  run = load(arguments.gin_file, overrides, arguments.gin_search_paths)
  return Parsed(run, arguments, text_in_force(run))


def text_in_force(run: RunConfig) -> str:
  """Returns every setting in force as a gin file that gives the same run.

  Args:
    run: the settings that were loaded last.
  """
  bound: dict[str, set[str]] = {}
  for (_, selector), parameters in compat.gin_bindings().items():
    bound.setdefault(selector.rpartition(".")[2], set()).update(parameters)
  defaults = sorted(_defaults(run, bound))
  heading = ["", "# Defaults in force:", f"# {'=' * 78}"] if defaults else []
  text = gin.config_str(max_line_length=_WIDTH)
  return "\n".join([text.rstrip("\n"), *heading, *defaults, ""])


def _defaults(config: Any, bound: Mapping[str, set[str]]) -> Iterator[str]:
  """Yields the bindings of what nothing binds, in a part of the settings."""
  owner = type(config).__name__
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    given = field.name in bound.get(owner, ())
    if dataclasses.is_dataclass(value):
      part = type(value).__name__
      if not given and part in bound:
        continue  # what is bound of it is not what is in force here
      if not given:
        yield f"{owner}.{field.name} = @{part}()"
      yield from _defaults(value, bound)
    elif not given:
      # As it was declared: what became of it may follow from other settings.
      default = field.default
      if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
      yield _binding(f"{owner}.{field.name}", default)


def _binding(name: str, value: Any) -> str:
  """Returns `NAME = VALUE`, on several lines if it is long."""
  line = f"{name} = {value!r}"
  if len(line) <= _WIDTH:
    return line
  shown = pprint.pformat(value, width=_WIDTH - 4, compact=True).splitlines()
  return "\n    ".join([f"{name} = \\", *shown])


def load(
  files: Sequence[str],
  overrides: Sequence[str] = (),
  search_paths: str = "",
  flags: Sequence[str] = (),
) -> RunConfig:
  """Builds the settings of a run from gin files and `NAME = VALUE` overrides.

  The files are the user's own: they may import modules, also of the current folder.

  Args:
    files: gin files; later ones win.
    overrides: `NAME = VALUE` of the user's `--gin.` flags.
    search_paths: folders to seek files in, with commas between.
    flags: `CLASS.FIELD = VALUE` of the verb's other flags; they win over the rest.

  Raises:
    UserError: for anything the user can mend, in one line.
  """
  # The current folder is searched by gin itself, last; ours come with the package.
  folders = [p for p in search_paths.split(",") if p] + [".", str(GIN_ROOT)]
  _begin(folders)
  for path in files:
    if _imports(_find(path, folders), folders):
      _let_import()
    _guarded(lambda path=path: gin.parse_config_file(path), path)
  return _finish(overrides, flags)


def load_text(
  text: str,
  where: str,
  overrides: Sequence[str] = (),
  *,
  trusted: bool = False,
  flags: Sequence[str] = (),
) -> RunConfig:
  """Builds the settings of a run from those that lie in its MODEL_DIR.

  Args:
    text: of the gin file.
    where: its name, for errors.
    overrides: `NAME = VALUE` of the user's.
    trusted: whether it may import modules; else it is data, see `config_data`.
    flags: as of `load`.

  Raises:
    UserError: for anything the user can mend, in one line.
  """
  _begin([str(GIN_ROOT)])
  if not trusted:
    config_data.check(text, where)
  elif _IMPORT.search(text):
    _let_import()
  _guarded(lambda: gin.parse_config(text), where)
  return _finish(overrides, flags)


def _begin(folders: Sequence[str]) -> None:
  """Forgets what was set before."""
  gin.clear_config(clear_constants=False)
  register()
  # gin would also seek 'runs/common.gin' in an importable package `runs`, and fails on
  # a folder of that name without an __init__.py, such as that of a user's MODEL_DIRs.
  compat.seek_gin_files_in_folders_alone()
  for folder in reversed(folders):
    gin.add_config_file_search_path(folder)


def _let_import() -> None:
  """Gets ready for a gin file that imports modules, as a rule to register tasks."""
  # They may lie where one works.
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  # Before the module does, which would not keep it quiet.
  library_noise.load_tensorflow()


def _finish(overrides: Sequence[str], flags: Sequence[str]) -> RunConfig:
  """Applies overrides and flags to what gin has read; returns the settings."""
  known = set(_macros())
  for override in overrides:
    name = override.partition(" =")[0]
    _check_name(name, known)
    _guarded(lambda text=override: gin.parse_config(text), f"--gin.{name}", override)
  _check_macros(known)
  _check_required()
  gin.parse_config(flags)  # After the checks: a macro that they replace is unread now.
  run = _guarded(lambda: gin.get_configurable(RunConfig)(), "settings")
  _check_types(run)
  return run


def _check_types(config: Any) -> None:
  """Refuses values of another type than the field's, in all settings."""
  owner, hints = type(config), typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(hints[field.name]):
      if not isinstance(value, hints[field.name]):
        raise UserError(
          f"{owner.__name__}.{field.name} is of type {type(value).__name__}: must be"
          f" @{hints[field.name].__name__}()"
        )
      _check_types(value)
      continue
    try:
      msgspec.convert(value, hints[field.name])
    except msgspec.ValidationError as error:
      shown = repr(value)[:_LONGEST_VALUE]
      raise UserError(f"{owner.__name__}.{field.name} = {shown}: {error}") from error


def _imports(
  path: pathlib.Path, folders: Sequence[str], above: tuple[pathlib.Path, ...] = ()
) -> bool:
  """Whether a gin file, or one that it includes, imports a module."""
  text = path.read_text("utf-8", "replace")
  if _IMPORT.search(text):
    return True
  included = (_candidates(match[2], folders) for match in _INCLUDE.finditer(text))
  return any(
    _imports(found[0], folders, (*above, path))
    for found in included
    if found and found[0] not in (*above, path)
  )


def _candidates(path: str, folders: Iterable[str]) -> list[pathlib.Path]:
  places = (pathlib.Path(path), *(pathlib.Path(f) / path for f in folders))
  return [place for place in places if place.is_file()]


def _find(path: str, folders: Iterable[str]) -> pathlib.Path:
  if found := _candidates(path, folders):
    return found[0]
  available = sorted(
    str(p.relative_to(GIN_ROOT)) for p in GIN_ROOT.rglob("*.gin") if p.is_file()
  )
  hint = suggestion(path, available) or f"; there are {', '.join(available)}"
  raise UserError(f"--gin_file={path}: no such file{hint}")


def _macros() -> dict[str, Any]:
  """Macros in force and their values, unevaluated."""
  return {
    scope: parameters["value"]
    for (scope, selector), parameters in compat.gin_bindings().items()
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
  """Refuses macros that nothing sets, and those that nothing reads.

  A misspelt one would change nothing, silently.
  """
  used = {
    reference
    for parameters in compat.gin_bindings().values()
    for value in parameters.values()
    for reference in _references(value)
  }
  for name in sorted(used - known):
    if not compat.is_gin_constant(name):
      raise UserError(f"%{name}: nothing sets this macro{suggestion(name, known)}")
  for name in sorted(known - used):
    raise UserError(f"{name}: nothing reads this setting{suggestion(name, used)}")


def _check_required() -> None:
  macros = _macros()
  missing = sorted(n for n, value in macros.items() if str(value) == _REQUIRED)
  for name in [n for n in missing if macros.get(_INSTEAD.get(n, "")) is not None]:
    gin.parse_config(f"{name} = None")
    missing.remove(name)
  if missing:
    flags = " ".join(f"--gin.{name}=…" for name in missing)
    told = [f"{n} (or {_INSTEAD[n]})" if n in _INSTEAD else n for n in missing]
    raise UserError(f"missing REQUIRED settings: {', '.join(told)}; add {flags}")


def still_needed(defaults: Sequence[str], overrides: Sequence[str]) -> list[str]:
  """Returns those defaults, `NAME = VALUE`, that no override stands in for."""
  given = {override.partition(" =")[0] for override in overrides}
  return [
    default
    for default in defaults
    if _INSTEAD.get(default.partition(" =")[0]) not in given
  ]


def _guarded(action, where: str, text: str | None = None):
  """Runs a gin action; its errors become one line that names the setting."""
  logging.disable(logging.ERROR)  # gin logs each search path that lacks a file
  try:
    return action()
  except UserError as error:
    # gin adds lines on which configurable was being called.
    raise UserError(str(error).splitlines()[0]) from error
  except Exception as error:
    # Of a user's file, gin raises NameError, RecursionError, TokenError and others.
    raise UserError(_one_line(error, where, text)) from error
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
  if found := re.search(r" In call to configurable '(\w+)'.*$", message):
    message, where = message[: found.start()], f"{where}: {found[1]}"
  if found := re.search(
    r"No configurable matching (?:reference )?'?@?([\w./]+)", message
  ):
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
  if isinstance(cause, tokenize.TokenError):
    return f"{where}, line {cause.args[1][0]}: {cause.args[0]}"
  if isinstance(cause, RecursionError):
    return f"{where}: a setting refers to itself, or values are nested too deep"
  if not message or not isinstance(cause, (ValueError, TypeError, OSError)):
    message = f"{type(cause).__name__}: {message}".rstrip(": ")
  return f"{where}: {message}{_place(cause)}"


def _place(error: BaseException) -> str:
  """Where a module that the user wrote, imported by a gin file, failed; or nothing."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = (str(GIN_ROOT.parent), str(pathlib.Path(gin.__file__).parent), "<")
  if not frames or frames[-1].filename.startswith(ours):
    return ""
  return f" ({frames[-1].filename}, line {frames[-1].lineno})"
