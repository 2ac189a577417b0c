"""A table of keys and values that may be larger than memory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from commentree.errors import StorageError

_CACHE_KIB = 16 * 1024


class Index:
  """Strings by string; a temporary file holds what does not fit the cache."""

  def __init__(self, database: sqlite3.Connection):
    self._database = database

  def __setitem__(self, key: str, value: str) -> None:
    """Sets a key's value in place of the one before."""
    self._database.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?)", (key, value))

  def get(self, key: str) -> str | None:
    """Returns a key's value; None if it has none."""
    found = self._database.execute("SELECT value FROM pairs WHERE key = ?", (key,))
    row = found.fetchone()
    return None if row is None else row[0]

  def root(self, key: str) -> str:
    """Follows values that are keys; the end, or a key of the circle that they make.

    Shortens the ways that it goes, so that many calls take little more time than one.
    """
    above = self.get(key)
    while above is not None and above != key:
      next_above = self.get(above)
      if next_above is not None:
        self[key] = next_above
      key, above = above, next_above
    return key


def _connect() -> sqlite3.Connection:
  # What has an empty name is in a temporary file, as far as it does not fit the cache.
  # Readers may go from thread to thread, but are in one at a time.
  return sqlite3.connect("", isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def index() -> Iterator[Index]:
  """Gives an empty index, which is gone afterwards.

  Raises:
    StorageError: if there is no room for it.
  """
  try:
    with contextlib.closing(_connect()) as database:
      database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
      database.execute("PRAGMA journal_mode = OFF")
      database.execute("PRAGMA synchronous = OFF")
      database.execute("CREATE TABLE pairs (key PRIMARY KEY, value) WITHOUT ROWID")
      database.execute("BEGIN")
      yield Index(database)
  except sqlite3.Error as error:
    raise StorageError(
      f"the folder of temporary files has no room for an index ({error}); free some,"
      " or name another by TMPDIR"
    ) from error
