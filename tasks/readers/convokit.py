"""ConvoKit corpora: `utterances.jsonl`, with `conversations.json` beside it for titles.

An utterance is an object on a line: `id`, `conversation_id`, `text`, `speaker`,
`reply-to` (or `reply_to`), `timestamp`, `meta`; in the oldest corpora an element of an
array in `utterances.json`, with `root` and `user` for `conversation_id` and `speaker`.
The post is the utterance whose id is its conversation's; otherwise the first that
answers none, or itself; others of these answer the post. Where a conversation's id is
missing, it is that of the utterance that replies lead to. Lines add up as those of
`pushshift` do.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import (
  compression,
  files,
  index_on_disk,
  json_cutter,
  json_lines,
  json_records,
)
from commentree.tasks.readers.parsing.index_on_disk import Index
from commentree.tasks.readers.rows import (
  POST_PREFIX,
  Format,
  identifier,
  parent,
  seconds,
  text,
  votes,
)
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

TITLES_UNREADABLE = "not read: conversations.json, titles"
REPAIRED_TITLE_LEFT_OUT = "titles of conversations that are too long left out"

_UTTERANCES = ("utterances.jsonl", "utterances.json")
_CONVERSATIONS = "conversations.json"
# What a corpus's folder holds beside its utterances.
_OTHER_FILES = (
  _CONVERSATIONS,
  "corpus.json",
  "index.json",
  "speakers.json",
  "users.json",
)
_INFO = "info."  # begins the names of files with one field of all utterances
_TITLES = ("title", "page_title", "subject")  # in a conversation's `meta`
_CONVERSATIONS_HELD = 1_000
# Before the id of a conversation, where there may be that of an utterance.
_NAMED = " "

# Title and subreddit of a conversation, by its id.
_Facts = Callable[[str], tuple[str | None, str | None]]

_log = logging.getLogger(__name__)


class _Utterance(msgspec.Struct, gc=False, rename={"reply_hyphen": "reply-to"}):
  """What is read of a line, by the keys of all versions."""

  id: Any = None
  conversation_id: Any = None
  root: Any = None
  reply_to: Any = None
  reply_hyphen: Any = None
  speaker: Any = None
  user: Any = None
  text: Any = None
  timestamp: Any = None
  meta: Any = None


def _matches(name: str, head: bytes) -> bool:
  del name
  return any(
    {"id", "text"} <= keys
    and not keys.isdisjoint(("conversation_id", "root"))
    and not keys.isdisjoint(("speaker", "user"))
    for keys in json_records.first_keys(head)
  )


def _aside(path: str) -> bool:
  folder, name = os.path.split(path)
  return (name in _OTHER_FILES or name.startswith(_INFO)) and any(
    os.path.exists(os.path.join(folder, utterances + ending))
    for utterances in _UTTERANCES
    for ending in ("", *compression.SUFFIXES)
  )


def _beside(path: str) -> list[str]:
  found = os.path.join(os.path.dirname(path), _CONVERSATIONS)
  return [found] if os.path.exists(found) else []


def _rows(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[Row]:
  with index_on_disk.index() as about, index_on_disk.index() as above:
    _read_conversations(path, about, config, read_counts)

    @functools.lru_cache(_CONVERSATIONS_HELD)
    def facts(conversation: str) -> tuple[str | None, str | None]:
      found = about.get(conversation)
      return (None, None) if found is None else tuple(json.loads(found))

    unnamed = False
    for utterance in json_lines.objects(path, _Utterance, config, read_counts):
      conversation = _conversation(utterance, read_counts)
      if conversation:
        yield _row(utterance, conversation, facts(conversation), read_counts)
        continue
      ident, reply_to = _ids(
        utterance, ReadCounts()
      )  # of which mends are counted below
      if ident and reply_to and reply_to != ident:
        above[ident] = reply_to
      if ident or reply_to:
        unnamed = True
      else:
        read_counts.comments[comment_tree.DROPPED_NO_TREE] += 1
    if unnamed:
      yield from _unnamed_rows(path, above, facts, config, read_counts)


FORMAT = Format(
  "convokit",
  (".jsonl", ".json"),
  _matches,
  _rows,
  contiguous=False,
  aside=_aside,
  beside=_beside,
)


def _unnamed_rows(
  path: str, above: Index, facts: _Facts, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  """Yields the rows of utterances without a conversation's id, as replies lead to it.

  Args:
    path: the file, which was read once.
    above: what each of these utterances answers, by its id.
    facts: of a conversation.
    config: as in `_rows`.
    read_counts: counts what is repaired in these utterances, but not the file again.
  """
  for utterance in json_lines.objects(path, _Utterance, config, ReadCounts()):
    conversation = _conversation(utterance, ReadCounts())
    ident, _ = _ids(utterance, ReadCounts())
    if conversation and ident and above.get(ident) is None:
      above[ident] = _NAMED + conversation
  for utterance in json_lines.objects(path, _Utterance, config, ReadCounts()):
    ident, reply_to = _ids(utterance, ReadCounts())
    if _conversation(utterance, ReadCounts()) or not (ident or reply_to):
      continue
    conversation = above.root(ident or reply_to or "").removeprefix(_NAMED)
    yield _row(utterance, conversation, facts(conversation), read_counts)


def _conversation(utterance: _Utterance, read_counts: ReadCounts) -> str:
  """The id of an utterance's conversation; empty if it has none."""
  conversation = utterance.conversation_id
  if conversation is None:
    conversation = utterance.root
  return (identifier(conversation, read_counts) or "").removeprefix(POST_PREFIX)


def _ids(
  utterance: _Utterance, read_counts: ReadCounts
) -> tuple[str | None, str | None]:
  """An utterance's id, and that of what it answers: see `Row.parent_id`."""
  reply_to = utterance.reply_hyphen
  if reply_to is None:
    reply_to = utterance.reply_to
  return identifier(utterance.id, read_counts), parent(reply_to, read_counts)


def _row(
  utterance: _Utterance,
  conversation: str,
  facts: tuple[str | None, str | None],
  read_counts: ReadCounts,
) -> Row:
  ident, reply_to = _ids(utterance, read_counts)
  own = (ident or "").removeprefix(POST_PREFIX)
  answered = (reply_to or "").removeprefix(POST_PREFIX)
  is_post = own == conversation or (bool(own) and (reply_to is None or answered == own))
  answers_post = is_post or answered == conversation
  speaker = utterance.speaker if utterance.speaker is not None else utterance.user
  meta = utterance.meta if isinstance(utterance.meta, Mapping) else {}
  title, subreddit = facts
  written = text(utterance.text, read_counts)
  return Row(
    conversation,
    is_post,
    ident,
    parent_id=None if answers_post else reply_to,
    author=text(speaker, read_counts),
    text=title if is_post else written,
    selftext=written if is_post else None,
    created_utc=seconds(utterance.timestamp),
    score=votes(meta.get("score")),
    subreddit=text(meta.get("subreddit"), read_counts) or subreddit,
  )


def _read_conversations(
  path: str, about: Index, config: TreeConfig, read_counts: ReadCounts
) -> None:
  """Puts title and subreddit of every conversation beside a file into an index."""
  for beside in _beside(path):
    of_file = ReadCounts()
    too_long = read_counts.repaired, REPAIRED_TITLE_LEFT_OUT
    blocks = files.blocks(beside, of_file)
    found = False
    for key, value in json_cutter.members(blocks, config.max_line_bytes, too_long):
      conversation = identifier(json_lines.parse(key, read_counts), read_counts)
      facts = json_lines.parse(value, read_counts)
      if conversation and isinstance(facts, Mapping):
        about[conversation.removeprefix(POST_PREFIX)] = json.dumps(
          _title_and_subreddit(facts, read_counts)
        )
        found = True
    if of_file.files != {files.READ: 1} or not found:
      read_counts.files[TITLES_UNREADABLE] += 1
      _log.warning("%s: cannot be read; posts are without their titles", beside)


def _title_and_subreddit(
  conversation: Mapping[str, Any], read_counts: ReadCounts
) -> tuple[str | None, str | None]:
  """What is said of a conversation: under `meta`, in the oldest corpora beside it."""
  meta = conversation.get("meta", conversation)
  if not isinstance(meta, Mapping):
    return None, None
  titles = (text(meta.get(key), read_counts) for key in _TITLES)
  return next(filter(None, titles), None), text(meta.get("subreddit"), read_counts)
