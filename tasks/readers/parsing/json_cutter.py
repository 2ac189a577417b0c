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
_INDENT_BYTES = 200  # white space before a record, as far as it is looked at
_KEY_BYTES = 64  # before an array, in which its key is sought
_ANSWER_HEAD_BYTES = 2**16  # before the array of an answer

_NO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
_STRING_REST = re.compile(rb"(?:[^\"\\\n]++|\\[^\n])*+")
_BRACES_RUN = re.compile(rb"}++")
_OPENERS_RUN, _CLOSERS_RUN = re.compile(rb"[\[{]++"), re.compile(rb"[\]}]++")
_BETWEEN = re.compile(rb"[\s,]*+")
_SCALAR = re.compile(rb'(?:[^",\n\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
_DATA_KEY = re.compile(rb'"data"\s*:\s*\Z')
# A string, closed or not, behind which a colon may stand, or a bracket.
_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?(\s*+:)?|[\[\]{}]', re.DOTALL)
_NO_ANSWER = frozenset(("id", "kind", "comments", "title", "body", "text"))

_QUOTE, _LINE_FEED = ord('"'), ord("\n")
_OPENERS, _WHITE_SPACE = frozenset(b"[{"), frozenset(b" \t\r\n")


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
    again: bool = True,
    opens: bool = True,
  ):
    """Starts at the beginning of a file.

    Args:
      max_bytes: records longer than this are left out, as lines are by `files`.
      too_long: what counts them, and the key that it counts them by.
      unclosed: called at the end if an array is not closed.
      again: whether to seek records in one that the file's end cuts off.
      opens: whether arrays are opened, so that their elements are records.
    """
    self.found_answer = False
    self._max_bytes = max_bytes
    self._too_long = too_long
    self._unclosed = unclosed
    self._again = again
    self._most_open = _MOST_OPEN if opens else 0
    self._state = _State.BETWEEN
    self._open: list[str] = []  # what is open around records: "[", "{"
    self._group = 0
    self._brackets = bytearray()  # that are open in what is read
    self._in_string = self._escaped = False
    self._is_long = self._is_broken = self._is_no_answer = False
    self._held = bytearray()  # of the record, from earlier blocks
    self._from = 0  # where the record begins in the block
    self._indent: bytes | None = None  # before the record on its line
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
            del self._brackets[-closed:]
            at += closed
            if not self._brackets:
              yield from self._end(block, at)
    if self._state in (_State.RECORD, _State.SCALAR):
      self._hold(block[self._from :])
    self._before = (self._before + block[-_INDENT_BYTES:])[-_INDENT_BYTES:]

  def finish(self) -> Iterator[Record]:
    """Yields what is left at the end of the file."""
    if self._state is _State.SKIPPED:
      self._open.append("{")
    if self._open:
      self._unclosed()
    if self._state is not _State.RECORD or self._is_long or self._indent is None:
      if self._state in (_State.RECORD, _State.SCALAR):
        yield from self._end(b"", 0)
      return
    content, self._held = bytes(self._held), bytearray()
    starts: Iterator[int] = iter(())
    if self._again:
      beginning = re.compile(rb"\n" + re.escape(self._indent) + rb"(?=[\[{])")
      starts = (match.start() for match in beginning.finditer(content))
    for start, end in itertools.pairwise(itertools.chain((0,), starts, (None,))):
      part = content[start:end]
      if not start:
        yield from self._checked(part.rstrip())
        continue
      rest = Cutter(self._max_bytes, self._too_long, lambda: None, again=False)
      for found in itertools.chain(rest.feed(part), rest.finish()):
        yield found._replace(group=self._group)

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
    if character == "[" and len(self._open) < self._most_open:
      self._open.append("[")
      self._group += 1
      return at + 1
    if character == "]" and self._open:
      self._open.pop()
      self._group += 1
      if self._open and self._open[-1] == "{":
        self._open.pop()
        self._state, self._brackets = _State.SKIPPED, bytearray(b"{")
      return at + 1
    if character in "]}":
      return _match_end(_BRACES_RUN if self._open else _CLOSERS_RUN, block, at)
    self._from = at
    self._indent = self._indent_of(block, at)
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
      self._open += ["{", "["]
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
    """Whether another record begins at a bracket, this one being broken."""
    if self._state is not _State.RECORD or self._indent is None:
      return False
    if at and block[at - 1] not in _WHITE_SPACE:  # most brackets, quickly
      return False
    before = (self._before + block[max(0, at - _INDENT_BYTES) : at]).rstrip()
    # Where no value may begin, something is missing before.
    after = before[-1:]
    may_begin = after == b":" or (after in (b"[", b",") and self._brackets[-1:] == b"[")
    if may_begin and not (self._is_broken or self._is_long):
      return False
    return self._indent_of(block, at) == self._indent

  def _indent_of(self, block: bytes, at: int) -> bytes | None:
    """White space from a line's beginning to a place; None if there is more."""
    before = block[max(0, at - _INDENT_BYTES) : at]
    if len(before) == at < _INDENT_BYTES:
      before = self._before + before
    _, line_feed, indent = before.rpartition(b"\n")
    return indent if line_feed and not indent.strip() else None

  def _end(self, block: bytes, at: int) -> Iterator[Record]:
    """Ends what is read before a place in the block."""
    state, self._state = self._state, _State.BETWEEN
    if state is _State.SKIPPED:
      return
    self._hold(block[self._from : at])
    content, self._held = bytes(self._held.rstrip()), bytearray()
    yield from self._checked(content)

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
  cutter = Cutter(max_bytes, too_long, lambda: None, again=False, opens=False)
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
