"""What is done already: a file for each chunk, in a folder beside the output.

A part's name says which chunk it is and where the next one begins, so a look at the
folder tells all there is to know. Parts appear whole or not at all. The folder notes
the settings that decide what is in them; others are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from etils import epath

from commentree import differences, json_shapes
from commentree.errors import UserError, refused_write
from commentree.launch.inference.chunks import Chunk
from commentree.training.checkpointing import storage

T = TypeVar("T")

_NAME = re.compile(r"(\d+)-(\d+)-(\d+|end)(\.\w+)")
_SETTINGS = "settings.json"
_ATTEMPTS = 4


class _Record(msgspec.Struct):
  """What is read of an output's record."""

  settings: dict[str, Any]


class Parts:
  """The parts of an output.

  Attributes:
    output: what they are to be joined to.
    folder: where they are.
  """

  def __init__(
    self, output: epath.Path, ending: str, settings: Mapping[str, Any], say: storage.Say
  ):
    """Looks at nothing yet.

    Args:
      output: what they are to be joined to.
      ending: of their names.
      settings: what decides answers, by the name that the user knows; JSON-able.
      say: tells the user a line.
    """
    self.output = output
    self.folder = output.with_name(output.name + ".parts")
    self._record = output.with_name(output.name + ".record.json")
    self._ending = ending
    self._settings = settings
    self._say = say

  def begin(self, *, again: bool = True) -> bool:
    """Makes the folder, or finds that of an earlier start; host 0 does it.

    Args:
      again: whether what an earlier start did may be gone on with.

    Returns:
      Whether the output is whole, and nothing is to do.

    Raises:
      UserError: if the output, or what is done of it, was made otherwise.
    """
    noted = self.folder / _SETTINGS
    if self._record.exists() and self.output.exists() and again:
      self._compare(_read(self._record, _Record).settings, self.output)
      self._clear()
      return True
    if noted.exists() and again:
      self._compare(_read(noted, dict[str, Any]), self.folder)
      return False
    if self.output.exists():
      raise UserError(
        f"--output={self.output}: is there already: name another, or delete it"
      )
    self._clear()
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      storage.write_text(noted, json.dumps(self._settings, indent=2))
    except OSError as error:
      message = f"--output={self.output}: cannot be written ({storage.reason(error)})"
      raise refused_write(error, message) from error
    return False

  def _compare(self, there: Mapping[str, Any], where: epath.Path) -> None:
    for name, before, now in differences.find(there, self._settings):
      raise UserError(
        f"{where}: was made with {name} = {before}, now {now}: give the same, name"
        " another --output, or delete it"
      )

  def done(self) -> dict[int, dict[int, int | None]]:
    """Returns the chunks that are done, by unit, each with where the next begins."""
    done: dict[int, dict[int, int | None]] = {}
    for path in storage.entries(self.folder):
      if (match := _NAME.fullmatch(path.name)) and match[4] == self._ending:
        end = None if match[3] == "end" else int(match[3])
        done.setdefault(int(match[1]), {})[int(match[2])] = end
    return done

  def write(self, chunk: Chunk, data: bytes) -> None:
    """Writes a chunk's part; it is on disk on return.

    Raises:
      StorageError: if the storage keeps refusing.
    """
    path = self._path(chunk.unit, chunk.number, chunk.end)

    def write() -> None:
      storage.write_bytes(path, data)
      storage.sync_folder(self.folder)

    storage.retried(f"{path}: not written", write, _ATTEMPTS, self._say)

  def _path(self, unit: int, number: int, end: int | None) -> epath.Path:
    behind = "end" if end is None else str(end)
    return self.folder / f"{unit:05d}-{number:07d}-{behind}{self._ending}"

  def in_order(self) -> Sequence[epath.Path]:
    """Returns all parts, in the input's order."""
    return [
      self._path(unit, number, end)
      for unit, chunks in sorted(self.done().items())
      for number, end in sorted(chunks.items())
    ]

  def finish(self, facts: Mapping[str, Any]) -> None:
    """Notes how the output, now whole, was made, and removes the parts."""
    record = {"settings": self._settings, **facts}
    storage.write_text(self._record, json.dumps(record, indent=2) + "\n")
    self._clear()

  def _clear(self) -> None:
    """Removes the folder, the settings last: without them parts mean nothing."""
    noted = self.folder / _SETTINGS
    for path in storage.entries(self.folder):
      if path != noted:
        path.unlink()
    noted.unlink(missing_ok=True)
    if self.folder.is_dir():
      self.folder.rmtree()


def _read(path: epath.Path, shape: type[T]) -> T:
  """Returns what a file notes; raises UserError if it is damaged."""
  try:
    return json_shapes.parse(path.read_bytes(), shape)
  except ValueError as error:
    raise UserError(
      f"{path}: is damaged ({storage.reason(error)}): delete what --output names with"
      " all that lies beside it by that name, or name another --output"
    ) from error
