"""Warnings of files of which nothing could be read: never a silence."""

from __future__ import annotations

import logging

from commentree.tasks.readers.parsing import files

_MOST_WARNINGS = 20  # of a process: a folder may hold thousands of other files
_CHARACTERS_SHOWN = 80

_log = logging.getLogger(__name__)
_warned = 0


def warn(path: str, format_name: str) -> None:
  """Says that nothing was found in a file: as what it was read, how it begins."""
  global _warned
  _warned += 1
  if _warned > _MOST_WARNINGS:
    return
  _log.warning(
    "%s: nothing was found in it, read as %s; it begins %s. docs/data.md shows every"
    " format; name another with --format (FILES_FORMAT in a run)%s",
    path,
    format_name,
    _beginning(path),
    "; more such files are counted, not named" if _warned == _MOST_WARNINGS else "",
  )


def _beginning(path: str) -> str:
  """The first line of a file that is not blank, shortened, in quotes."""
  head = files.head(path, 2**12).decode("utf-8", "replace")
  line = next((line for line in head.splitlines() if line.strip()), "").strip()
  if len(line) > _CHARACTERS_SHOWN:
    line = line[: _CHARACTERS_SHOWN - 1] + "…"
  return repr(line)
