"""Settings of reading, cleaning and annotating trees: plain data, importable fast."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..errors import UserError
from ..models.config import check_choice, check_range

Deleted = Literal["splice", "keep"]
Orphans = Literal["attach", "drop"]


def _check_switches(config: object) -> None:
  """Raises UserError for a field annotated `bool` that holds anything else."""
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    value = getattr(config, field.name)
    if field.type == "bool" and not isinstance(value, bool):
      raise UserError(
        f"{type(config).__name__}.{field.name} = {value!r}: must be True or False"
      )


@dataclasses.dataclass(frozen=True)
class TreeConfig:
  """What becomes of what is odd in a tree.

  Attributes:
    deleted: 'splice' takes deleted and removed comments out and hangs their replies
      under the nearest living ancestor; 'keep' leaves them in place as `<deleted>`.
    orphans: replies to a comment that is not in the tree: 'attach' hangs them under
      the post, the nearest ancestor known; 'drop' leaves them out, and what is below.
    target_post: whether the post itself is to be predicted.
    max_line_bytes: lines longer than this are skipped, so that a file without line
      ends cannot fill the memory.
  """

  deleted: Deleted = "splice"
  orphans: Orphans = "attach"
  target_post: bool = False
  max_line_bytes: int = 256 * 2**20

  def __post_init__(self):
    check_choice("TreeConfig", "deleted", self.deleted, Deleted)
    check_choice("TreeConfig", "orphans", self.orphans, Orphans)
    check_range("TreeConfig", "max_line_bytes", self.max_line_bytes, 1, whole=True)
    _check_switches(self)


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
  """Which steps of cleaning are taken; see `cleaning` for what each does."""

  html_entities: bool = True
  urls: bool = True
  footnotes: bool = True
  quotes: bool = True
  whitespace: bool = True

  def __post_init__(self):
    _check_switches(self)


@dataclasses.dataclass(frozen=True)
class MarkersConfig:
  """Which author markers there are.

  Attributes:
    authors: whether comments begin with their author's marker.
    max_users: authors of a tree that have a marker of their own; all others share
      one. The vocabulary holds a piece for each.
  """

  authors: bool = True
  max_users: int = 32

  def __post_init__(self):
    check_range("MarkersConfig", "max_users", self.max_users, 0, 10_000, whole=True)
    _check_switches(self)


@dataclasses.dataclass(frozen=True)
class LabelsConfig:
  """Which labelled spans of comments become labels of their tokens.

  Attributes:
    names: labels to keep, such as ('claim', 'premise'); of their k-th, the first token
      is labelled 2k + 1 and the others 2k + 2, and 0 is what is outside. None by
      default, and then pieces have no labels.
  """

  names: tuple[str, ...] = ()

  def __post_init__(self):
    names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
    # gin hands over lists; a frozen configuration must be hashable.
    object.__setattr__(self, "names", names)
    if not all(isinstance(name, str) and name for name in names):
      raise UserError(f"LabelsConfig.names = {names!r}: must be names in quotes")
    if len(set(names)) < len(names):
      raise UserError(f"LabelsConfig.names = {names!r}: must name each label once")


@dataclasses.dataclass(frozen=True)
class DiscourseMarkersConfig:
  """Masking that prefers words by which texts hang together, such as `however`.

  Attributes:
    file: phrases, one a line; 'english' for the list that comes with commentree; None
      to treat all words alike.
    share: share of the masked tokens that come from such phrases where a comment has
      enough of them.
  """

  file: str | None = None
  share: float = 0.5

  def __post_init__(self):
    check_range("DiscourseMarkersConfig", "share", self.share, 0, 1)
    if self.file is not None and not (isinstance(self.file, str) and self.file):
      raise UserError(
        f"DiscourseMarkersConfig.file = {self.file!r}: must be a file's name or"
        " 'english', in quotes"
      )
