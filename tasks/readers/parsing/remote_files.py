"""Sources by URL: copied to this machine first, and then files like any.

Readers look at a file more than once, and a connection that fails in the middle must
not pass for a file that is cut off: so files come over whole, by fsspec, into the
user's cache folder. Each lies beside a note of what it is a copy of; it is copied again
once size or version are others there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from commentree import local_files
from commentree.errors import StorageError, UserError, is_disk_full
from commentree.paths import SOURCE_SCHEMES, cache_root, check_scheme

# What is needed beside fsspec.
_PACKAGES = {
  "gs": "gcsfs",
  "s3": "s3fs",
  "hf": "huggingface_hub",
  "http": "aiohttp",
  "https": "aiohttp",
}
_WEB = ("http", "https")
# Of what storages say of a file, what is another once its contents are.
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "updated", "created")
_BLOCK_BYTES = 8 * 2**20
_ATTEMPTS = 3
_SECONDS_BETWEEN_LINES = 10.0

_log = logging.getLogger(__name__)


def is_remote(pattern: str) -> bool:
  """Whether a pattern is a URL."""
  return "://" in pattern


def copies(
  pattern: str, wanted: Callable[[str], bool], aside: Callable[[str], bool]
) -> set[str]:
  """Copies what a URL stands for, as far as it is not here; returns the copies' paths.

  Args:
    pattern: of a file, a glob or a folder.
    wanted: which files of a folder are taken, by their path.
    aside: which are copied along with those beside them, and are not returned.

  Raises:
    UserError: if nothing is there, it cannot be read, or a package for it is missing.
    StorageError: if there is no room here.
  """
  check_scheme(pattern, schemes=SOURCE_SCHEMES)
  with _errors_in_one_line(pattern):
    storage, path = _open(pattern)
    taken, of_folder = _list(storage, path, pattern, wanted)
    if not taken:
      raise UserError(
        f"{pattern}: no such file, and none in it or matching it that can be read;"
        " check the URL"
      )
    scheme = pattern.partition("://")[0]
    copied = [_Copy(storage, scheme, remote) for remote in sorted(taken)]
    _check_room([copy for copy in copied if not copy.is_here()])
    for copy in copied:
      copy.make()
    if scheme not in _WEB:
      # What is there for another file's sake is known once that is here.
      for remote in _others(storage, taken):
        if aside(str(_path_of(scheme, remote))):
          _Copy(storage, scheme, remote).make()
  found = {str(copy.path) for copy in copied}
  return {path for path in found if not aside(path)} if of_folder else found


def _open(pattern: str) -> tuple[Any, str]:
  scheme = pattern.partition("://")[0]
  try:
    import fsspec

    storage, path = fsspec.core.url_to_fs(pattern)
  except ImportError as error:
    package = _PACKAGES.get(scheme, scheme)
    raise UserError(
      f"{pattern}: {scheme}:// is read by {package}, which is not installed: pip"
      " install 'commentree[remote]'"
    ) from error
  storage.invalidate_cache()
  return storage, path


def _list(
  storage: Any, path: str, pattern: str, wanted: Callable[[str], bool]
) -> tuple[set[str], bool]:
  """The files that a path in a storage stands for, and whether it is a folder."""
  if pattern.startswith(tuple(f"{scheme}://" for scheme in _WEB)):
    with contextlib.suppress(FileNotFoundError):  # `?` is no glob there
      storage.info(path)
      return {path}, False
    return set(), False
  if storage.isfile(path):
    return {path}, False
  if any(sign in path for sign in "*?["):
    return {match for match in storage.glob(path) if storage.isfile(match)}, False
  if not storage.isdir(path):
    return set(), True
  found = storage.find(path)
  return {f for f in found if wanted(f) and not _name(f).startswith(".")}, True


def _others(storage: Any, taken: set[str]) -> list[str]:
  """The files beside others, of a storage."""
  found: list[str] = []
  for folder in {path.rpartition("/")[0] for path in taken}:
    try:
      entries = storage.ls(folder, detail=True)
    except OSError as error:  # of a bucket whose files may be read by name alone
      _log.warning("%s: cannot be listed (%s)", folder, _reason(error))
      continue
    found += [entry["name"] for entry in entries if entry["type"] == "file"]
  return [path for path in found if path not in taken]


def _name(remote: str) -> str:
  return remote.partition("?")[0].rpartition("/")[2] or "file"


def _path_of(scheme: str, remote: str) -> pathlib.Path:
  """Where a file's copy is or will be: those of one folder are together."""
  folder = remote.partition("?")[0].rpartition("/")[0]
  digest = hashlib.sha256(f"{scheme}://{folder}".encode()).hexdigest()[:16]
  if "?" in remote:
    digest += hashlib.sha256(remote.encode()).hexdigest()[:16]
  return cache_root(None) / "sources" / digest / _name(remote)


class _Copy:
  """A file elsewhere, and where its copy is or will be."""

  def __init__(self, storage: Any, scheme: str, remote: str):
    self._storage = storage
    self._remote = remote
    self.path = _path_of(scheme, remote)
    self._note = self.path.with_name(f".{self.path.name}.copied")
    info = storage.info(remote)
    self.size: int | None = info.get("size")
    self.url = remote if "://" in remote else f"{scheme}://{remote.lstrip('/')}"
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), None)
    self._facts = {"url": self.url, "bytes": self.size, "version": version}

  def is_here(self) -> bool:
    """Whether the copy is whole, and of what is there now."""
    try:
      return (
        json.loads(self._note.read_text("utf-8")) == self._facts
        and self.size in (None, self.path.stat().st_size)
        and self.path.is_file()
      )
    except (OSError, ValueError):
      return False

  def make(self) -> None:
    """Copies the file, unless it is here."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with local_files.lock(self.path.with_name(f".{self.path.name}.lock"), wait=True):
      if self.is_here():
        return
      size = "" if self.size is None else f" ({self.size / 2**20:,.1f} MB)"
      _log.info("%s%s: copied to %s", self.url, size, self.path)
      for attempt in range(1, _ATTEMPTS + 1):
        try:
          with local_files.draft(self.path) as draft:
            self._fetch(draft)
          break
        except Exception as error:
          if attempt == _ATTEMPTS or is_disk_full(error):
            raise
          _log.warning("%s: %s; tried again", self.url, _reason(error))
          time.sleep(attempt)
      local_files.write_bytes(self._note, json.dumps(self._facts).encode())

  def _fetch(self, draft: pathlib.Path) -> None:
    copied, told = 0, time.monotonic()
    with self._storage.open(self._remote, "rb") as source, open(draft, "wb") as file:
      for block in _blocks(source):
        file.write(block)
        copied += len(block)
        if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
          told = time.monotonic()
          of = "" if self.size is None else f" of {self.size / 2**20:,.0f}"
          # Not in silence; what is said below a warning, nobody is shown.
          _log.warning("%s: %s%s MB are here", self.url, f"{copied / 2**20:,.0f}", of)
    if self.size is not None and copied != self.size:
      raise OSError(f"{copied:,} of {self.size:,} bytes came")


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
  while block := source.read(_BLOCK_BYTES):
    yield block


def _check_room(missing: list[_Copy]) -> None:
  if not missing:
    return
  folder = cache_root(None)
  folder.mkdir(parents=True, exist_ok=True)
  needed = sum(copy.size or 0 for copy in missing)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise StorageError(
      f"{missing[0].url}: {needed / 2**20:,.0f} MB are to be copied to {folder}, where"
      f" {free / 2**20:,.0f} MB are free: free some room, or name another folder by"
      " XDG_CACHE_HOME"
    )


def _reason(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return (lines[0] if lines else type(error).__name__)[:200]


@contextlib.contextmanager
def _errors_in_one_line(pattern: str) -> Iterator[None]:
  """Every storage has errors of its own, of which none is ours."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if is_disk_full(error):
      raise StorageError(
        f"{pattern}: there is no room to copy it to {cache_root(None)}; free some, or"
        " name another folder by XDG_CACHE_HOME"
      ) from error
    raise UserError(
      f"{pattern}: cannot be read ({type(error).__name__}: {_reason(error)}); check the"
      " URL, the network, and that your credentials are where its tools look for them"
    ) from error
