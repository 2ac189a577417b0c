"""Open Assistant's conversations: a tree or a message a line, as JSON objects.

    {"message_tree_id", "prompt": {"message_id", "text", "role", "lang",
     "replies": [{"message_id", ...}, ...]}}
    {"message_tree_id", "message_id", "parent_id", "text", "role", "lang"}

The prompt that a tree begins with is its post; a message's author is its role, or who
wrote it where no role is given. Messages that were deleted count as such. Each message
is counted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers.parsing import json_lines, json_records
from commentree.tasks.readers.parsing.times import time_of
from commentree.tasks.readers.rows import Format, identifier, parent, text
from commentree.tasks.trees import comment_tree
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

_DELETED = "[deleted]"


def _matches(name: str, head: bytes) -> bool:
  del name
  return any(
    "message_tree_id" in keys and not keys.isdisjoint(("prompt", "message_id"))
    for keys in json_records.first_keys(head)
  )


def _rows(path: str, config: TreeConfig, read_counts: ReadCounts) -> Iterator[Row]:
  for record, _ in json_records.records(path, config, read_counts, "comments"):
    if not record or record.isspace():
      continue
    for value, _ in json_lines.values(record, read_counts):
      if value is json_lines.BAD:
        read_counts.comments[json_lines.DROPPED_BAD_JSON] += 1
      elif not isinstance(value, Mapping):
        read_counts.comments[comment_tree.DROPPED_NOT_OBJECT] += 1
      else:
        yield from _record_rows(value, read_counts)


FORMAT = Format("oasst", (".jsonl", ".ndjson"), _matches, _rows, contiguous=False)


def _record_rows(record: Mapping[str, Any], read_counts: ReadCounts) -> Iterator[Row]:
  tree_id = identifier(record.get("message_tree_id"), read_counts)
  prompt = record.get("prompt")
  top = record
  if isinstance(prompt, Mapping):
    top = prompt
    tree_id = tree_id or identifier(prompt.get("message_id"), read_counts)
  # Messages with the ids of their parents, last first.
  waiting = [(top, parent(top.get("parent_id"), read_counts))]
  while waiting:
    message, parent_id = waiting.pop()
    ident = identifier(message.get("message_id"), read_counts)
    if tree_id:
      yield _row(message, tree_id, ident, parent_id, read_counts)
    else:
      read_counts.comments[comment_tree.DROPPED_NO_TREE] += 1
    replies = message.get("replies")
    for reply in reversed(replies if isinstance(replies, list) else []):
      if isinstance(reply, Mapping):
        waiting.append((reply, ident or parent_id))
      else:
        read_counts.comments[comment_tree.DROPPED_NOT_OBJECT] += 1


def _row(
  message: Mapping[str, Any],
  tree_id: str,
  ident: str | None,
  parent_id: str | None,
  read_counts: ReadCounts,
) -> Row:
  is_post = ident == tree_id
  author = message.get("role")
  written = text(message.get("text"), read_counts)
  if message.get("deleted") is True:
    written = _DELETED
  return Row(
    tree_id=tree_id,
    is_post=is_post,
    id=ident,
    parent_id=None if is_post else parent_id,
    author=text(message.get("user_id") if author is None else author, read_counts),
    text=None if is_post else written,
    selftext=written if is_post else None,
    created_utc=time_of(message.get("created_date")),
    language=identifier(message.get("lang"), read_counts),
  )
