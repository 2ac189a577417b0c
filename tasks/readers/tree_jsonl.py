"""Tree JSONL: one tree a line, as a JSON object.

    {"id", "title", "selftext", "author",
     "comments": [{"id", "parent_id", "author", "body", "created_utc"}, ...]}

`parent_id` is the tree's id or another comment's; any field may be null, and comments
may come in any order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from .. import trees
from ..config import TreeConfig
from ..trees import CommentTree, Fates
from . import files

SUFFIXES = (".jsonl", ".ndjson")
BAD_JSON = "skipped: bad JSON"
MENDED_UTF8 = "invalid UTF-8 replaced"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(path: str, config: TreeConfig, fates: Fates) -> Iterator[CommentTree]:
  """Yields a file's trees, one line held at a time; empty lines are passed over."""
  for line in files.lines(path, config.max_line_bytes, fates):
    line = line.removeprefix(_BYTE_ORDER_MARK)
    if not line or line.isspace():
      continue
    tree = parse(line, config, fates)
    if tree is not None:
      yield tree


def parse(line: bytes, config: TreeConfig, fates: Fates) -> CommentTree | None:
  """Builds the tree on a line; None, and a fate counted, if there is none."""
  try:
    text = line.decode("utf-8")
  except UnicodeDecodeError:
    fates.mended[MENDED_UTF8] += 1
    text = line.decode("utf-8", "replace")
  try:
    record = json.loads(text)
  except (ValueError, RecursionError):
    # ValueError: also for numbers of too many digits.
    fates.trees[BAD_JSON] += 1
    return None
  return trees.build_tree(record, fates, config)
