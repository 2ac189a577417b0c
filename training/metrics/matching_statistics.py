"""How well threads find the comments that answer them, in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.training.config import CheckpointConfig
from commentree.training.metrics.batch_sums import BatchSums

MATCHING = "reply_matching"

_IN_WORDS = {
  "matcher": "given all above it",
  "matcher_of_parent": "given what it answers alone",
  "vectors": "given all above it, without a matcher",
  "vectors_of_parent": "given what it answers alone, without a matcher",
}


class MatchingSums:
  """Sums over batches of what `Model.recall_sums` returns."""

  def __init__(self):
    """Starts at nothing."""
    self._sums: dict[str, BatchSums] = {}

  def add(self, sums: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the sums of a batch; there may be none."""
    for name, of_name in sums.items():
      self._sums.setdefault(name, BatchSums()).add(of_name)

  def results(self) -> dict[str, dict[str, float]]:
    """Returns the means over pairs by name, see `CommentTreeModel.recall_sums`.

    `recall_at_1`, `recall_at_10` and `mean_reciprocal_rank` of a comment among
    `candidates` (their mean number, itself included), over `pairs`. None without pairs.
    """
    results = {}
    for name, sums in self._sums.items():
      pairs = float(sums.total("pairs"))
      if not pairs:
        continue
      results[name] = {
        "recall_at_1": float(sums.total("recall_at_1")) / pairs,
        "recall_at_10": float(sums.total("recall_at_10")) / pairs,
        "mean_reciprocal_rank": float(sums.total("reciprocal_rank")) / pairs,
        "candidates": float(sums.total("candidates")) / pairs,
        "pairs": int(pairs),
      }
    return results


def check_best_metric(config: CheckpointConfig, model: ModelConfig) -> None:
  """Raises UserError if recall decides, and the model will have none."""
  _, kind, name, *_ = *config.best_metric.split("/"), "", ""
  if config.keep_best == 0 or kind != MATCHING:
    return
  needed = ""
  if model.context != "pooled":
    needed = "ModelConfig.context is 'pooled'"
  elif model.head != "masked_lm":
    needed = "ModelConfig.head is 'masked_lm'"
  elif name.startswith("matcher") and not model.reply_matching_weight:
    needed = "ModelConfig.reply_matching_weight is above 0"
  if needed:
    raise UserError(
      f"CheckpointConfig.best_metric = {config.best_metric!r}: there is no such metric"
      f" unless {needed}"
    )


def sentence(results: Mapping[str, Any]) -> str:
  """Says how often a comment is found first by its thread; "" if nothing is known.

  Args:
    results: of one condition of an evaluation.
  """
  found = results.get(MATCHING, {})
  told = [
    f"{found[name]['recall_at_1']:.1%} {what}"
    for name, what in _IN_WORDS.items()
    if name in found
  ]
  if not told:
    return ""
  one = next(iter(found.values()))
  return (
    f"a comment is the first of {one['candidates']:.0f} by its vector: "
    + ", ".join(told)
    + f" ({one['pairs']:,} comments)"
  )
