"""Files of vocabularies: read as bytes, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, TypeVar

from etils import epath

from commentree import differences, local_files
from commentree.errors import UserError, refused_write
from commentree.paths import open_path

Path = TypeVar("Path", pathlib.Path, epath.Path)

FOLDER = "vocabulary"
"""Where MODEL_DIR holds its vocabulary."""

SENTENCEPIECE_FILE, JSON_FILE = "vocabulary.model", "tokenizer.json"

_ANOTHER = "and stays; name another --output, or replace it with --overwrite"

# What folders of checkpoints call a whole vocabulary, and the parts of one.
_WHOLE_FILES = (JSON_FILE, "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_PARTS = ("vocab.json", "merges.txt", "vocab.txt")
# What transformers needs beside parts: the kind of tokenizer, and whether case stays.
_SETTINGS = ("config.json", "tokenizer_config.json")


def read(path: str | os.PathLike[str]) -> bytes:
  """Returns a vocabulary file's content, of this machine or in a bucket.

  Raises:
    UserError: if there is no such file, or it cannot be read.
  """
  place = open_path(path, "VOCABULARY")
  try:
    return place.read_bytes()
  except FileNotFoundError:
    raise _missing(path) from None
  except Exception as error:  # buckets' clients have their own
    if _is_folder(place):
      raise UserError(f"{os.fspath(path)}: {_what_is_in(place)}") from None
    raise UserError(
      f"{os.fspath(path)}: the vocabulary cannot be read ({error})"
    ) from error


def check_there(path: str | os.PathLike[str]) -> None:
  """Looks whether a file of this machine is there; reads nothing.

  Raises:
    UserError: if it is not, or a folder is.
  """
  place = open_path(path)
  if "://" in os.fspath(path):
    return
  if not place.exists():
    raise _missing(path)
  if place.is_dir():
    raise UserError(f"{os.fspath(path)}: {_what_is_in(place)}")


def _missing(path: str | os.PathLike[str]) -> UserError:
  return UserError(
    f"{os.fspath(path)}: no such vocabulary; give a checkpoint's own, or make one for"
    f" a new model with `commentree vocab --input=TREES --output={os.fspath(path)}`"
  )


def _is_folder(place: epath.Path) -> bool:
  try:
    return place.is_dir()
  except Exception:  # as above
    return False


def _what_is_in(folder: epath.Path) -> str:
  """Says which file of a folder is its vocabulary, or how to get one."""
  for name in _WHOLE_FILES:
    if (folder / name).exists():
      return f"is a folder; give the file {os.fspath(folder / name)}"
  if models := sorted(path.name for path in folder.glob("*.model")):
    return f"is a folder; give the file {os.fspath(folder / models[0])}"
  for name in _PARTS:
    if (folder / name).exists():
      return f"has no tokenizer.json, only {name}; {how_to_convert(folder)}"
  return (
    "is a folder without a vocabulary; give a checkpoint's tokenizer.json or"
    " SentencePiece model"
  )


def how_to_convert(folder: epath.Path) -> str:
  """Says how to get a `tokenizer.json` from the files of a slow tokenizer."""
  name = os.fspath(folder)
  missing = [file for file in _SETTINGS if not (folder / file).exists()]
  first = (
    f"put the checkpoint's {' and '.join(missing)} there, then " if missing else ""
  )
  return (
    f"{first}write one with Hugging Face's transformers and give that: python -c 'from"
    f' transformers import AutoTokenizer as A; A.from_pretrained("{name}")'
    f""".save_pretrained("{name}")'"""
  )


def part_of_tokenizer(content: bytes, path: str | os.PathLike[str]) -> str | None:
  """Says which part of a slow tokenizer a file is, and how to get the whole.

  Such a file lists tokens or merges. How a text is cut into what they apply to is told
  by code, and by settings in files beside it.

  Args:
    content: what is in the file.
    path: the file's, or any other if it is called otherwise.

  Returns:
    What to say of it; None for a file that is no such part.
  """
  place = epath.Path(path)
  try:
    entries = json.loads(content)
  except ValueError:
    is_merges = content.startswith(b"#version:")
    is_part = is_merges or place.name in _PARTS
  else:
    is_part = isinstance(entries, dict) and bool(entries)
    is_part = is_part and all(isinstance(i, int) for i in entries.values())
  if not is_part:
    return None
  if (place.parent / JSON_FILE).exists():
    return (
      f"is only a part of a tokenizer; give {os.fspath(place.parent / JSON_FILE)}"
      " beside it"
    )
  return f"is only a part of a slow tokenizer; {how_to_convert(place.parent)}"


def check_writable(path: pathlib.Path) -> None:
  """Makes the file's folder; fails now rather than after the work.

  Raises:
    UserError: if the file cannot be written.
  """
  try:
    if path.is_dir():
      raise IsADirectoryError(None, "is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
      pass
  except OSError as error:
    raise UserError(
      f"{path}: cannot write a vocabulary there ({error.strerror}); give another place"
    ) from error


def check_same_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Makes sure that a vocabulary that is there was made by the same settings.

  Raises:
    UserError: if it was not, or its record does not say.
  """
  if not path.exists():
    return
  record = read_record(path)
  if settings.keys() - record.keys():
    raise UserError(f"{path}: is there already, {_ANOTHER}")
  recorded = {name: record[name] for name in settings}
  for name, was, now in differences.find(recorded, settings):
    raise UserError(
      f"{path}: is there already, with other {name}"
      + (f" ({was}, now {now})" if name != "markers" else "")
      + f", {_ANOTHER}"
    )


def check_same_content(path: pathlib.Path, content: bytes) -> None:
  """Makes sure that a vocabulary that is there is the same as a new one.

  Raises:
    UserError: if it is not.
  """
  if path.exists() and path.read_bytes() != content:
    raise UserError(f"{path}: is there already and is another, {_ANOTHER}")


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file that appears whole or not at all.

  Raises:
    UserError: if it cannot be written.
  """
  try:
    # Processes of one machine may make the same vocabulary at once.
    local_files.write_bytes(path, content, sole_writer=False)
  except OSError as error:
    message = f"{path}: cannot be written ({error.strerror})"
    raise refused_write(error, message) from error


def record_path(path: Path) -> Path:
  """Where the record of how a vocabulary was made lies."""
  if path.suffix == ".json":
    return path.with_suffix(".record.json")
  return path.with_name(path.name + ".json")


def read_record(path: Path) -> dict[str, Any]:
  """Returns the record of how a vocabulary was made; nothing without one."""
  try:
    record = json.loads(record_path(path).read_bytes())
  except Exception:  # no record, or none that we can read: it says nothing
    return {}
  return record if isinstance(record, dict) else {}


def grown_from(path: str | os.PathLike[str], content: bytes) -> tuple[str, ...]:
  """Hashes of the vocabularies whose tokens have the same ids in this one.

  Args:
    path: the vocabulary's file; the record beside it says what was added to which.
    content: what is in it.
  """
  record = read_record(epath.Path(path))
  earlier = record.get("grown_from")
  if record.get("fingerprint") != content_hash(content) or not isinstance(
    earlier, list
  ):
    return ()
  return tuple(map(str, earlier))


def is_json(content: bytes) -> bool:
  """Whether a vocabulary is a `tokenizer.json`, else a SentencePiece model."""
  return content[:64].lstrip().startswith(b"{")


def file_name(content: bytes) -> str:
  """What a copy of a vocabulary is called."""
  return JSON_FILE if is_json(content) else SENTENCEPIECE_FILE


def to_store(path: str | os.PathLike[str], content: bytes) -> dict[str, bytes | None]:
  """Returns what MODEL_DIR is to hold of its vocabulary, by path; None for nothing.

  Args:
    path: the vocabulary's file.
    content: what is in it.
  """
  folder = pathlib.Path(FOLDER)
  files = [folder / JSON_FILE, folder / SENTENCEPIECE_FILE]
  stored: dict[str, bytes | None] = {
    str(file): None for name in files for file in (record_path(name), name)
  }
  name = folder / file_name(content)
  if grown_from(path, content):
    record = record_path(epath.Path(path)).read_bytes()
    stored[str(record_path(name))] = record
  return {**stored, str(name): content}


def find_stored(folder: Path) -> Path | None:
  """Returns the path of the vocabulary that MODEL_DIR holds, if it does."""
  for name in (SENTENCEPIECE_FILE, JSON_FILE):
    if (folder / FOLDER / name).is_file():
      return folder / FOLDER / name
  return None


def content_hash(content: bytes) -> str:
  """A short name for the bytes of a vocabulary."""
  return hashlib.blake2b(content, digest_size=8).hexdigest()
