"""The console that all of commentree prints to: what users wrote stands as it is."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console as RichConsole
from rich.status import Status
from rich.text import Text

from commentree.errors import printable

_FILE_WIDTH = 120


class Console(RichConsole):
  """Rich's console, which takes nothing in a text for markup, an emoji or a number.

  A path may hold `[red]` or `:cat:`, a name what moves a terminal's cursor. Lines of
  text are as long as they are: a path that is cut at the terminal's edge cannot be
  copied.
  """

  def __init__(self, **options: Any):
    """Takes Rich's options."""
    super().__init__(markup=False, emoji=False, highlight=False, **options)
    self._said_to_be_terminal = bool(options.get("force_terminal"))
    chosen = self.is_watched or self.is_jupyter or "COLUMNS" in os.environ
    if not chosen and "width" not in options:
      # Rich takes 80 columns for a file or a pipe, which cuts tables for no reason.
      self.width = _FILE_WIDTH

  @property
  def is_watched(self) -> bool:
    """Whether lines may be written over: it is a terminal, or said to be one.

    Rich takes FORCE_COLOR for that, too, which notebooks set for the commands in their
    cells; there each picture of what is going on would stay.
    """
    return self._said_to_be_terminal or (self.is_terminal and self.file.isatty())

  def print(self, *objects: Any, **options: Any) -> None:
    """Prints, as Rich's."""
    if all(isinstance(thing, str) for thing in objects):
      options.setdefault("soft_wrap", True)
    super().print(*objects, **options)

  def render_str(self, text: str, **options: Any) -> Text:
    """Returns a text as it is shown; Rich sends every string through here."""
    return super().render_str(printable(text), **options)

  def status(self, status: Any, **options: Any) -> Status:
    """Shows what is going on, as Rich's, whose spinner reads markup."""
    if isinstance(status, str):
      status = Text(printable(status))
    if not self.is_watched:
      return RichConsole(quiet=True).status(status, **options)
    return super().status(status, **options)
