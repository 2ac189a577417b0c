"""Arrays written as safetensors, in files of a size, a part of an array at a time.

The library of that name is not used: it needs all arrays of a file in memory and writes
to no bucket.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from commentree.errors import StorageError, UserError
from commentree.training.checkpointing import storage
from commentree.training.warm_starts.formats.array_source import ArraySource, Renamed
from commentree.training.warm_starts.formats.safetensors import (
  DTYPES,
  INDEX_FILE,
  LENGTH_BYTES,
  METADATA,
  MODEL_FILE,
)
from commentree.training.warm_starts.writing import (
  PARAMETERS,
  chunk_shape,
  drafted,
  parts,
)

# As Hugging Face cuts models: what fits any file system, and is got again in parts.
MAX_FILE_BYTES = 5 * 10**9

# What the parameters are; in a bucket the last file, without which they are not whole.
NAMES_FILE = "parameters.json"

# NumPy and TensorStore read aligned data as it lies; the format pads by spaces.
_ALIGNMENT = 64


def parameters_of(source: ArraySource) -> ArraySource:
  """Returns a checkpoint's parameters, by the names that the model has for them.

  Raises:
    UserError: if it has none.
  """
  if not any(name.startswith(PARAMETERS) for name in source.arrays):
    raise UserError(
      f"{source.path} ({source.kind}) has no arrays under 'target': name a checkpoint"
      " of commentree or T5X"
    )
  return Renamed(
    source,
    {
      name.removeprefix(PARAMETERS): name
      for name in source.arrays
      if name.startswith(PARAMETERS)
    },
  )


def write_parameters(
  source: ArraySource, path: epath.Path, max_file_bytes: int = MAX_FILE_BYTES
) -> None:
  """Writes a folder with parameters, and what they are as JSON.

  Args:
    source: the parameters, as `parameters_of` has them.
    path: the folder, not there yet.
    max_file_bytes: as `write`.

  Raises:
    UserError: if it is there.
    StorageError: if it cannot be written.
  """
  refuse_existing(path)
  try:
    with drafted(path) as draft:
      write(source, draft, {"format": "commentree"}, max_file_bytes)
      storage.write_text(
        draft / NAMES_FILE, json.dumps(names_of(source), indent=2) + "\n"
      )
  except Exception as error:
    if isinstance(error, UserError) or not storage.refused(error):
      raise
    raise StorageError(f"{path} cannot be written ({storage.reason(error)})") from error


def names_of(source: ArraySource) -> dict[str, Any]:
  """Returns what the parameters are, JSON-able."""
  return {
    "source": str(source.path),
    "parameters": {
      name: {"shape": list(spec.shape), "dtype": spec.dtype.name}
      for name, spec in sorted(source.arrays.items())
    },
  }


def refuse_existing(path: epath.Path) -> None:
  """Raises UserError if there is something."""
  if path.exists():
    raise UserError(f"{path} is there already: remove it, or name another folder")


def write(
  source: ArraySource,
  folder: epath.Path,
  metadata: Mapping[str, str] | None = None,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> list[str]:
  """Writes all arrays of a source; takes memory for a part of one at a time.

  Args:
    source: the arrays.
    folder: where to; there already.
    metadata: texts for the head of each file.
    max_file_bytes: most bytes of arrays in a file, unless one array has more.

  Returns:
    The names of the files: `model.safetensors`, or that of the index of several and
    theirs.
  """
  shares = _shares(source, max_file_bytes)
  if len(shares) == 1:
    _write_file(source, shares[0], folder / MODEL_FILE, metadata or {})
    return [MODEL_FILE]
  stem, suffix = MODEL_FILE.rsplit(".", 1)
  files = [
    f"{stem}-{i + 1:05d}-of-{len(shares):05d}.{suffix}" for i in range(len(shares))
  ]
  for names, file in zip(shares, files):
    _write_file(source, names, folder / file, metadata or {})
  total = sum(spec.num_bytes for spec in source.arrays.values())
  index = {
    "metadata": {"total_size": total},
    "weight_map": {name: file for names, file in zip(shares, files) for name in names},
  }
  storage.write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
  return [INDEX_FILE, *files]


def _shares(source: ArraySource, max_file_bytes: int) -> list[list[str]]:
  """Returns which arrays go into which file, in the order of their names."""
  shares: list[list[str]] = [[]]
  held = 0
  for name in sorted(source.arrays):
    size = source.arrays[name].num_bytes
    if shares[-1] and held + size > max_file_bytes:
      shares.append([])
      held = 0
    shares[-1].append(name)
    held += size
  return shares


def _write_file(
  source: ArraySource, names: list[str], file: epath.Path, metadata: Mapping[str, str]
) -> None:
  dtype_names = {dtype: name for name, dtype in DTYPES.items()}
  header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
  at = 0
  for name in names:
    spec = source.arrays[name]
    header[name] = {
      "dtype": dtype_names[spec.dtype],
      "shape": list(spec.shape),
      "data_offsets": [at, at + spec.num_bytes],
    }
    at += spec.num_bytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
  with file.open("wb") as stream:
    stream.write(len(text).to_bytes(LENGTH_BYTES, "little"))
    stream.write(text)
    for name in names:
      for data in _pieces(source, name):
        stream.write(data)
    if not storage.is_remote(file):
      stream.flush()
      os.fsync(stream.fileno())


def _pieces(source: ArraySource, name: str) -> Iterator[bytes]:
  """Yields an array's bytes in order."""
  spec = source.arrays[name]
  if math.prod(spec.shape) == 0:
    return
  for index in parts(spec.shape, chunk_shape(spec)):
    yield source.read(name, index).tobytes()
