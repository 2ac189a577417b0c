"""Files as streams of lines: globs and folders, plain and compressed.

What a file holds is told from its first bytes, not its name. A file that is cut off
yields what comes before, one that is damaged what can be read of it; `Fates` and the
log say so.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from ...errors import UserError
from ..trees import Fates
from . import compression

READ = "read"
EMPTY = "read: empty"
TRUNCATED = "read in part: cut off"
DAMAGED = "read in part: damaged"
UNREADABLE = "not read: cannot be opened"
LINE_TOO_LONG = "skipped: line too long"
FILE_TOO_LONG = "skipped: file too long for one tree"
DROPPED_LINE_TOO_LONG = "dropped: line too long"

_log = logging.getLogger(__name__)


def expand(
  patterns: str | Sequence[str],
  suffixes: Sequence[str],
  aside: Callable[[str], bool] = lambda path: False,
) -> list[str]:
  """Lists the files that patterns stand for, each once, in order of name.

  Args:
    patterns: files, globs (`**` for any depth) and folders.
    suffixes: of a folder, files with one of these, compressed or not, are taken, and
      compressed ones without any other, as dumps are named (`RC_2005-12.zst`); a file
      named, or matched by a glob, is taken whatever its name. Of folders and globs only
      regular files, and links to some, are taken.
    aside: which files of a folder are not taken all the same, by their path.

  Raises:
    UserError: if a pattern matches nothing that can be read, or names a pipe, a socket
      or a device.
  """
  if isinstance(patterns, (str, os.PathLike)):
    patterns = [patterns]

  def wanted(path: str) -> bool:
    name = os.path.basename(path).lower()
    stem, last = os.path.splitext(name)
    compressed = last in compression.SUFFIXES
    fits = (stem if compressed else name).endswith(tuple(suffixes))
    return (fits or (compressed and "." not in stem)) and not aside(path)

  found: set[str] = set()
  for pattern in map(os.fspath, patterns):
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
      names = _regular(
        path,
        {
          os.path.join(folder, name)
          for folder, _, names in os.walk(path)
          for name in names
          if wanted(os.path.join(folder, name)) and not name.startswith(".")
        },
      )
      missing = (
        f"no file ending in {', '.join(suffixes)}, compressed"
        f" ({', '.join(compression.SUFFIXES)}) or not, in this folder"
      )
    else:
      # A name may hold characters that a glob would read otherwise.
      if os.path.exists(path):
        names = {path}
        if not os.path.isfile(path):
          raise UserError(
            f"{pattern}: is no regular file; pipes, sockets and devices cannot be read,"
            " since files are read more than once: write it to a file first"
          )
      else:
        matches = glob.glob(path, recursive=True)
        names = _regular(path, {match for match in matches if not os.path.isdir(match)})
      missing = "no such file, and no file matches it; check the path"
    if not names:
      raise UserError(f"{pattern}: {missing}")
    for name in sorted(names):
      if not os.access(name, os.R_OK):
        raise UserError(f"{name}: cannot be read; check its permissions")
    found |= names
  return sorted(found)


def _regular(pattern: str, paths: set[str]) -> set[str]:
  """Leaves out pipes, sockets, devices and links to nothing, with a warning."""
  regular = set(filter(os.path.isfile, paths))
  if others := sorted(paths - regular):
    _log.warning(
      "%s: %s left out: a pipe, a socket, a device or a link to a missing file (%s%s)",
      pattern,
      "1 file was" if len(others) == 1 else f"{len(others)} files were",
      others[0],
      ", …" if len(others) > 1 else "",
    )
  return regular


def lines(
  path: str,
  max_line_bytes: int,
  fates: Fates,
  holds: Literal["trees", "comments"] = "trees",
) -> Iterator[bytes]:
  """Yields a file's lines, in memory that does not grow with it.

  Args:
    path: the file, whose lines end in a line feed (not passed on); whatever is wrong
      with it, nothing is raised.
    max_line_bytes: lines longer than this are skipped.
    fates: the file's fate, and that of lines too long, are counted here.
    holds: what a line too long counts as.
  """
  fate = READ
  too_long = (
    (fates.trees, LINE_TOO_LONG)
    if holds == "trees"
    else (fates.comments, DROPPED_LINE_TOO_LONG)
  )
  damage: list[str] = []
  try:
    with open(path, "rb") as file:
      blocks = compression.blocks(file, damage)
      yield from _split(blocks, max_line_bytes, too_long)
      if file.tell() == 0:
        fate = EMPTY
  except compression.CutOffError as error:
    fate = TRUNCATED
    _log.warning("%s: is cut off (%s); what comes before was read", path, error)
  except OSError as error:
    fate = UNREADABLE
    _log.warning("%s: cannot be read (%s)", path, error)
  if damage:
    fate = DAMAGED
    _log.warning("%s: is damaged (%s); the rest was read", path, damage[0])
  fates.files[fate] += 1


def whole(path: str, max_bytes: int, fates: Fates) -> bytes | None:
  """Returns a file's contents, uncompressed; None if they are longer than `max_bytes`.

  Args:
    path: the file; whatever is wrong with it, nothing is raised.
    max_bytes: of the contents.
    fates: the file's fate is counted here, and a tree skipped if it is too long.
  """
  parts: list[bytes] = []
  size = 0
  for line in lines(path, max_bytes, fates):
    size += len(line) + 1
    if size <= max_bytes:
      parts.append(line)
    else:
      parts.clear()
  if size > max_bytes:
    fates.trees[FILE_TOO_LONG] += 1
    return None
  return b"\n".join(parts)


def _split(
  blocks: Iterator[bytes], max_line_bytes: int, too_long: tuple[Counter[str], str]
) -> Iterator[bytes]:
  """Cuts blocks at line ends; yields the last line even if an error follows."""
  counter, fate = too_long
  begun: list[bytes] = []  # parts of the last line
  held = 0  # bytes in them; more than `max_line_bytes` once the line is given up
  failure: Exception | None = None
  try:
    for block in blocks:
      first, *others = block.split(b"\n")
      held += len(first)
      if held <= max_line_bytes:
        begun.append(first)
      else:
        begun.clear()
      if not others:
        continue
      rest = others.pop()
      if held <= max_line_bytes:
        yield b"".join(begun)
      else:
        counter[fate] += 1
      for line in others:
        if len(line) <= max_line_bytes:
          yield line
        else:
          counter[fate] += 1
      held = len(rest)
      begun = [rest] if held <= max_line_bytes else []
  except (compression.CutOffError, OSError) as error:
    failure = error
  if held > max_line_bytes:
    counter[fate] += 1
  elif held:
    yield b"".join(begun)
  if failure is not None:
    raise failure


def head(path: str, size: int = 2**16) -> bytes:
  """The first bytes of a file, uncompressed; empty if there are none to be had."""
  found = b""
  try:
    with open(path, "rb") as file:
      for block in compression.blocks(file, []):
        found += block
        if len(found) >= size:
          break
  except (compression.CutOffError, OSError):
    pass  # whoever reads the file counts and tells that
  return found[:size]
