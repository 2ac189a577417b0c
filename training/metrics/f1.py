"""Precision, recall and F1 of labels and of spans, from counts that add up.

A ratio of nothing to nothing is 0. Means over labels are over those that there are or
that were predicted, as seqeval and scikit-learn have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from commentree.errors import UserError
from commentree.models.heads import label_counts
from commentree.training.config import CheckpointConfig

LABELS, SPANS = "f1", "span_f1"
_MEANS = ("micro", "macro")
_IN_WORDS = {LABELS: "F1 of labels", SPANS: "F1 of spans"}
_BEGINNING = "B-"

Scores = dict[str, Any]
"""`micro`, `macro` and, of each label or kind, `by_label`: `precision`, `recall`, `f1`,
`predicted`, `there`."""


def span_kinds(label_names: Sequence[str]) -> list[str]:
  """Returns the kinds of spans, if the labels are tags of tokens; else none."""
  tags = [name.removeprefix(_BEGINNING) for name in label_names[1::2]]
  expected = [f"{part}-{kind}" for kind in tags for part in "BI"]
  return tags if expected and list(label_names[1:]) == expected else []


def sums(
  tokens: Mapping[str, jax.Array], label_names: Sequence[str]
) -> dict[str, jax.Array]:
  """Returns the counts of a batch under one condition, `[3, X]` by what they are of.

  Args:
    tokens: what the model's `evaluate_batch` returned, with a head.
    label_names: names of the labels, by number; none for a model without a head.
  """
  if not label_names:
    return {}
  labels, predictions = tokens["labels"], tokens["predictions"]
  used = tokens["weights"] > 0
  counts = {
    LABELS: label_counts.class_counts(labels, predictions, used, len(label_names))
  }
  if kinds := span_kinds(label_names):
    counts[SPANS] = label_counts.span_counts(
      labels, predictions, tokens["chains"], len(kinds)
    )
  return counts


def results(
  totals: Mapping[str, np.ndarray], label_names: Sequence[str]
) -> dict[str, Scores]:
  """Returns scores by what they are of, given the counts of all batches."""
  names = {LABELS: label_names, SPANS: span_kinds(label_names)}
  return {of: scores(totals[of], names[of]) for of in names if of in totals}


def scores(counts: np.ndarray, names: Sequence[str]) -> Scores:
  """Returns scores of counts `[3, X]`: right, predicted, there."""
  by_label = {
    name: _scores_of(*column)
    for name, column in zip(names, counts.T)
    if column[1:].any()
  }
  each = [label["f1"] for label in by_label.values()]
  return {
    "micro": _scores_of(*counts.sum(axis=1))["f1"],
    "macro": float(np.mean(each)) if each else 0.0,
    "by_label": by_label,
  }


def _scores_of(right: float, predicted: float, there: float) -> dict[str, float]:
  return {
    "precision": _ratio(right, predicted),
    "recall": _ratio(right, there),
    "f1": _ratio(2 * right, predicted + there),
    "predicted": int(predicted),
    "there": int(there),
  }


def _ratio(part: float, whole: float) -> float:
  return float(part / whole) if whole else 0.0


def overall(result: Mapping[str, Any]) -> dict[str, float]:
  """Returns the means of a condition's results by path, as `span_f1/micro`."""
  return {
    f"{of}/{mean}": result[of][mean]
    for of in (LABELS, SPANS)
    if of in result
    for mean in _MEANS
  }


def rows(every: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[float], int]]:
  """Yields rows of a table: what it is of, F1 by condition, how many there are.

  Args:
    every: results by condition.
  """
  for of, words in _IN_WORDS.items():
    found = [result[of] for result in every if of in result]
    if not found:
      continue
    there = {
      name: label["there"] for each in found for name, label in each["by_label"].items()
    }
    for mean in _MEANS:
      yield f"{words}: {mean}", [each[mean] for each in found], sum(there.values())
    for name, count in there.items():
      f1 = [each["by_label"].get(name, {"f1": 0.0})["f1"] for each in found]
      yield f"{words}: {name}", f1, count


def in_short(result: Mapping[str, Any]) -> str:
  """Returns a word on a condition's results for the console; nothing without a head."""
  if SPANS in result:
    return f"span F1 {result[SPANS]['micro']:.4f}"
  return f"macro F1 {result[LABELS]['macro']:.4f}" if LABELS in result else ""


def check_best_metric(config: CheckpointConfig, label_names: Sequence[str]) -> None:
  """Raises UserError if the metric that decides is one that there will not be."""
  metric = config.best_metric.split("/")[1]
  if config.keep_best == 0 or metric not in (LABELS, SPANS):
    return
  if not label_names or (metric == SPANS and not span_kinds(label_names)):
    needed = "'tagging'" if metric == SPANS else "'tagging' or 'classification'"
    raise UserError(
      f"CheckpointConfig.best_metric = {config.best_metric!r}: there is no such metric"
      f" unless ModelConfig.head is {needed}"
    )
