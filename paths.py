"""Names of files and folders that users give, local or in a bucket."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from etils import epath

from commentree.errors import UserError

SCHEMES = ("gs", "s3")
SOURCE_SCHEMES = (*SCHEMES, "hf", "https", "http", "memory")
"""Of sources, which are copied to this machine; `memory` is fsspec's, for tests."""


def check_scheme(
  path: str | os.PathLike[str], what: str = "", schemes: Sequence[str] = SCHEMES
) -> None:
  """Makes sure that a path is local or in a bucket.

  Args:
    path: what the user gave.
    what: what the user calls it, such as a flag.
    schemes: of URLs that are let through.

  Raises:
    UserError: if it is a URL of another kind, or holds credentials.
  """
  text = os.fspath(path)
  scheme, separator, rest = text.partition("://")
  if not separator:
    return
  what = f"{what} " if what else ""
  if "@" in rest.partition("/")[0]:
    raise UserError(
      f"{what}{scheme}://...@...: a path must not hold credentials: leave them to the"
      " environment"
    )
  if scheme not in schemes:
    told = [f"{name}://" for name in schemes if name not in ("http", "memory")]
    raise UserError(
      f"{what}{text}: {scheme}:// is not supported: download it and give the file, or"
      f" give {', '.join(told[:-1])} or {told[-1]}"
    )


def open_path(path: str | os.PathLike[str], what: str = "") -> epath.Path:
  """Returns a path to read from; raises as `check_scheme` does."""
  check_scheme(path, what)
  return epath.Path(path)


def cache_root(cache_dir: str | None) -> pathlib.Path:
  """The setting, or commentree's part of the user's cache folder."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "commentree"
