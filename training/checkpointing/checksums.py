"""Whether the bytes of a checkpoint are those that were written.

TensorStore notices when its own tables are damaged, but not when a number in an array
is: so each checkpoint in a folder holds a list of its files with their lengths and
CRC-32. Each host sums up the files that it wrote, and checks its share of all. Buckets
do the same by themselves, so there is no list there.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import re
import zlib
from collections.abc import Mapping

import jax
from etils import epath

from commentree.training.checkpointing import storage
from commentree.training.checkpointing.storage import DamageError

Sums = dict[str, list[int]]
"""By path within the checkpoint: length in bytes, CRC-32."""

_FILE = "checksums.json"
_PARTS = "state"
_PART = re.compile(rf"{_PARTS}/ocdbt\.process_(\d+)/.*")
_CHUNK_BYTES = 2**22
_THREADS = 4


def of_part(folder: epath.Path) -> Sums:
  """Returns those of the arrays that this host wrote."""
  if storage.is_remote(folder):
    return {}
  here = f"{_PARTS}/ocdbt.process_{jax.process_index()}"
  return _sums(folder, [f for f in _files(folder) if f.startswith(f"{here}/")])


def write(folder: epath.Path, parts: Mapping[str, list[int]]) -> None:
  """Writes the list, on host 0.

  Args:
    folder: the checkpoint, whole but for this.
    parts: of the arrays, by all hosts.
  """
  if storage.is_remote(folder):
    return
  rest = [file for file in _files(folder) if not _PART.fullmatch(file)]
  storage.write_text(folder / _FILE, json.dumps({**parts, **_sums(folder, rest)}))


def check_files(folder: epath.Path) -> None:
  """Checks that every file is there, and all bytes but those of the arrays.

  Raises:
    DamageError: naming a file that is missing or not what was written.
  """
  expected = _read(folder)
  for file, (length, _) in expected.items():
    try:
      found = os.path.getsize(folder / file)
    except FileNotFoundError:
      raise DamageError(f"{file} is missing") from None
    if found != length:
      raise DamageError(f"{file} has {found} bytes of {length}")
  _check(folder, {f: s for f, s in expected.items() if not _PART.fullmatch(f)})


def check_share(folder: epath.Path) -> None:
  """Checks this host's share of the arrays.

  Raises:
    DamageError: naming a file that is not what was written.
  """
  hosts = jax.process_count()
  share = {
    file: sums
    for file, sums in _read(folder).items()
    if (part := _PART.fullmatch(file)) and int(part[1]) % hosts == jax.process_index()
  }
  _check(folder, share)


def _read(folder: epath.Path) -> Sums:
  file = folder / _FILE
  # Those of other programs have none.
  if storage.is_remote(folder) or not file.exists():
    return {}
  return json.loads(file.read_text())


def _check(folder: epath.Path, expected: Sums) -> None:
  for file, sums in _sums(folder, list(expected)).items():
    if sums != expected[file]:
      raise DamageError(f"{file} does not hold the bytes that were written")


def _files(folder: epath.Path) -> list[str]:
  root = pathlib.Path(folder)
  files = (file for file in root.rglob("*") if file.is_file())
  return sorted(str(f.relative_to(root)) for f in files if f.name != _FILE)


def _sums(folder: epath.Path, files: list[str]) -> Sums:
  def sum_up(file: str) -> list[int]:
    length, crc = 0, 0
    with open(folder / file, "rb") as stream:
      while chunk := stream.read(_CHUNK_BYTES):
        length += len(chunk)
        crc = zlib.crc32(chunk, crc)
    return [length, crc]

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(files, pool.map(sum_up, files)))
