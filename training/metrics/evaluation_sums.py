"""What an evaluation adds up over its batches, and the results that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from commentree.errors import UserError
from commentree.training.metrics import bags_of_words, f1, regression
from commentree.training.metrics.attention_statistics import ATTENTION, AttentionSums
from commentree.training.metrics.matching_statistics import MATCHING, MatchingSums
from commentree.training.metrics.tree_sums import TreeSums
from commentree.training.metrics.unigram import UNIGRAM
from commentree.training.metrics.vector_statistics import VECTORS, VectorSums

Results = dict[str, Any]
"""By condition, and for the baselines under their names, a dictionary of

  loss, accuracy, tokens      nats a token, a share (not of bags of words, nor of
                              numbers), how many; of numbers the squared error
  minus_true                  how much larger the loss is than with the true ancestors,
    standard_error, trees     its standard error, over how many trees, if two; not for
                              `true`
  gain,                       of a bag of words with ancestors: how much smaller its
    gain_standard_error       loss is than without, its standard error
  by_depth, by_occurrence,    the same of slices of the tokens that have any, by name
    by_frequency, by_group    (of groups without differences)
  f1, span_f1                 with a head for labels, see `f1.Scores`
  r2, pearson,                of numbers, see `regression`
    pairwise_accuracy, pairs
  vectors                     for `true`: how much alike the comments' vectors are, see
                              `vector_statistics`
  cross_attention             for `true`: what the decoder makes of its ancestors, see
                              `attention_statistics`
  reply_matching              for `true`: how well threads find their replies, see
                              `matching_statistics`
  left_out_tokens, _comments  for `shuffled`: of batches that hold one tree alone
  fewer_ancestors             for `shuffled`: share of the comments with ancestors that
    missing_ancestors         see fewer than they have; share of ancestors missing
"""

TRUE, SHUFFLED = "true", "shuffled"
OWN_WORDS = f"{bags_of_words.PREFIX}{bags_of_words.OWN}"
SLICES = ("by_depth", "by_occurrence", "by_frequency", "by_group")
OCCURRENCES = ("in_ancestor", "not_in_ancestor")
# Kinds of slices of which the device gives the sums of each comment; "all" is the slice
# of all tokens.
OF_TOKENS = ("all", "by_occurrence", "by_frequency")
PER_SLICE = ("loss", "accuracy", "tokens")


class Totals:
  """Sums over the batches, those that hold one tree alone apart."""

  def __init__(
    self,
    names: Sequence[str],
    slices: Mapping[str, Sequence[str]],
    *,
    with_accuracy: bool = True,
  ):
    """Starts at nothing.

    Args:
      names: what there is a loss of, in the device's order.
      slices: names of the slices of each kind.
      with_accuracy: whether a prediction can be correct, and is not a number.
    """
    self._names = tuple(names)
    self._slices = {"all": ("all",), **slices}
    self._with_accuracy = with_accuracy
    self._compared, self._left_out = self._nothing(), self._nothing()

  def _nothing(self) -> _Sums:
    return _Sums(self._names, self._slices, with_accuracy=self._with_accuracy)

  def add(self, sums: Mapping[str, Any]) -> None:
    """Adds the sums of a batch."""
    compares = bool(sums["comparable"]) or SHUFFLED not in self._names
    (self._compared if compares else self._left_out).add(sums)

  def results(self, label_names: Sequence[str]) -> Results:
    """Returns the results.

    Args:
      label_names: names of the labels that a head predicts, by number.

    Raises:
      UserError: if there was no masked token.
    """
    chosen, left_out = self._compared, self._left_out
    names = list(self._names)
    if SHUFFLED in names and not chosen.tokens:
      # No batch holds ancestors of another tree: the other conditions still tell.
      names = [
        n for n in names if n not in (SHUFFLED, f"{bags_of_words.PREFIX}{SHUFFLED}")
      ]
      chosen, left_out = left_out, self._nothing()
    if not chosen.tokens:
      what = "label" if label_names else "masked token"
      if not self._with_accuracy:
        what = "number"
      raise UserError(f"the evaluation data holds no {what}: give more trees")
    results: Results = {}
    for name in names:
      results[name] = chosen.result(name)
      if name in chosen.counts:
        results[name] |= f1.results(chosen.counts[name], label_names)
        results[name] |= regression.results(chosen.counts[name])
      if name == TRUE and (vectors := chosen.vectors.results()):
        results[name][VECTORS] = vectors
      if name == TRUE and (attention := chosen.attention.results()):
        results[name][ATTENTION] = attention
      if name == TRUE and (replies := chosen.replies.results()):
        results[name][MATCHING] = replies
      if name == SHUFFLED:
        results[name] |= {
          "left_out_tokens": left_out.tokens,
          "left_out_comments": left_out.comments,
          "fewer_ancestors": chosen.shorter / max(chosen.with_ancestors, 1),
          "missing_ancestors": chosen.lacking / max(chosen.ancestors, 1),
        }
    return results


class _Sums:
  """Sums over batches: of tokens, of counts of a head, and of losses by tree."""

  def __init__(
    self,
    names: Sequence[str],
    slices: Mapping[str, Sequence[str]],
    *,
    with_accuracy: bool,
  ):
    self._names, self._slices = names, slices
    self._with_accuracy = with_accuracy
    # float64 on the host: thousands of batches add up.
    columns = 2 * len(self._names) + 1
    self._total = {k: np.zeros((columns, len(v))) for k, v in self._slices.items()}
    self.counts: dict[str, Any] = {}
    self._of_trees = [
      (kind, name) for kind in (*OF_TOKENS, "by_depth") for name in self._slices[kind]
    ]
    self._trees = TreeSums(len(self._names), len(self._of_trees))
    self.vectors = VectorSums()
    self.attention = AttentionSums()
    self.replies = MatchingSums()
    self.comments = 0
    # Comments that have ancestors, and that see fewer if shuffled; likewise ancestors.
    self.with_ancestors = self.shorter = self.ancestors = self.lacking = 0

  @property
  def tokens(self) -> int:
    """Masked tokens."""
    return int(self._total["all"][-1, 0])

  def add(self, sums: Mapping[str, Any]) -> None:
    """Adds the sums of a batch, as the device gives them."""
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(sums))
    for kind, total in sums["total"].items():
      self._total[kind] += total
    self.vectors.add(sums[VECTORS])
    self.attention.add(sums[ATTENTION])
    self.replies.add(sums[MATCHING])
    counts = sums["counts"]
    self.counts = jax.tree.map(np.add, self.counts, counts) if self.counts else counts
    used = sums["targets"][:, :, -1, 0] > 0
    self.comments += int(used.sum())
    if "lacking" in sums:
      ancestors, lacking = sums["ancestors"][used], sums["lacking"][used]
      self.with_ancestors += int((ancestors > 0).sum())
      self.shorter += int((lacking > 0).sum())
      self.ancestors += int(ancestors.sum())
      self.lacking += int(lacking.sum())
    targets, depths = sums["targets"][used], sums["depths"][used]
    by_depth = targets[:, :, :1] * depths[:, None]
    sliced = np.concatenate([targets, by_depth], axis=-1)
    self._trees.add(sums["trees"][used].astype(np.int64), sliced)

  def result(self, name: str) -> dict[str, Any]:
    """Returns the results of one condition."""
    by_kind = {
      kind: {
        slice_name: self._slice(name, kind, column)
        for column, slice_name in enumerate(names)
        if self._total[kind][-1, column] > 0
      }
      for kind, names in self._slices.items()
    }
    return {**by_kind.pop("all")["all"], **by_kind}

  def _slice(self, name: str, kind: str, column: int) -> dict[str, float]:
    number = self._names.index(name)
    sums, tokens = self._total[kind][:, column], self._total[kind][-1, column]
    values = (
      float(sums[2 * number] / tokens),
      float(sums[2 * number + 1] / tokens),
      int(tokens),
    )
    result: dict[str, float] = dict(zip(PER_SLICE, values))
    if bags_of_words.is_bag(name) or not self._with_accuracy:
      del result["accuracy"]
    place = (kind, self._slices[kind][column])
    if place not in self._of_trees:
      return result
    part = self._of_trees.index(place)
    if name != TRUE and TRUE in self._names:
      base = self._names.index(TRUE)
      found = self._trees.difference(number, base, part)
      result |= {"minus_true": found.value, "trees": found.trees}
      if found.standard_error is not None:
        result["standard_error"] = found.standard_error
    if bags_of_words.is_bag(name) and name != OWN_WORDS:
      found = self._trees.difference(self._names.index(OWN_WORDS), number, part)
      result |= {"gain": found.value, "trees": found.trees}
      if found.standard_error is not None:
        result["gain_standard_error"] = found.standard_error
    return result


def is_baseline(name: str) -> bool:
  """Whether a loss is that of a baseline, not of the model under a condition."""
  return name == UNIGRAM or bags_of_words.is_bag(name)


def range_names(edges: Sequence[int]) -> list[str]:
  """Returns names of ranges of whole numbers: 0, 1, 2, 3, 4-5, 6-9, 10+."""
  names = [
    str(low) if high == low + 1 else f"{low}-{high - 1}"
    for low, high in itertools.pairwise(edges)
  ]
  return [*names, f"{edges[-1]}+"]
