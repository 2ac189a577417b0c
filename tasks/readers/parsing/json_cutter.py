"""Cuts JSON values that follow each other in a stream, at their brackets.

It takes time that grows with their length, and memory that one value takes.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from commentree.tasks.readers.parsing import files

# Arrays and answers in arrays are opened so far; what is deeper is a record.
_MOST_OPEN = 8
_LEAD_BYTES = 200  # before a record on its line, as far as it is looked at
_MOST_AGAIN = 2  # times that what is in a broken record is cut anew
_KEY_BYTES = 64  # before an array, in which its key is sought
_ANSWER_HEAD_BYTES = 2**16  # before the array of an answer

_NO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
_STRING_REST = re.compile(rb"(?:[^\"\\\n]++|\\[^\n])*+")
_BRACES_RUN = re.compile(rb"}++")
_OPENERS_RUN, _CLOSERS_RUN = re.compile(rb"[\[{]++"), re.compile(rb"[\]}]++")
# Also NULs, that a crash leaves in files, and what begins texts of RFC 7464.
_BETWEEN = re.compile(rb"[\s,;\0\x1e]*+")
# What may stand before a record on its line: an indent, and the end of another one.
_LEAD = re.compile(rb"([ \t\r]*+)(?:[,\]}][\s,\]}]*+)?+")
_SCALAR = re.compile(rb'(?:[^",\n\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
_DATA_KEY = re.compile(rb'"data"\s*:\s*\Z')
# A string, closed or not, behind which a colon may stand, or a bracket.
_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?(\s*+:)?|[\[\]{}]', re.DOTALL)
_NO_ANSWER = frozenset(("id", "kind", "comments", "title", "body", "text"))

_QUOTE, _LINE_FEED = ord('"'), ord("\n")
_OPENERS, _WHITE_SPACE = frozenset(b"[{"), frozenset(b" \t\r\n")
_CLOSER_OF = bytes.maketrans(b"[{", b"]}")


class Record(NamedTuple):
  """A record of a file.

  Attributes:
    content: its bytes; JSON, unless it is broken.
    group: the same for elements of one array, and another for those of another.
  """

  content: bytes
  group: int


def top_keys(start: bytes) -> Iterator[str]:
  """Yields the keys of an object; where it is cut off, those before."""
  depth = 0
  for match in _TOKEN.finditer(start):
    token = match[0]
    if token in (b"{", b"["):
      depth += 1
    elif token in (b"}", b"]"):
      depth -= 1
    elif match[2] and depth == 1:
      yield match[1].decode("utf-8", "replace")


def breaks_off(line: bytes) -> bool:
  """Whether a line ends inside a string, as no line of a document does."""
  match = _NO_BRACKET.match(line)
  while match is not None and match.end() < len(line):
    if line[match.end()] == _QUOTE:
      return True
    match = _NO_BRACKET.match(line, match.end() + 1)
  return False


def _match_end(pattern: re.Pattern[bytes], block: bytes, at: int) -> int:
  """Where what a pattern matches at a place ends, which may be there."""
  match = pattern.match(block, at)
  return at if match is None else match.end()


class _Place(NamedTuple):
  """Where something begins.

  Attributes:
    indent: that of its line, if it or what is open around it begins there, behind
      nothing but commas and brackets that close; None otherwise.
    depth: how many arrays and answers are open before that line.
  """

  indent: bytes | None
  depth: int


class _Opened(NamedTuple):
  """An array of records, or the answer that it is in."""

  bracket: str
  place: _Place


class _State(enum.Enum):
  BETWEEN = enum.auto()  # records
  RECORD = enum.auto()
  SCALAR = enum.auto()  # a record that is no array nor object
  SKIPPED = enum.auto()  # what stands behind the array of an answer


class Cutter:
  """Cuts a stream of JSON values at their brackets.

  Attributes:
    found_answer: whether an API's answer was opened.
  """

  def __init__(
    self,
    max_bytes: int,
    too_long: tuple[Counter[str], str],
    unclosed: Callable[[], None],
    *,
    is_whole: Callable[[bytes], bool] | None = None,
    again: int = _MOST_AGAIN,
    opens: bool = True,
  ):
    """Starts at the beginning of a file.

    Args:
      max_bytes: records longer than this are left out, as lines are by `files`.
      too_long: what counts them, and the key that it counts them by.
      unclosed: called at the end if an array is not closed.
      is_whole: whether bytes are JSON; None if no records are sought in one that holds
        lines which begin like its own.
      again: how often records are sought in what was found in that way.
      opens: whether arrays are opened, so that their elements are records.
    """
    self.found_answer = False
    self._max_bytes = max_bytes
    self._too_long = too_long
    self._unclosed = unclosed
    self._is_whole = is_whole
    self._again = again
    self._most_open = _MOST_OPEN if opens else 0
    self._state = _State.BETWEEN
    self._open: list[_Opened] = []  # around records
    self._group = 0
    self._brackets = bytearray()  # that are open in what is read
    self._in_string = self._escaped = False
    self._is_long = self._is_broken = self._is_no_answer = False
    self._held = bytearray()  # of the record, from earlier blocks
    self._from = 0  # where the record begins in the block
    self._place = _Place(None, 0)  # of the record, or of what is open around it
    self._before_place = self._place  # of the record before, if that was not broken
    self._before = b"\n"  # the end of the block before

  def feed(self, block: bytes) -> Iterator[Record]:
    """Yields the records that end in the next block."""
    at = self._from = 0
    while at < len(block):
      if self._in_string:
        at = self._pass_string(block, at)
      elif self._state is _State.BETWEEN:
        at = self._begin(block, at)
      elif self._state is _State.SCALAR:
        at = _match_end(_SCALAR, block, at)
        if at < len(block):
          if block[at] == _QUOTE:
            self._in_string = True
            at += 1
          else:
            yield from self._end(block, at)
      else:
        at = _match_end(_NO_BRACKET, block, at)
        if at < len(block):
          if block[at] == _QUOTE:
            self._in_string = True
            at += 1
          elif block[at] in _OPENERS:
            if self._begins_anew(block, at):
              yield from self._end(block, at)
            else:
              at = self._deeper(block, at)
          else:
            run = _match_end(_CLOSERS_RUN, block, at) - at
            closed = min(run, len(self._brackets))
            opened = self._brackets[-closed:]
            del self._brackets[-closed:]
            opened.reverse()
            if opened.translate(_CLOSER_OF) != block[at : at + closed]:
              self._is_broken = True
            at += closed
            if not self._brackets:
              yield from self._end(block, at)
    if self._state in (_State.RECORD, _State.SCALAR):
      self._hold(block[self._from :])
    self._before = (self._before + block[-_LEAD_BYTES:])[-_LEAD_BYTES:]

  def finish(self) -> Iterator[Record]:
    """Yields what is left at the end of the file."""
    if self._state is _State.SKIPPED or self._open:
      self._unclosed()
    if self._state in (_State.RECORD, _State.SCALAR):
      self._is_broken = self._is_broken or self._state is _State.RECORD
      yield from self._end(b"", 0)

  def begun(self) -> bytes:
    """What is held of a record that has not ended."""
    return bytes(self._held)

  def _pass_string(self, block: bytes, at: int) -> int:
    """Passes over the rest of a string, or as much as the block holds."""
    if self._escaped:
      self._escaped = False
      if block[at] != _LINE_FEED:
        at += 1
    at = _match_end(_STRING_REST, block, at)
    if at < len(block):
      if block[at] == _QUOTE:
        self._in_string = False
      elif block[at] == _LINE_FEED:  # as no string holds
        self._in_string = False
        self._is_broken = True
      else:
        self._escaped = True
      at += 1
    return at

  def _begin(self, block: bytes, at: int) -> int:
    """Passes over what stands between records, up to behind a bracket."""
    at = _match_end(_BETWEEN, block, at)
    if at == len(block):
      return at
    character = chr(block[at])
    if character == "]" and self._open:
      self._place = self._open.pop().place
      self._group += 1
      if self._open and self._open[-1].bracket == "{":
        self._place = self._open.pop().place
        self._state, self._brackets = _State.SKIPPED, bytearray(b"{")
        self._is_long = self._is_broken = False
      return at + 1
    if character in "]}":
      return _match_end(_BRACES_RUN if self._open else _CLOSERS_RUN, block, at)
    if (indent := self._indent_of(block, at)) is not None:
      self._place = _Place(indent, len(self._open))
    if character == "[" and len(self._open) < self._most_open:
      self._open.append(_Opened("[", self._place))
      self._group += 1
      return at + 1
    self._from = at
    self._state = _State.RECORD if character in "[{" else _State.SCALAR
    self._brackets = bytearray()
    self._is_long = self._is_broken = self._is_no_answer = False
    if self._state is _State.RECORD:
      self._brackets.append(block[at])
      at += 1
    return at

  def _deeper(self, block: bytes, at: int) -> int:
    """Takes a bracket that opens; opens the array of an API's answer."""
    outermost = len(self._brackets) == 1
    if outermost and block[at] == ord("[") and self._opens_answer(block, at):
      self._open += [_Opened("{", self._place), _Opened("[", self._place)]
      self._group += 1
      self._state, self._brackets = _State.BETWEEN, bytearray()
      self._held = bytearray()
      self.found_answer = True
      return at + 1
    end = _match_end(_OPENERS_RUN, block, at)
    self._brackets += block[at:end]
    return end

  def _opens_answer(self, block: bytes, at: int) -> bool:
    if self._state is not _State.RECORD or len(self._open) + 2 > self._most_open:
      return False
    held = len(self._held) + at - self._from
    if self._is_long or self._is_no_answer or held > _ANSWER_HEAD_BYTES:
      return False
    tail = block[max(self._from, at - _KEY_BYTES) : at]
    if len(tail) < _KEY_BYTES:
      tail = bytes(self._held[-_KEY_BYTES:]) + tail
    if _DATA_KEY.search(tail) is None:
      return False
    start = bytes(self._held) + block[self._from : at]
    found = start[:1] == b"{" and _NO_ANSWER.isdisjoint(top_keys(start))
    self._is_no_answer = not found
    return found

  def _begins_anew(self, block: bytes, at: int) -> bool:
    """Whether another record begins at a bracket, what is read being broken.

    Closes what is open around what is read, where that is broken as well.
    """
    before = block[at - 1 : at]
    if not before or before[0] in _WHITE_SPACE:
      before = (self._before + block[max(0, at - _LEAD_BYTES) : at]).rstrip()[-1:]
    # Where no value may begin, something is missing before.
    may_begin = before == b":" or (
      before in (b"[", b",") and self._brackets[-1:] == b"["
    )
    if may_begin and not (self._is_broken or self._is_long):
      return False
    self._is_broken = True
    indent = self._indent_of(block, at)
    if indent is None:
      return False
    around = (opened.place for opened in reversed(self._open))
    for place in (self._place, self._before_place, *around):
      if place.indent == indent:
        if place.depth < len(self._open) or self._state is _State.SKIPPED:
          self._unclosed()
          self._group += 1
        del self._open[place.depth :]
        return True
    return False

  def _indent_of(self, block: bytes, at: int) -> bytes | None:
    """The indent of what begins at a place; see `_Place.indent`."""
    before = block[max(0, at - _LEAD_BYTES) : at]
    if len(before) == at < _LEAD_BYTES:
      before = self._before + before
    _, line_feed, lead = before.rpartition(b"\n")
    match = _LEAD.fullmatch(lead) if line_feed else None
    return match and match[1]

  def _end(self, block: bytes, at: int) -> Iterator[Record]:
    """Ends what is read before a place in the block."""
    state, self._state = self._state, _State.BETWEEN
    if state is _State.SKIPPED:
      if self._is_broken:
        yield Record(b"}", self._group)
      return
    self._hold(block[self._from : at])
    content, self._held = bytes(self._held.rstrip()), bytearray()
    if state is _State.RECORD and not self._is_broken:
      self._before_place = self._place
    start = self._next_start(content) if state is _State.RECORD else None
    if start is None:
      yield from self._checked(content)
      return
    yield from self._checked(content[:start].rstrip())
    rest = Cutter(
      self._max_bytes,
      self._too_long,
      lambda: None,
      is_whole=self._is_whole,
      again=self._again - 1,
    )
    for found in itertools.chain(rest.feed(content[start:]), rest.finish()):
      yield found._replace(group=self._group)

  def _next_start(self, content: bytes) -> int | None:
    """Where another record begins in one that is broken."""
    indent = self._place.indent
    if self._is_whole is None or not self._again or self._is_long or indent is None:
      return None
    own = rb"\n%b(?:[,\]}][ \t,\]}]*+)?+(?=[\[{])" % re.escape(indent)
    if (match := re.search(own, content)) is None:
      return None
    # Lines of a whole record begin so as well where none is indented.
    whole = not self._is_broken and (files.is_heavy(content) or self._is_whole(content))
    return None if whole else match.end()

  def _checked(self, content: bytes) -> Iterator[Record]:
    """Yields a record, unless it is too long."""
    if self._is_long or files.is_heavy(content):
      counter, fate = self._too_long
      counter[fate] += 1
    elif content:
      yield Record(content, self._group)

  def _hold(self, part: bytes) -> None:
    self._is_long = self._is_long or len(self._held) + len(part) > self._max_bytes
    if self._is_long:
      self._held = bytearray()
    else:
      self._held += part


def members(
  blocks: Iterable[bytes], max_bytes: int, too_long: tuple[Counter[str], str]
) -> Iterator[tuple[bytes, bytes]]:
  """Yields keys and values of an object that may be larger than memory.

  Args:
    blocks: of a file that holds the object and nothing else; of any other, nothing is
      yielded.
    max_bytes: as in `Cutter`, of a value.
    too_long: as in `Cutter`.

  Yields:
    Each key as a string of JSON, and its value, if that is an object, as it stands.
  """
  cutter = Cutter(max_bytes, too_long, lambda: None, opens=False)
  begun = False
  key = b""
  for block in itertools.chain(blocks, (None,)):
    if block is None:
      found = cutter.finish()
    elif begun:
      found = cutter.feed(block)
    else:
      block = block.lstrip()
      begun = block[:1] == b"{"
      if block and not begun:
        return
      found = cutter.feed(block[1:])
    for content, _ in found:
      if content[:1] != b"{":
        key = content.removesuffix(b":").rstrip()
      elif key:
        yield key, content
        key = b""
