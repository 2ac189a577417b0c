"""The settings of a run by its MODEL_DIR, for verbs that take what `train` left.

The folder may be somebody else's, so it decides nothing on this machine but what the
model is: `config.gin` is read as data (`config_data`), the vocabulary is the one that
lies in the folder, and where caches lie, or what else a run writes or connects to, is
this user's to say.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from commentree.errors import StorageError, UserError
from commentree.launch.settings import config_data, gin_cli
from commentree.launch.settings.configurables import RunConfig
from commentree.paths import open_path
from commentree.tasks.vocabulary import vocabulary_files

_CONFIG = "config.gin"
# Read whole; `config_data` says what is too long.
_MOST_BYTES = 2**24

# Settings that are not taken from somebody's folder, by configuration and field, with
# the macro that sets them.
_DATA_PLACES = {"cache_dir": "CACHE_DIR"}
_TRAIN_PLACES = {
  "initial_checkpoint_path": "INITIAL_CHECKPOINT_PATH",
  "warm_start_rules": "WARM_START_RULES",
  # Compiled programs are code.
  "compile_cache_dir": "",
  "trackers": "",
  "tracker_project": "",
}
_VOCABULARY = "vocabulary", "VOCABULARY"


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds `--model_dir`, `--step` and the flag that trusts the folder's settings."""
  add_folder_flags(parser, required=True)
  parser.add_argument(
    "--step", type=_step, help="checkpoint to take, or 'best'; default the newest"
  )
  gin_cli.add_override_flag(parser)


def add_folder_flags(parser: argparse.ArgumentParser | Any, *, required: bool) -> None:
  """Adds `--model_dir` and the flag that trusts the folder's settings."""
  parser.add_argument(
    "--model_dir", required=required, metavar="DIR", help="folder of a training run"
  )
  parser.add_argument(
    config_data.FLAG,
    action="store_true",
    help="let the folder's config.gin import modules, which runs their code, and say"
    " where caches lie; for folders of your own",
  )


def _step(text: str) -> int | str:
  if text == "best":
    return text
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r}: give a step, or 'best', or nothing for the newest"
    ) from None


def load(
  model_dir: str,
  overrides: Sequence[str] = (),
  *,
  trust_config: bool = False,
  say: Callable[[str], None] | None = None,
  flags: Sequence[str] = (),
) -> RunConfig:
  """Returns the settings that a run was started with, for use here.

  Args:
    model_dir: the run's folder, local or in a bucket; it may have been moved since.
    overrides: `NAME = VALUE` of settings to change.
    trust_config: whether the folder's settings may import modules and say where
      things lie on this machine.
    say: receives which settings of the folder are left out.
    flags: `CLASS.FIELD = VALUE` of the verb's own flags; they win over the rest.

  Raises:
    UserError: if there is no run, or its settings are not sound.
  """
  text, where = _read(model_dir)
  run = gin_cli.load_text(text, where, overrides, trusted=trust_config, flags=flags)
  given = dict(map(_literal, [*overrides, *flags]))
  data, train = run.data, run.train
  if not trust_config:
    data = _as_given(data, _DATA_PLACES, given)
    train = _as_given(train, _TRAIN_PLACES, given)
    if say is not None and data.cache_dir != run.data.cache_dir:
      say(
        f"{where}: CACHE_DIR = {run.data.cache_dir!r} is not used; to use it, give"
        f" --gin.CACHE_DIR or {config_data.FLAG}"
      )
  if any(name in given for name in _names(data, *_VOCABULARY)):
    data = _as_given(data, dict([_VOCABULARY]), given)
  else:
    data = dataclasses.replace(data, vocabulary=_stored_vocabulary(model_dir))
  return dataclasses.replace(
    run, data=data, train=dataclasses.replace(train, model_dir=model_dir)
  )


def _literal(override: str) -> tuple[str, Any]:
  """Returns the name that a user sets and the value, which may be `...`."""
  name, _, value = override.partition(" = ")
  try:
    return name, ast.literal_eval(value.strip())
  except (SyntaxError, ValueError):
    return name, ...  # a macro or a setting of ours: gin knows its value


def _as_given(config: Any, fields: Mapping[str, str], given: Mapping[str, Any]) -> Any:
  """Returns settings with fields as the user gave them here, else by default.

  What the folder's file binds them to, in any of gin's ways, counts no longer.
  """
  changed = {}
  for field in dataclasses.fields(config):
    if field.name not in fields:
      continue
    changed[field.name] = field.default
    for name in _names(config, field.name, fields[field.name]):
      if name in given:
        found = given[name]
        changed[field.name] = getattr(config, field.name) if found is ... else found
  return dataclasses.replace(config, **changed)


def _names(config: Any, field: str, macro: str) -> tuple[str, ...]:
  """Returns the names by which a user sets a field."""
  longer = f"{type(config).__name__}.{field}"
  return (macro, longer, f"commentree.{longer}")


def _stored_vocabulary(model_dir: str) -> str:
  """Returns the path of the vocabulary in a run's folder."""
  folder = _folder(model_dir)
  found = vocabulary_files.find_stored(folder)
  if found is None:
    raise UserError(
      f"--model_dir={model_dir}: holds no vocabulary in {vocabulary_files.FOLDER}/:"
      " copy the whole folder again, or set --gin.VOCABULARY to the one that it was"
      " trained with"
    )
  return str(found)


def _folder(model_dir: str) -> Any:
  """Returns a run's folder, absolute if it is local."""
  if "://" not in model_dir:
    # Without what reads buckets, which takes seconds to load.
    return pathlib.Path(model_dir).expanduser().absolute()
  from commentree.training.checkpointing import storage

  open_path(model_dir, "--model_dir")
  return storage.as_path(model_dir)


def _read(model_dir: str) -> tuple[str, str]:
  """Returns the text of a run's settings, and the file's name."""
  file = _folder(model_dir) / _CONFIG
  missing = UserError(
    f"--model_dir={model_dir}: holds no {_CONFIG}; give the MODEL_DIR of a run made by"
    " `commentree train`"
  )
  try:
    if not file.is_file():
      raise missing
    with file.open("rb") as stream:
      content = stream.read(_MOST_BYTES + 1)
    return content[:_MOST_BYTES].decode("utf-8-sig"), str(file)
  except UserError:
    raise
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(
      f"{file}, line {line}: is not text in UTF-8: mend it, or copy it again"
    ) from error
  except Exception as error:
    from commentree.training.checkpointing import storage

    if not storage.refused(error):
      raise
    raise StorageError(
      f"--model_dir={model_dir} cannot be read ({storage.reason(error)})"
    ) from error
