"""Which post every comment hangs below, where comments know their parents alone."""

from __future__ import annotations

import array
import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.rows import Format
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

NO_ROOT = 0


def key_of(ident: str) -> int:
  """A number from 1 to 2**64 - 1 that stands for an id."""
  digest = hashlib.blake2b(ident.encode("utf-8", "surrogatepass"), digest_size=8)
  return int.from_bytes(digest.digest(), "little") or 1


def topmost(ids: Any, parents: Any) -> tuple[Any, Any]:
  """Follows parents up as far as they are known.

  Args:
    ids: at most 2**32 unsigned numbers, 0 excluded, in any order; of equal ones the
      first counts.
    parents: theirs; 0 for none, or one that is not among `ids`.

  Returns:
    The ids in order, and for each the topmost id above it that is known, or that one's
    parent, which is not; `NO_ROOT` in or below a cycle.
  """
  import numpy as np  # here, because settings are checked without it

  own, first = np.unique(np.asarray(ids), return_index=True)
  above = np.asarray(parents)[first]
  place = np.searchsorted(own, above)
  place[place == len(own)] = 0
  known = own[place] == above if len(own) else np.zeros(0, bool)
  up = np.where(known, place, np.arange(len(own))).astype(np.uint32)
  # Each step doubles the hops: 2**32 of them end at the top, or never leave a cycle.
  for _ in range(32):
    farther = up[up]
    if np.array_equal(farther, up):
      break
    up = farther
  top = np.where(above == 0, own, above)
  top[known] = NO_ROOT
  return own, top[up]


class Roots:
  """Which post every id hangs below, in 16 bytes of memory an id and the posts' ids.

  Ids are compared by 64 bits of a hash.
  """

  def __init__(self, ids: array.array[int], tops: array.array[int], names: list[str]):
    """Keeps what a `Builder` found.

    Args:
      ids: keys in order.
      tops: the key of each one's post, or `NO_ROOT`.
      names: ids of posts.
    """
    self._ids, self._tops = ids, tops
    self._names = {key_of(name): name for name in names}

  @classmethod
  def none(cls) -> Roots:
    """Returns roots that know of no id."""
    return cls(array.array("Q"), array.array("Q"), [])

  @classmethod
  def builder(cls) -> Builder:
    """Returns what collects ids and parents."""
    return Builder()

  @classmethod
  def from_bytes(cls, data: bytes) -> Roots:
    """The inverse of `bytes(roots)`.

    Raises:
      ValueError: if no roots are written so.
    """
    ids, tops = array.array("Q"), array.array("Q")
    own, above, names = msgspec.msgpack.decode(
      data, type=tuple[bytes, bytes, list[str]]
    )
    ids.frombytes(own)
    tops.frombytes(above)
    if len(ids) != len(tops):
      raise ValueError(f"{len(ids)} ids have {len(tops)} posts")
    return cls(ids, tops, names)

  def __bytes__(self) -> bytes:
    parts = (self._ids.tobytes(), self._tops.tobytes(), list(self._names.values()))
    return msgspec.msgpack.encode(parts)

  def __contains__(self, ident: str) -> bool:
    return self._place(key_of(ident)) is not None

  def of(self, ident: str) -> str | None:
    """The post of an id; None in or below a cycle, and for an id that is unknown.

    A post that is missing is called by its key.
    """
    place = self._place(key_of(ident))
    if place is None or self._tops[place] == NO_ROOT:
      return None
    top = self._tops[place]
    return self._names.get(top) or f"missing-{top:016x}"

  def _place(self, key: int) -> int | None:
    place = bisect.bisect_left(self._ids, key)
    return place if place < len(self._ids) and self._ids[place] == key else None


class Builder:
  """Collects ids and what each answers."""

  def __init__(self):
    self._ids = array.array("Q")
    self._above = array.array("Q")
    self._ends = array.array("Q")
    self._posts: dict[int, str] = {}

  def add(self, ident: str, above: Sequence[str]) -> None:
    """Adds an id.

    Args:
      ident: the id.
      above: what it answers, the likeliest first: the first that is known counts, and
        the last if none is. Empty for a post.
    """
    key = key_of(ident)
    self._ids.append(key)
    self._above.extend(map(key_of, above))
    self._ends.append(len(self._above))
    if not above:
      self._posts.setdefault(key, ident)

  def build(self) -> Roots:
    """Returns what was found."""
    import numpy as np

    known = np.unique(np.frombuffer(self._ids, np.uint64)) if self._ids else None
    parents = array.array("Q")
    start = 0
    for end in self._ends:
      parents.append(_first_known(self._above[start:end], known))
      start = end
    if known is None:
      return Roots.none()
    own, tops = topmost(
      np.frombuffer(self._ids, np.uint64), np.frombuffer(parents, np.uint64)
    )
    return Roots(
      array.array("Q", own.tobytes()),
      array.array("Q", tops.tobytes()),
      list(self._posts.values()),
    )


def _first_known(above: array.array[int], known: Any) -> int:
  if not above:
    return 0
  if len(above) == 1:
    return above[0]
  for key in above:
    place = int(known.searchsorted(key))
    if place < len(known) and int(known[place]) == key:
      return key
  return above[-1]


RowsByRoots = Callable[[Roots, str, TreeConfig, ReadCounts], Iterator[Row]]
Prepare = Callable[[Sequence[str], TreeConfig], bytes]


def format_by_roots(
  name: str,
  suffixes: tuple[str, ...],
  matches: Callable[[str, bytes], bool],
  *,
  prepare: Prepare,
  rows: RowsByRoots,
  **others: Any,
) -> Format:
  """Returns a format whose rows know their posts by `Roots` alone.

  Args:
    name: as in `Format`, as all that is not said here.
    suffixes: see `name`.
    matches: see `name`.
    prepare: finds the roots of all ids in files, as bytes. A file read without it is
      taken to hold whole trees.
    rows: reads a file given those roots.
    **others: more of `Format`.
  """
  alone = functools.partial(_rows_alone, prepare, rows)
  known = Format(name, suffixes, matches, alone, contiguous=False, **others)
  prepared = functools.partial(_with_roots, known, rows)
  return dataclasses.replace(known, prepare=prepare, prepared=prepared)


def _rows_alone(
  prepare: Prepare,
  rows: RowsByRoots,
  path: str,
  config: TreeConfig,
  read_counts: ReadCounts,
) -> Iterator[Row]:
  return rows(Roots.from_bytes(prepare([path], config)), path, config, read_counts)


def _with_roots(known: Format, rows: RowsByRoots, roots: bytes) -> Format:
  return dataclasses.replace(
    known, rows=functools.partial(rows, Roots.from_bytes(roots))
  )
