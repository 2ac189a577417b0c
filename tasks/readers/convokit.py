"""ConvoKit corpora: `utterances.jsonl`, with `conversations.json` beside it for titles.

An utterance is an object on a line: `id`, `conversation_id`, `text`, `speaker`,
`reply-to` (or `reply_to`), `timestamp`, `meta`; in the oldest corpora `root` and `user`
for `conversation_id` and `speaker`. The post is the utterance whose id is its
conversation's. Lines add up as those of `pushshift` do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .. import trees
from ..config import TreeConfig
from ..trees import Fates
from . import compression, json_lines, json_records
from .rows import POST_PREFIX, Format, Row, identifier, seconds, text, votes

TITLES_UNREADABLE = "not read: conversations.json, titles"

_UTTERANCES = "utterances.jsonl"
_CONVERSATIONS = "conversations.json"
# What a corpus's folder holds beside its utterances.
_OTHER_FILES = (
  _CONVERSATIONS,
  "corpus.json",
  "index.json",
  "speakers.json",
  "users.json",
)

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
  return name in _OTHER_FILES and any(
    os.path.exists(os.path.join(folder, _UTTERANCES + ending))
    for ending in ("", *compression.SUFFIXES)
  )


def _beside(path: str) -> list[str]:
  found = os.path.join(os.path.dirname(path), _CONVERSATIONS)
  return [found] if os.path.exists(found) else []


def _rows(path: str, config: TreeConfig, fates: Fates) -> Iterator[Row]:
  conversations = _conversations(path, fates)
  for utterance in json_lines.objects(path, _Utterance, config, fates):
    row = _row(utterance, conversations, fates)
    if row is None:
      fates.comments[trees.DROPPED_NO_TREE] += 1
    else:
      yield row


FORMAT = Format(
  "convokit",
  (".jsonl",),
  _matches,
  _rows,
  contiguous=False,
  aside=_aside,
  beside=_beside,
)


def _row(
  utterance: _Utterance, conversations: Mapping[str, Any], fates: Fates
) -> Row | None:
  conversation = utterance.conversation_id
  if conversation is None:
    conversation = utterance.root
  named = identifier(conversation, fates)
  tree_id = (named or "").removeprefix(POST_PREFIX)
  if not tree_id:
    return None
  ident = identifier(utterance.id, fates)
  is_post = ident is not None and ident.removeprefix(POST_PREFIX) == tree_id
  speaker = utterance.speaker if utterance.speaker is not None else utterance.user
  reply_to = utterance.reply_hyphen
  if reply_to is None:
    reply_to = utterance.reply_to
  meta = utterance.meta if isinstance(utterance.meta, Mapping) else {}
  about = _meta_of(conversations.get(named)) if named else {}
  written = text(utterance.text, fates)
  subreddit = text(meta.get("subreddit"), fates)
  return Row(
    tree_id,
    is_post,
    ident,
    parent_id=None if is_post else identifier(reply_to, fates),
    author=text(speaker, fates),
    text=text(about.get("title"), fates) if is_post else written,
    selftext=written if is_post else None,
    created_utc=seconds(utterance.timestamp),
    score=votes(meta.get("score")),
    subreddit=subreddit or text(about.get("subreddit"), fates),
  )


def _meta_of(conversation: Any) -> Mapping[str, Any]:
  """What is said of a conversation: under `meta`, in the oldest corpora beside it."""
  if not isinstance(conversation, Mapping):
    return {}
  meta = conversation.get("meta", conversation)
  return meta if isinstance(meta, Mapping) else {}


def _conversations(path: str, fates: Fates) -> Mapping[str, Any]:
  """The contents of `conversations.json` beside a file; empty if there are none."""
  for beside in _beside(path):
    try:
      with open(beside, "rb") as file:
        found = json_lines.parse(file.read(), fates)
    except OSError:
      found = json_lines.BAD
    if isinstance(found, Mapping):
      return found
    fates.files[TITLES_UNREADABLE] += 1
    _log.warning("%s: cannot be read; posts are without their titles", beside)
  return {}
