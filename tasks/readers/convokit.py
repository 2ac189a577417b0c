"""ConvoKit corpora: `utterances.jsonl`, with `conversations.json` beside it for titles.

An utterance is an object on a line: `id`, `conversation_id`, `text`, `speaker`,
`reply-to` (or `reply_to`), `timestamp`, `meta`; in the oldest corpora an element of an
array in `utterances.json`, with `root` and `user` for `conversation_id` and `speaker`.
The post is the utterance whose id is its conversation's; otherwise the first that
answers none, or itself; others of these answer the post. Where a conversation's id is
missing, it is that of the utterance that replies lead to. Lines add up as those of
`pushshift` do. A comment's label is a value in the `meta` of its utterance or of its
conversation, where `TreeConfig.label_from` names one.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from commentree.tasks.config import preprocessing
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
  bounded,
  identifier,
  label,
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
_LOOKED_AT, _KEYS_SHOWN = 100, 20  # in `check`
# Before the id of a conversation, where there may be that of an utterance.
_NAMED = " "


class _Facts(NamedTuple):
  """What is known of a conversation."""

  title: str | None = None
  subreddit: str | None = None
  label: str | None = None


_FactsOf = Callable[[str], _Facts]  # by the conversation's id

_log = logging.getLogger(__name__)


class Utterance(msgspec.Struct, gc=False, rename={"reply_hyphen": "reply-to"}):
  """What is read of an utterance, by the keys of all versions."""

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
    def facts(conversation: str) -> _Facts:
      found = about.get(conversation)
      return _Facts() if found is None else _Facts(*json.loads(found))

    unnamed = False
    for utterance in json_lines.objects(path, Utterance, config, read_counts):
      conversation = _conversation(utterance, read_counts)
      if conversation:
        yield _row(utterance, conversation, facts(conversation), config, read_counts)
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


def check(paths: Sequence[str], config: TreeConfig) -> list[str]:
  """Says where labels are not found in what begins a corpus."""
  if config.label_from is None:
    return []
  return [line for path in paths for line in _without_labels(path, config)]


def _without_labels(path: str, config: TreeConfig) -> Iterator[str]:
  ignored = ReadCounts()  # whoever reads the rows counts
  found: Iterator[Any]
  if (key := _key(config, preprocessing.UTTERANCE_META)) is not None:
    found = (each.meta for each in json_lines.objects(path, Utterance, config, ignored))
    shown, what = path, "utterances"
  else:
    key = _key(config, preprocessing.CONVERSATION_META) or ""
    shown, what = next(iter(_beside(path)), ""), "conversations"
    if not shown:
      yield f"{path}: has no {_CONVERSATIONS} beside it for {config.label_from}"
      return
    found = (_meta(facts) for _, facts in _conversations(shown, config, ignored))
  metas = [
    meta for meta in itertools.islice(found, _LOOKED_AT) if isinstance(meta, Mapping)
  ]
  if all(_value(meta, key) is None for meta in metas):
    keys = sorted({str(key) for meta in metas for key in meta})
    yield (
      f"{shown}: {config.label_from} is in none of the first {what}; their meta has"
      f" {', '.join(keys[:_KEYS_SHOWN]) or 'nothing'}"
    )


FORMAT = Format(
  "convokit",
  (".jsonl", ".json"),
  _matches,
  _rows,
  contiguous=False,
  aside=_aside,
  beside=_beside,
  check=check,
)


def conversation_rows(
  utterances: Iterable[Utterance],
  meta: Mapping[str, Any],
  config: TreeConfig,
  read_counts: ReadCounts,
) -> Iterator[Row]:
  """Yields the rows of a conversation that is in memory.

  Args:
    utterances: all of it, each with its conversation's id.
    meta: of the conversation; has its title, if it has one.
    config: says how large rows may be, and where labels are.
    read_counts: counts repairs.
  """
  facts = _facts({"meta": meta}, config, read_counts)
  found = (
    _row(each, _conversation(each, read_counts), facts, config, read_counts)
    for each in utterances
  )
  return bounded(found, config, read_counts)


def _unnamed_rows(
  path: str, above: Index, facts: _FactsOf, config: TreeConfig, read_counts: ReadCounts
) -> Iterator[Row]:
  """Yields the rows of utterances without a conversation's id, as replies lead to it.

  Args:
    path: the file, which was read once.
    above: what each of these utterances answers, by its id.
    facts: of a conversation.
    config: as in `_rows`.
    read_counts: counts what is repaired in these utterances, but not the file again.
  """
  for utterance in json_lines.objects(path, Utterance, config, ReadCounts()):
    conversation = _conversation(utterance, ReadCounts())
    ident, _ = _ids(utterance, ReadCounts())
    if conversation and ident and above.get(ident) is None:
      above[ident] = _NAMED + conversation
  for utterance in json_lines.objects(path, Utterance, config, ReadCounts()):
    ident, reply_to = _ids(utterance, ReadCounts())
    if _conversation(utterance, ReadCounts()) or not (ident or reply_to):
      continue
    conversation = above.root(ident or reply_to or "").removeprefix(_NAMED)
    yield _row(utterance, conversation, facts(conversation), config, read_counts)


def _conversation(utterance: Utterance, read_counts: ReadCounts) -> str:
  """The id of an utterance's conversation; empty if it has none."""
  conversation = utterance.conversation_id
  if conversation is None:
    conversation = utterance.root
  return (identifier(conversation, read_counts) or "").removeprefix(POST_PREFIX)


def _ids(
  utterance: Utterance, read_counts: ReadCounts
) -> tuple[str | None, str | None]:
  """An utterance's id, and that of what it answers: see `Row.parent_id`."""
  reply_to = utterance.reply_hyphen
  if reply_to is None:
    reply_to = utterance.reply_to
  return identifier(utterance.id, read_counts), parent(reply_to, read_counts)


def _row(
  utterance: Utterance,
  conversation: str,
  facts: _Facts,
  config: TreeConfig,
  read_counts: ReadCounts,
) -> Row:
  ident, reply_to = _ids(utterance, read_counts)
  own = (ident or "").removeprefix(POST_PREFIX)
  answered = (reply_to or "").removeprefix(POST_PREFIX)
  is_post = own == conversation or (bool(own) and (reply_to is None or answered == own))
  answers_post = is_post or answered == conversation
  speaker = utterance.speaker if utterance.speaker is not None else utterance.user
  meta = utterance.meta if isinstance(utterance.meta, Mapping) else {}
  own_label = facts.label
  if (key := _key(config, preprocessing.UTTERANCE_META)) is not None:
    own_label = label(_value(meta, key), read_counts)
  written = text(utterance.text, read_counts)
  return Row(
    tree_id=conversation,
    is_post=is_post,
    id=ident,
    parent_id=None if answers_post else reply_to,
    author=text(speaker, read_counts),
    text=facts.title if is_post else written,
    selftext=written if is_post else None,
    created_utc=seconds(utterance.timestamp),
    score=votes(meta.get("score")),
    subreddit=text(meta.get("subreddit"), read_counts) or facts.subreddit,
    label=own_label,
  )


def _key(config: TreeConfig, owner: str) -> str | None:
  """Where the label is in `meta`, if the settings name one of this owner's."""
  given = config.label_from or ""
  return given.removeprefix(owner) if given.startswith(owner) else None


def _value(meta: Mapping[str, Any], key: str) -> Any:
  """The value of a key, which may have dots, or be of a mapping within."""
  if key in meta:
    return meta[key]
  first, _, rest = key.partition(".")
  inner = meta.get(first)
  return _value(inner, rest) if rest and isinstance(inner, Mapping) else None


def _read_conversations(
  path: str, about: Index, config: TreeConfig, read_counts: ReadCounts
) -> None:
  """Puts what `_Facts` has of every conversation beside a file into an index."""
  for beside in _beside(path):
    of_file = ReadCounts()
    found = False
    for conversation, facts in _conversations(beside, config, read_counts, of_file):
      about[conversation] = json.dumps(_facts(facts, config, read_counts))
      found = True
    if of_file.files != {files.READ: 1} or not found:
      read_counts.files[TITLES_UNREADABLE] += 1
      _log.warning("%s: cannot be read; posts are without their titles", beside)


def _conversations(
  path: str,
  config: TreeConfig,
  read_counts: ReadCounts,
  of_file: ReadCounts | None = None,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields the conversations of a file with their ids.

  Args:
    path: the file.
    config: says how long one may be.
    read_counts: counts repairs.
    of_file: counts the file's fate.
  """
  blocks = files.blocks(path, ReadCounts() if of_file is None else of_file)
  too_long = read_counts.repaired, REPAIRED_TITLE_LEFT_OUT
  for key, value in json_cutter.members(blocks, config.max_line_bytes, too_long):
    conversation = identifier(json_lines.parse(key, read_counts), read_counts)
    facts = json_lines.parse(value, read_counts)
    if conversation and isinstance(facts, Mapping):
      yield conversation.removeprefix(POST_PREFIX), facts


def _meta(conversation: Mapping[str, Any]) -> Any:
  """What is said of a conversation: in the oldest corpora it is not under `meta`."""
  return conversation.get("meta", conversation)


def _facts(
  conversation: Mapping[str, Any], config: TreeConfig, read_counts: ReadCounts
) -> _Facts:
  meta = _meta(conversation)
  if not isinstance(meta, Mapping):
    return _Facts()
  titles = (text(meta.get(key), read_counts) for key in _TITLES)
  key = _key(config, preprocessing.CONVERSATION_META)
  return _Facts(
    next(filter(None, titles), None),
    text(meta.get("subreddit"), read_counts),
    None if key is None else label(_value(meta, key), read_counts),
  )
