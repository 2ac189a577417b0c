"""Files of vocabularies: read as bytes, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from typing import TypeVar

from etils import epath

from ..errors import UserError
from ..paths import open_path

Path = TypeVar("Path", pathlib.Path, epath.Path)

FOLDER = "vocabulary"
"""Where MODEL_DIR holds its vocabulary."""

SENTENCEPIECE_FILE, JSON_FILE = "vocabulary.model", "tokenizer.json"


def read(path: str | os.PathLike[str]) -> bytes:
  """Returns a vocabulary file's content, of this machine or in a bucket.

  Raises:
    UserError: if there is no such file, or it cannot be read.
  """
  place = open_path(path, "VOCABULARY")
  try:
    return place.read_bytes()
  except FileNotFoundError:
    raise UserError(
      f"{os.fspath(path)}: no such vocabulary; make one with `commentree vocab"
      f" --input=TREES --output={os.fspath(path)}`"
    ) from None
  except Exception as error:  # buckets' clients have their own
    raise UserError(
      f"{os.fspath(path)}: the vocabulary cannot be read ({error})"
    ) from error


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


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file that appears whole or not at all.

  Raises:
    UserError: if it cannot be written.
  """
  try:
    with tempfile.NamedTemporaryFile(
      dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as draft:
      try:
        draft.write(content)
        draft.flush()
        os.fsync(draft.fileno())
        # Temporary files are for their owner alone; vocabularies are shared.
        os.chmod(draft.name, 0o644)
        os.replace(draft.name, path)
      except BaseException:
        os.unlink(draft.name)
        raise
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def record_path(path: Path) -> Path:
  """Where the record of how a vocabulary was made lies."""
  if path.suffix == ".json":
    return path.with_suffix(".record.json")
  return path.with_name(path.name + ".json")


def grown_from(path: str | os.PathLike[str], content: bytes) -> tuple[str, ...]:
  """Hashes of the vocabularies whose tokens have the same ids in this one.

  Args:
    path: the vocabulary's file; the record beside it says what was added to which.
    content: what is in it.
  """
  try:
    record = json.loads(record_path(epath.Path(path)).read_bytes())
    if record["fingerprint"] != content_hash(content):
      return ()
    return tuple(map(str, record["grown_from"]))
  except Exception:  # no record, or none that we can read: it says nothing
    return ()


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
