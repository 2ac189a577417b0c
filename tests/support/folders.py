"""What lies in folders."""

import pathlib


def names(folder: pathlib.Path) -> list[str]:
  return sorted(entry.name for entry in folder.iterdir())
