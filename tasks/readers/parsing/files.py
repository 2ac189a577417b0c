"""Files as streams of lines: globs and folders, plain and compressed.

What a file holds is recognized from its first bytes, not its name. A file that is cut
off yields what comes before, one that is damaged what can be read of it; `ReadCounts`
and the log say so.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from commentree.errors import UserError
from commentree.tasks.readers.parsing import compression, remote_files, text_encodings
from commentree.tasks.trees.comment_tree import ReadCounts

READ = "read"
NOTHING_FOUND = "read: nothing of its format in it"
EMPTY = "read: empty"
TRUNCATED = "read in part: cut off"
DAMAGED = "read in part: damaged"
UNREADABLE = "not read: cannot be opened"
LINE_TOO_LONG = "skipped: line too long"
FILE_TOO_LONG = "skipped: file too long for one tree"
DROPPED_LINE_TOO_LONG = "dropped: line too long"

# What a line of JSON or a document of XML may take in memory once it is parsed. Lines
# that are shorter than the first are not looked at: they cannot take so much.
_SURELY_LIGHT_BYTES = 2**20
_MAX_PARSED_BYTES = 2**28
# Of Python's objects for an object, an array, and another value; for an XML element.
_OBJECT_BYTES, _ARRAY_BYTES, _VALUE_BYTES, _ELEMENT_BYTES = 256, 96, 96, 1024

_BLANK_LINES = re.compile(rb"\n{2,}")

_log = logging.getLogger(__name__)


def expand(
  patterns: str | Sequence[str],
  suffixes: Sequence[str],
  aside: Callable[[str], bool] = lambda path: False,
  takes: Callable[[str], bool] = lambda path: False,
) -> list[str]:
  """Lists the files that patterns stand for, each once, in order of name.

  Args:
    patterns: files, globs (`**` for any depth) and folders; or URLs of some, of which
      the paths of copies are returned.
    suffixes: of a folder, files with one of these, compressed or not, are taken, and
      compressed ones without any other, as dumps are named (`RC_2005-12.zst`); a file
      named, or matched by a glob, is taken under any name. Of folders and globs only
      regular files, and links to some, are taken.
    aside: which files of a folder are not taken all the same, by their path.
    takes: which are taken at any ending.

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
    bare = compressed and "." not in stem
    return (fits or bare or takes(path)) and not aside(path)

  found: set[str] = set()
  for pattern in map(os.fspath, patterns):
    if remote_files.is_remote(pattern):
      found |= remote_files.copies(pattern, wanted, aside)
      continue
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
  read_counts: ReadCounts,
  holds: Literal["trees", "comments"] = "trees",
) -> Iterator[bytes]:
  """Yields a file's lines, in memory that does not grow with it.

  Lines without any character are passed over: a file of them costs nothing.

  Args:
    path: the file, whose lines end in a line feed (not passed on); what is wrong with
      it is counted, and not raised.
    max_line_bytes: lines longer than this are skipped, and so are those that would
      take more than 256 MiB of memory as values of JSON.
    read_counts: the file's fate, and that of lines too long, are counted here.
    holds: what a line too long counts as.

  Raises:
    UserError: if unpacking the file takes more memory than this process may take.
  """
  yield from split(
    blocks(path, read_counts), max_line_bytes, too_long(read_counts, holds)
  )


def too_long(
  read_counts: ReadCounts, holds: Literal["trees", "comments"]
) -> tuple[Counter[str], str]:
  """What counts lines that are too long, and the key that it counts them by."""
  if holds == "trees":
    return read_counts.trees, LINE_TOO_LONG
  return read_counts.comments, DROPPED_LINE_TOO_LONG


def is_heavy(line: bytes, copies: int = 1) -> bool:
  """Whether a line of JSON would take too much memory once it is parsed.

  Args:
    line: valid JSON or not.
    copies: how often its text is held at once, beside the line itself.
  """
  return len(line) >= _SURELY_LIGHT_BYTES and (
    parsed_bytes(line, copies) > _MAX_PARSED_BYTES
  )


def parsed_bytes(line: bytes, copies: int = 1) -> int:
  """What a line of JSON takes in memory at most, once it is parsed; see `is_heavy`."""
  # One character outside the Basic Multilingual Plane makes four bytes of all others.
  width = 1 if line.isascii() and b"\\u" not in line else 4
  return (
    copies * width * len(line)
    + _OBJECT_BYTES * line.count(b"{")
    + _ARRAY_BYTES * line.count(b"[")
    + _VALUE_BYTES * line.count(b",")
  )


def blocks(path: str, read_counts: ReadCounts) -> Iterator[bytes]:
  """Yields a file's contents, uncompressed and in UTF-8, in small blocks.

  Args:
    path: the file; what is wrong with it is counted, and not raised.
    read_counts: gets the file's fate.

  Raises:
    UserError: if unpacking the file takes more memory than this process may take.
  """
  fate = READ
  damage: list[str] = []
  try:
    with open(path, "rb") as file:
      yield from text_encodings.to_utf8(compression.blocks(file, damage))
      if file.tell() == 0:
        fate = EMPTY
  except compression.CutOffError as error:
    fate = TRUNCATED
    _log.warning("%s: is cut off (%s); what comes before was read", path, error)
  except compression.WindowError as error:
    raise UserError(
      f"{path}: takes more memory to be unpacked than there is ({error}); give more to"
      " --memory, or pack it again with a smaller window (zstd --long=27, xz -6)"
    ) from error
  except OSError as error:
    fate = UNREADABLE
    _log.warning("%s: cannot be read (%s)", path, error)
  if damage:
    fate = DAMAGED
    _log.warning("%s: is damaged (%s); the rest was read", path, damage[0])
  read_counts.files[fate] += 1


def whole(path: str, max_bytes: int, read_counts: ReadCounts) -> bytes | None:
  """Returns a file's contents, uncompressed; None if they are longer than `max_bytes`.

  Args:
    path: a file of XML; what is wrong with it is counted, and not raised.
    max_bytes: of the contents; files that would take more than 256 MiB of memory once
      they are parsed are too long as well.
    read_counts: the file's fate is counted here, and a tree skipped if it is too long.
  """
  content = bytearray()
  size = 0
  for block in blocks(path, read_counts):
    size += len(block)
    if size <= max_bytes:
      content += block
    else:
      content.clear()
  elements = content.count(b"<") * _ELEMENT_BYTES
  if size > max_bytes or elements + 4 * size > _MAX_PARSED_BYTES:
    read_counts.trees[FILE_TOO_LONG] += 1
    return None
  return bytes(content)


def split(
  blocks: Iterable[bytes], max_line_bytes: int, too_long: tuple[Counter[str], str]
) -> Iterator[bytes]:
  """Cuts blocks at line ends; passes over lines without any character.

  Args:
    blocks: of a file, in order.
    max_line_bytes: as in `lines`.
    too_long: what counts lines that are too long, and the key that it counts them by.
  """
  counter, fate = too_long
  begun = bytearray()  # the last line
  held = 0  # bytes in it; more than `max_line_bytes` once the line is given up
  for block in itertools.chain(blocks, (b"\n",)):
    if b"\n\n" in block:
      block = _BLANK_LINES.sub(b"\n", block)
    first, *others = block.split(b"\n")
    held += len(first)
    if held <= max_line_bytes:
      begun += first
    else:
      begun = bytearray()
    if not others:
      continue
    rest = others.pop()
    whole_line, begun = bytes(begun), bytearray()
    if held > max_line_bytes or is_heavy(whole_line):
      counter[fate] += 1
    elif held:
      yield whole_line
    del whole_line
    for line in others:
      if len(line) > max_line_bytes:
        counter[fate] += 1
      elif line:
        yield line
    held = len(rest)
    if held <= max_line_bytes:
      begun += rest


def head(path: str, size: int = 2**16) -> bytes:
  """The first bytes of a file, as `blocks` has them; empty without one."""
  found = bytearray()
  try:
    with open(path, "rb") as file:
      for block in text_encodings.to_utf8(compression.blocks(file, [])):
        found += block
        if len(found) >= size:
          break
  except (compression.CutOffError, compression.WindowError, OSError):
    pass  # whoever reads the file counts and tells that
  return bytes(found[:size])
