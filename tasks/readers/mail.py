"""Mail: mailboxes (mbox), Maildir folders and single messages.

A message answers the nearest of those that `In-Reply-To` and `References` name that is
there; if none is, all that name the same oldest message are one tree, whose post is
missing. Its text is the first plain part, or the first one of HTML made plain; quoted
lines keep their `>`, which cleaning marks as a quotation, and signatures (behind `-- `)
go. A post's title is its subject.

All files are read twice, since a message knows its parents only: `prepare`. Each
message is counted once, as a record of `pushshift`.
"""

from __future__ import annotations

import contextlib
import email
import email.errors
import email.header
import email.message
import email.utils
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import hacker_news
from commentree.tasks.readers.parsing import files
from commentree.tasks.readers.parsing.times import time_of
from commentree.tasks.readers.roots import Roots, format_by_roots
from commentree.tasks.readers.rows import COMMENT_PREFIX, text
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

DROPPED_UNREADABLE = "dropped: a message that cannot be parsed"

_MBOX = b"From "
# A line between messages names a time and a year, which "From here on" does not.
_BETWEEN = re.compile(rb"From (?=[^\n]{0,998}\d:\d\d)(?=[^\n]{0,998}\b(?:19|20)\d\d\b)")
_ID = re.compile(r"<([^<>\s]{1,998})>")
_HEADER = re.compile(rb"[!-9;-~]{1,76}:[ \t]")
_ESCAPED_FROM = re.compile(rb"^>(>*From )")
_SIGNATURE = "-- "
# What Python's parser raises of headers and parts that are broken.
_PARSING_ERRORS = (
  AssertionError,
  AttributeError,
  LookupError,
  RecursionError,
  email.errors.MessageError,
  TypeError,
  ValueError,
)
_UNSHOWN = ("style", "script", "head")
_MAX_REFERENCES = 100
_MAX_PARTS = 1_000


def _matches(name: str, head: bytes) -> bool:
  del name
  head = head.lstrip(b"\r\n")
  if _BETWEEN.match(head):
    return True  # though the first message may be broken
  if head.startswith(_MBOX):
    head = head.partition(b"\n")[2]
  elif b"message-id:" not in head.lower():
    return False
  return _HEADER.match(head) is not None


def messages(
  path: str, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[email.message.Message]:
  """Yields the messages in a file.

  Args:
    path: a mailbox, or a file of one message.
    config: says how long a message may be, and one line of it.
    read_counts: counts what became of the file, and messages too long.
  """
  held: list[bytes] = []
  size, begun, blank, is_box = 0, False, True, False
  for line in _lines(path, config, read_counts):
    starts = not begun and line.startswith(_MBOX)
    if starts or (is_box and blank and _BETWEEN.match(line)):
      if begun:
        yield from _message(held, size, config, read_counts)
      held, size, begun, is_box = [], 0, True, True
      continue
    blank = not line.strip()
    if blank and not begun and not is_box:
      continue  # before the first message
    begun = True
    size += len(line)
    if size <= config.max_line_bytes:
      held.append(_ESCAPED_FROM.sub(rb"\1", line) if is_box else line)
  if begun:
    yield from _message(held, size, config, read_counts)


def _lines(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[bytes]:
  """Lines with their ends, blank ones too; those too long in pieces."""
  begun = bytearray()
  for block in files.blocks(path, read_counts):
    first, *lines = block.split(b"\n")
    begun += first
    if lines:
      yield bytes(begun) + b"\n"
      begun = bytearray(lines.pop())
    for line in lines:
      yield line + b"\n"
    if len(begun) > config.max_line_bytes:
      yield bytes(begun)
      begun = bytearray()
  if begun:
    yield bytes(begun)


def _message(
  held: list[bytes], size: int, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[email.message.Message]:
  if size > config.max_line_bytes:
    read_counts.comments[files.DROPPED_LINE_TOO_LONG] += 1
    return
  try:
    yield email.message_from_bytes(b"".join(held))
  except RecursionError:  # of parts in parts
    read_counts.comments[DROPPED_UNREADABLE] += 1


def prepare(paths: Sequence[str], config: TreeConfig) -> bytes:
  """Finds the threads of all messages in files; returns them for `prepared`."""
  roots, ignored = Roots.builder(), ReadCounts()  # whoever reads the rows counts
  for path in paths:
    for message in messages(path, config, ignored):
      with contextlib.suppress(*_PARSING_ERRORS):
        ident = _id(message)
        if ident:
          roots.add(ident, [above for above in _answered(message) if above != ident])
  return bytes(roots.build())


def _rows(
  roots: Roots, path: str, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  for message in messages(path, config, read_counts):
    try:
      row = _row(message, roots, read_counts)
    except _PARSING_ERRORS:
      read_counts.comments[DROPPED_UNREADABLE] += 1
      continue
    if row is not None:
      yield row


def is_in_maildir(path: str) -> bool:
  """Whether a file is a message of a Maildir folder, which has no ending."""
  folder, place = os.path.split(os.path.dirname(path))
  return place in ("cur", "new") and os.path.isdir(os.path.join(folder, "tmp"))


FORMAT = format_by_roots(
  "mail",
  (".mbox", ".mbx", ".eml"),
  _matches,
  takes=is_in_maildir,
  prepare=prepare,
  rows=_rows,
)


def _row(
  message: email.message.Message, roots: Roots, read_counts: ReadCounts
) -> Row | None:
  ident = _id(message)
  if ident is None:
    read_counts.comments[comment_tree.DROPPED_NO_ID] += 1
    return None
  answered = [above for above in _answered(message) if above != ident]
  post = roots.of(ident)
  if post is None:
    read_counts.comments[comment_tree.DROPPED_CYCLE] += 1
    return None
  is_post = not answered
  parent = next((above for above in answered if above in roots), None)
  written = _body(message)
  return Row(
    tree_id=post,
    is_post=is_post,
    id=ident,
    parent_id=COMMENT_PREFIX + parent
    if parent is not None and parent != post
    else None,
    author=text(_author(message), read_counts),
    text=text(_header(message, "Subject") if is_post else written, read_counts),
    selftext=text(written, read_counts) if is_post else None,
    created_utc=time_of(_header(message, "Date")),
  )


def _id(message: email.message.Message) -> str | None:
  found = _ID.search(_raw(message, "Message-ID"))
  return found[1] if found else None


def _answered(message: email.message.Message) -> list[str]:
  """Ids of what a message answers, the nearest first."""
  direct = _ID.findall(_raw(message, "In-Reply-To"))[:1]
  references = _ID.findall(_raw(message, "References"))
  if len(references) > _MAX_REFERENCES:
    references = references[:1] + references[1 - _MAX_REFERENCES :]
  return list(dict.fromkeys([*direct, *reversed(references)]))


def _raw(message: email.message.Message, name: str) -> str:
  return str(message.get(name) or "")


def _header(message: email.message.Message, name: str) -> str | None:
  """A header's text, its encoded words decoded; None for no such header."""
  value = message.get(name)
  if value is None:
    return None
  try:
    decoded = str(email.header.make_header(email.header.decode_header(value)))
  except _PARSING_ERRORS:  # also an encoding that Python does not know
    decoded = str(value)
  return " ".join(decoded.split())


def _author(message: email.message.Message) -> str | None:
  """Who wrote a message: the name, or else the address."""
  name, address = email.utils.parseaddr(_header(message, "From") or "")
  return name or address or None


def _body(message: email.message.Message) -> str | None:
  """The first plain text of a message without its signature; None for none."""
  html = None
  for part in itertools.islice(message.walk(), _MAX_PARTS):
    kind = part.get_content_type()
    if part.is_multipart() or part.get_filename() or not kind.startswith("text/"):
      continue
    if kind == "text/plain":
      return _without_signature(_decoded(part))
    if kind == "text/html" and html is None:
      html = part
  if html is None:
    return None
  return hacker_news.plain(_shown(_decoded(html)), ReadCounts())


def _shown(html: str) -> str:
  """HTML without elements whose contents are not shown."""
  for tag in _UNSHOWN:
    pieces: list[str] = []
    place, low = 0, html.lower()
    while (start := low.find(f"<{tag}", place)) >= 0:
      end = low.find(f"</{tag}", start)
      if end < 0:
        break
      pieces.append(html[place:start])
      place = end
    html = "".join(pieces) + html[place:]
  return html


def _decoded(part: email.message.Message) -> str:
  payload = part.get_payload(decode=True)
  content = payload if isinstance(payload, bytes) else b""
  try:
    return content.decode(part.get_content_charset() or "utf-8", "replace")
  except LookupError:
    return content.decode("utf-8", "replace")


def _without_signature(written: str) -> str:
  lines = written.splitlines()
  if _SIGNATURE in lines:
    lines = lines[: lines.index(_SIGNATURE)]
  return "\n".join(lines).strip()
