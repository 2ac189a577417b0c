"""XML of 'change-my-view-modes' v2.0: threads with their claims and premises marked.

    <thread ID="..."><title>...</title><OP author="...">...</OP>
    <reply id="..." author="...">... <claim ...>... <premise ...>...</premise></claim>
    </reply> ...</thread>

A file is a thread from the post down: each reply answers the one before it. Files that
begin with the same post become one tree. `claim` and `premise` become `Span`s; white
space around texts and at the ends of spans is left out.

Not all files are well-formed, so tags are read as they come:
- an element of a kind that cannot be inside what is open ends that first: a `<reply>`
  the reply before it, an end tag what was begun inside its element;
- at the file's end, all ends;
- an end tag without a beginning is passed over;
- whatever else looks like a tag is text, and so is an entity that is neither of XML's
  five nor a number: none is ever expanded into more.
`ReadCounts.repaired` counts the first three.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import files, json_lines
from commentree.tasks.readers.rows import (
  COMMENT_PREFIX,
  POST_PREFIX,
  Format,
  identifier,
)
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts, Span
from commentree.tasks.trees.row import Row

NO_THREAD = "skipped: no thread in the file"
REPAIRED_NOT_CLOSED = "elements without an end tag closed"
REPAIRED_NOT_OPENED = "end tags without a beginning passed over"

_LABELS = ("claim", "premise")
_DOCTYPE_HEAD = 1000  # characters in which the brackets of a document type begin
_TOKEN = re.compile(
  r"(?P<opener><!--|<\?|<!\[CDATA\[|<!DOCTYPE\b)"
  r"|<(?P<end>/?)(?P<name>thread|title|source|OP|reply|claim|premise)\b"
  r"""(?P<attributes>(?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+)>""",
  re.IGNORECASE,
)
# A search starts where a name does, and only there: linear time.
_ATTRIBUTE = re.compile(
  r"""(?<![\w:.-])([\w:.-]++)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)')"""
)
_ENTITY = re.compile(r"&(?:#(\d{1,9})|#[xX]([0-9a-fA-F]{1,8})|(lt|gt|amp|quot|apos));")
_CHARACTERS = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}


@dataclasses.dataclass
class _Part:
  """A title, post or reply as it is read."""

  name: str
  attributes: dict[str, str]
  pieces: list[str] = dataclasses.field(default_factory=list)
  length: int = 0
  spans: list[Span] = dataclasses.field(default_factory=list)

  def add(self, text: str) -> None:
    self.pieces.append(text)
    self.length += len(text)

  def stripped(self) -> tuple[str, tuple[Span, ...]]:
    """The text without white space around it, and the spans in that."""
    written = "".join(self.pieces)
    left = len(written) - len(written.lstrip())
    text = written.strip()
    if not self.spans:
      return text, ()
    # From each place to the next character that is no white space, and to the end of
    # the last one before.
    ends = [0, *(0 if c.isspace() else i for i, c in enumerate(written, 1))]
    last = list(itertools.accumulate(ends, max))
    starts = [len(written)] * (len(written) + 1)
    for i in range(len(written) - 1, -1, -1):
      starts[i] = starts[i + 1] if written[i].isspace() else i
    spans = []
    for start, end, label in self.spans:
      start, end = starts[start], last[end]
      if start < end:
        spans.append(Span(start - left, end - left, label))
    return text, tuple(sorted(spans, key=lambda span: (span.start, -span.end)))


def _matches(name: str, head: bytes) -> bool:
  del name
  return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<" and b"<thread" in head


def _rows(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[Row]:
  content = files.whole(path, config.max_line_bytes, read_counts)
  if content is None:
    return
  try:
    document = content.decode("utf-8-sig")
  except UnicodeDecodeError:
    document = content.decode("utf-8-sig", "replace")
    read_counts.repaired[json_lines.REPAIRED_UTF8] += 1
  if "\0" in document:
    document = document.replace("\0", "")
    read_counts.repaired[comment_tree.REPAIRED_NUL] += 1
  yield from document_rows(document.replace("\r\n", "\n"), config, read_counts)


FORMAT = Format("cmv_modes", (".xml",), _matches, _rows, contiguous=False)


def document_rows(
  document: str, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  """Yields the rows of a thread, its post's first; any text will do."""
  parser = _Parser(read_counts)
  parser.read(document)
  named, parts = parser.thread, parser.parts
  replies = [part for part in parts if part.name == "reply"]
  if named is None and not replies:
    read_counts.trees[NO_THREAD] += 1
    return
  tree_id = (identifier(named, read_counts) or "").removeprefix(POST_PREFIX)
  if not tree_id:
    read_counts.trees[comment_tree.TREE_NO_ID] += 1
    read_counts.comments[comment_tree.DROPPED_WITH_TREE] += len(replies)
    return
  yield _post(tree_id, parts, config)
  parent = POST_PREFIX + tree_id
  for reply in replies:
    text, spans = reply.stripped()
    ident = identifier(reply.attributes.get("id"), read_counts)
    yield Row(
      tree_id=tree_id,
      is_post=False,
      id=ident,
      parent_id=parent,
      author=reply.attributes.get("author"),
      text=text,
      spans=spans,
    )
    if ident:
      parent = COMMENT_PREFIX + ident.removeprefix(COMMENT_PREFIX)


def _post(tree_id: str, parts: list[_Part], config: TreeConfig) -> Row:
  by_name = {part.name: part for part in reversed(parts)}  # the first of each
  nothing = _Part("", {})
  title, title_spans = by_name.get("title", nothing).stripped()
  op = by_name.get("op", nothing)
  selftext, own_spans = op.stripped()
  whole = comment_tree.post_text(title, selftext, config)
  spans: tuple[Span, ...] = ()
  if title and not comment_tree.is_deleted(title):
    spans += title_spans
  if selftext and not comment_tree.is_deleted(selftext):
    shift = len(whole) - len(selftext)
    spans += tuple(Span(start + shift, end + shift, x) for start, end, x in own_spans)
  return Row(
    tree_id=tree_id,
    is_post=True,
    id=tree_id,
    author=op.attributes.get("author"),
    text=title,
    selftext=selftext,
    spans=spans,
  )


class _Parser:
  """Reads tags as they come.

  Attributes:
    thread: the thread's id; None if there is no thread.
    parts: titles, posts and replies, in order.
  """

  def __init__(self, read_counts: ReadCounts):
    self.thread: str | None = None
    self.parts: list[_Part] = []
    self._fates = read_counts
    self._in_thread = False
    self._inside: _Part | None = None
    self._labels: list[tuple[str, int]] = []  # that are open, and where they begin
    self._open: collections.Counter[str] = collections.Counter()  # those, by name

  def read(self, document: str) -> None:
    place = 0  # behind the last token
    searched = 0
    endless: set[str] = set()  # what is not to be looked for again
    while match := _TOKEN.search(document, searched):
      opener = match["opener"]
      if opener is None:
        self._text(document[place : match.start()])
        searched = place = match.end()
        self._tag(match)
        continue
      closer = _closer(opener, document, match.end())
      end = -1 if closer in endless else document.find(closer, match.end())
      searched = match.end()
      if end < 0:
        endless.add(closer)
        continue  # it is text
      self._text(document[place : match.start()])
      if opener.startswith("<![") and self._inside is not None:
        self._inside.add(document[match.end() : end])
      searched = place = end + len(closer)
    self._text(document[place:])
    self._end_part(expected=False)
    if self._in_thread:
      self._repaired(REPAIRED_NOT_CLOSED)

  def _text(self, written: str) -> None:
    if self._inside is not None:
      self._inside.add(_without_entities(written))

  def _tag(self, match: re.Match[str]) -> None:
    name, ends = match["name"].lower(), bool(match["end"])
    attributes = match["attributes"]
    if name in _LABELS:
      if ends:
        self._end_label(name)
      elif self._inside is not None and not attributes.rstrip().endswith("/"):
        self._labels.append((name, self._inside.length))
        self._open[name] += 1
    elif ends and name != "thread":
      if self._inside is None or self._inside.name != name:
        self._repaired(REPAIRED_NOT_OPENED)
      else:
        self._end_part(expected=True)
    else:
      self._end_part(expected=False)
      if name != "thread":
        self._inside = _Part(name, _attributes(attributes))
        self.parts.append(self._inside)
        if attributes.rstrip().endswith("/"):
          self._end_part(expected=True)
        return
      if ends and not self._in_thread:
        self._repaired(REPAIRED_NOT_OPENED)
      self._in_thread = not ends
      if not ends and self.thread is None:
        self.thread = _attributes(attributes).get("id", "")

  def _end_label(self, name: str) -> None:
    if not self._open[name]:
      self._repaired(REPAIRED_NOT_OPENED)
      return
    number = len(self._labels) - 1
    while self._labels[number][0] != name:
      number -= 1
    self._repaired(REPAIRED_NOT_CLOSED, len(self._labels) - 1 - number)
    self._end_labels(number)

  def _end_labels(self, down_to: int) -> None:
    while len(self._labels) > down_to:
      label, start = self._labels.pop()
      self._open[label] -= 1
      if self._inside is not None:
        self._inside.spans.append(Span(start, self._inside.length, label))

  def _end_part(self, *, expected: bool) -> None:
    if self._inside is not None:
      self._repaired(REPAIRED_NOT_CLOSED, len(self._labels) + (not expected))
    self._end_labels(0)
    self._inside = None

  def _repaired(self, fate: str, number: int = 1) -> None:
    if number:
      self._fates.repaired[fate] += number


def _closer(opener: str, document: str, place: int) -> str:
  """What ends a comment, instruction, CDATA section or document type."""
  if opener.startswith("<!--"):
    return "-->"
  if opener == "<?":
    return "?>"
  if opener.startswith("<!["):
    return "]]>"
  head, bracket, _ = document[place : place + _DOCTYPE_HEAD].partition("[")
  return "]>" if bracket and ">" not in head else ">"


def _attributes(written: str) -> dict[str, str]:
  return {
    match[1].lower(): _without_entities(match[2] if match[2] is not None else match[3])
    for match in _ATTRIBUTE.finditer(written)
  }


def _without_entities(written: str) -> str:
  return _ENTITY.sub(_character, written) if "&" in written else written


def _character(entity: re.Match[str]) -> str:
  decimal, hexadecimal, name = entity.groups()
  if name:
    return _CHARACTERS[name]
  code = int(decimal) if decimal else int(hexadecimal, 16)
  possible = 0 < code < 0xD800 or 0xDFFF < code < 0x110000
  return chr(code) if possible else "\ufffd"
