"""Where prepared data and vocabularies made at first use lie."""

from __future__ import annotations

import os
import pathlib


def cache_root(cache_dir: str | None) -> pathlib.Path:
  """The setting, or commentree's part of the user's cache folder."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "commentree"
