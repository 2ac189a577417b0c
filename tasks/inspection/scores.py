"""What `infer --mode=score` found of the comments that an inspection shows."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping

from commentree.errors import UserError
from commentree.tasks.inspection.views import CommentView, Inspection, TreeView


@dataclasses.dataclass(frozen=True, slots=True)
class _Score:
  """What is known of a comment.

  Attributes:
    saved: nats a token by which its ancestors make it likelier, or None.
    counts: how many of those are lost without an ancestor, by its id.
  """

  saved: float | None
  counts: Mapping[str, float]


_Scores = Mapping[tuple[str, str], _Score]


def with_scores(inspection: Inspection, path: str | os.PathLike[str]) -> Inspection:
  """Adds to each comment what its thread saves, and what each ancestor counts.

  Args:
    inspection: what is shown.
    path: JSON Lines of `infer --mode=score`, better with `--attribution`.

  Raises:
    UserError: if it cannot be read, is something else, or says nothing of the
      comments shown.
  """
  shown = {(tree.id, c.id) for tree in inspection.trees for c in tree.comments}
  found = {key: score for key, score in _read(path) if key in shown}
  if not found:
    raise UserError(
      f"--scores={os.fspath(path)}: has no score of a comment shown; score the same"
      " files, or choose trees with --split, --tree_id, --skip and --count"
    )
  trees = [_with_scores(tree, found) for tree in inspection.trees]
  return dataclasses.replace(inspection, trees=tuple(trees))


def _with_scores(tree: TreeView, found: _Scores) -> TreeView:
  numbers = {comment.id: comment.index for comment in tree.comments}

  def scored(comment: CommentView) -> CommentView:
    score = found.get((tree.id, comment.id))
    if score is None or not comment.depth:
      return comment
    counts = {numbers[x]: nats for x, nats in score.counts.items() if x in numbers}
    return dataclasses.replace(comment, saved=score.saved, counts=counts)

  return dataclasses.replace(tree, comments=tuple(map(scored, tree.comments)))


def _read(path: str | os.PathLike[str]) -> Iterator[tuple[tuple[str, str], _Score]]:
  """Yields the ids of tree and comment, and what is known of it."""
  name = os.fspath(path)
  number = 0
  try:
    with open(path, encoding="utf-8") as file:
      for text in file:
        number += 1
        line = json.loads(text)
        saved = None
        if line["difference"] is not None and line["tokens"]:
          saved = float(line["difference"]) / int(line["tokens"])
        counts = {
          str(ancestor["comment"]): float(ancestor["nats_per_token"])
          for ancestor in line.get("ancestors", ())
        }
        yield (str(line["tree"]), str(line["comment"])), _Score(saved, counts)
  except OSError as error:
    raise UserError(f"--scores={name}: {error.strerror}") from error
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise UserError(
      f"--scores={name}: line {number} is not of `commentree infer --mode=score"
      " --output=FILE.jsonl`; give what that wrote"
    ) from error
