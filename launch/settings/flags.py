"""Flags as several verbs have them."""

from __future__ import annotations

import argparse
from typing import Any


def add_number(
  parser: argparse.ArgumentParser | Any, flag: str, default: int, what: str
) -> None:
  """Adds a flag that takes a whole number, and says its default.

  Args:
    parser: or a group of its arguments.
    flag: with its dashes.
    default: of the flag.
    what: it means; begins the help.
  """
  parser.add_argument(
    flag,
    type=int,
    default=default,
    metavar="N",
    help=f"{what} (default {default})",
  )
