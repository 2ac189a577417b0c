"""What people read of an evaluation: sentences, tables, metrics by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from commentree.training.metrics import (
  attention_statistics,
  bags_of_words,
  f1,
  matching_statistics,
  regression,
  vector_statistics,
)
from commentree.training.metrics.evaluation_sums import (
  OWN_WORDS,
  SHUFFLED,
  SLICES,
  TRUE,
  Results,
)

# How often a difference is called one where there is none.
_FALSE_ALARMS = 0.05
# A smaller share of comments is not worth a line.
_MENTIONED_SHARE = 0.01
_PREFIXES = {
  "by_depth": "depth ",
  "by_occurrence": "",
  "by_frequency": "rank ",
  "by_group": "",
}
_BAGS_IN_WORDS = {
  f"{bags_of_words.PREFIX}true": "ancestors",
  f"{bags_of_words.PREFIX}parent_only": "the parent alone",
  f"{bags_of_words.PREFIX}shuffled": "those of other trees",
}
_IN_WORDS = {
  "in_ancestor": "occurs in an ancestor",
  "not_in_ancestor": "occurs in none",
}


def with_numbers(results: Any) -> Any:
  """Results with NaN for what is null in files: a number that was not finite."""
  if isinstance(results, Mapping):
    return {name: with_numbers(value) for name, value in results.items()}
  return math.nan if results is None else results


def kind_of(results: Results) -> str:
  """Returns what is predicted, in a word, as far as results tell."""
  first = next(iter(results.values()))
  if regression.is_of(first):
    return "comment"
  return "label" if f1.LABELS in first else "token"


def lines(results: Results, kind: str | None = None) -> list[str]:
  """Returns what is said of an evaluation, a line each.

  Args:
    results: of the evaluation.
    kind: what is predicted; None for what results tell of it.
  """
  kind = kind or kind_of(results)
  true = results.get(TRUE, {})
  said = (
    sentence(results, kind),
    bags_sentence(results),
    left_out(results),
    too_short(results),
    attention_statistics.sentence(true),
    vector_statistics.warning(true),
    matching_statistics.sentence(true),
  )
  return [line for line in said if line]


def sentence(results: Results, kind: str = "token") -> str:
  """Says in a sentence whether the content of ancestors helps; "" if nothing tells.

  Args:
    results: of an evaluation.
    kind: what is predicted.
  """
  if TRUE not in results:
    return ""
  found = results.get(SHUFFLED)
  if found is None or "minus_true" not in found:
    return ""
  value, trees = found["minus_true"], found["trees"]
  verb = "save" if value > 0 else "cost"
  unit = f"{regression.unit(results[TRUE])} a {kind}"
  if "standard_error" not in found:
    return f"ancestors {verb} {abs(value):.3f} {unit} (one tree: no standard error)"
  error = found["standard_error"]
  over = f"{trees:,} trees, against ancestors of other trees"
  # Needed once there is an evaluation: a start is not kept waiting for it.
  from scipy.special import stdtrit

  # Student's t: the error is itself estimated, from few trees badly.
  if abs(value) > error * stdtrit(trees - 1, 1 - _FALSE_ALARMS / 2):
    return f"ancestors {verb} {abs(value):.3f} ± {error:.3f} {unit} ({over})"
  return (
    f"no sign that ancestors' content helps: {value:+.3f} ± {error:.3f} {unit} ({over})"
  )


def bags_sentence(results: Results) -> str:
  """Says what bags of words gain from the thread; "" if none were measured."""
  told = [
    f"{_BAGS_IN_WORDS[name]} {gain(results[name])}"
    for name in _BAGS_IN_WORDS
    if name in results
  ]
  return f"a bag of words gains by {', '.join(told)} nats a token" if told else ""


def left_out(results: Results) -> str:
  """Says what could not be compared with ancestors of other trees; "" if all could."""
  if TRUE in results and SHUFFLED not in results:
    return (
      "no ancestors of other trees to compare with: in no held-out batch do comments of"
      " two trees see ancestors; a larger BATCH_SIZE or ForestLayout.decoder_rows holds"
      " more trees"
    )
  tokens = results.get(SHUFFLED, {}).get("left_out_tokens", 0)
  if not tokens:
    return ""
  comments = results[SHUFFLED]["left_out_comments"]
  # Of numbers a comment has one.
  of_tokens = "" if regression.is_of(results[SHUFFLED]) else f", {tokens:,} tokens"
  return (
    f"left out: {comments:,} comments{of_tokens} in batches that hold ancestors of at"
    " most one tree"
  )


def too_short(results: Results) -> str:
  """Says how often `shuffled` shows fewer ancestors; "" where it hardly ever does."""
  share = results.get(SHUFFLED, {}).get("fewer_ancestors", 0.0)
  if share < _MENTIONED_SHARE:
    return ""
  missing = results[SHUFFLED]["missing_ancestors"]
  return (
    f"{SHUFFLED}: {share:.0%} of the comments see fewer ancestors than they have"
    f" ({missing:.0%} of all ancestors are missing), for no other tree in the batch has"
    " as many; a larger BATCH_SIZE or ForestLayout.decoder_rows holds more trees"
  )


def flat_metrics(results: Mapping[str, Any]) -> dict[str, float]:
  """Returns results by path: `true/loss`, `none/by_depth/4-5/accuracy`."""
  flat: dict[str, float] = {}

  def visit(path: str, node: Any) -> None:
    if isinstance(node, Mapping):
      for name, child in node.items():
        visit(f"{path}/{name}" if path else name, child)
    else:
      flat[path] = node

  visit("", results)
  return flat


def table(results: Results, title: str = "") -> Table:
  """Returns losses by condition: a column each, a row for each slice of the tokens.

  Without bags of words, see `bags_table`. Where there are ancestors of other trees the
  last but one column tells how much more the model loses with those, with the standard
  error.
  """
  results = {k: v for k, v in results.items() if not bags_of_words.is_bag(k)}
  first = next(iter(results.values()))
  compares = "minus_true" in results.get(SHUFFLED, {})
  rendered = Table(title=title or None, title_justify="left")
  rendered.add_column("held-out loss")
  for condition in results:
    rendered.add_column(condition, justify="right")
  if compares:
    rendered.add_column(f"{SHUFFLED} - {TRUE}", justify="right")
  counted = "comments" if regression.is_of(first) else "tokens"
  rendered.add_column(counted, justify="right")

  def add(name: str, cells: Sequence[str], more: str, count: int) -> None:
    rendered.add_row(name, *cells, *([more] if compares else []), f"{count:,}")

  def add_slice(name: str, slices: Results) -> None:
    losses = [f"{slice_['loss']:.3f}" for slice_ in slices.values()]
    more = difference(slices[SHUFFLED]) if compares else ""
    add(name, losses, more, next(iter(slices.values()))["tokens"])

  every = list(results.values())
  add_slice("all", results)
  if any("minus_true" in result for result in every):
    cells = [difference(result) for result in every]
    add(f"all: minus {TRUE}", cells, "", first["tokens"])
  if "accuracy" in first:
    accuracies = [f"{result['accuracy']:.3f}" for result in every]
    add("all: accuracy", accuracies, "", first["tokens"])
  # Baselines have none.
  of_labels = [result for result in every if f1.LABELS in result]
  of_numbers = [result for result in every if regression.is_of(result)]
  for name, values, count in (*f1.rows(of_labels), *regression.rows(of_numbers)):
    cells = [f"{value:.3f}" for value in values]
    add(name, cells + [""] * (len(every) - len(cells)), "", count)
  for kind in SLICES:
    rendered.add_section()
    for name in first[kind]:
      add_slice(_slice_name(kind, name), _slice(results, kind, name))
  return rendered


def bags_table(results: Results) -> Table | None:
  """Returns what bags of words lose, and gain by ancestors; None without.

  The last column is what the model gains by the content of its ancestors.
  """
  if OWN_WORDS not in results:
    return None
  first = next(iter(results.values()))
  with_thread = [name for name in _BAGS_IN_WORDS if name in results]
  compares = "minus_true" in results.get(SHUFFLED, {})
  rendered = Table(title="bags of words: gain by ancestors", title_justify="left")
  rendered.add_column("held-out loss")
  rendered.add_column("own words", justify="right")
  for name in with_thread:
    rendered.add_column(f"+ {name.removeprefix(bags_of_words.PREFIX)}", justify="right")
  if compares:
    rendered.add_column("the model's gain", justify="right")

  def add(name: str, slices: Results) -> None:
    cells = [f"{slices[OWN_WORDS]['loss']:.3f}"]
    cells += [gain(slices[each]) for each in with_thread]
    if compares:
      cells.append(difference(slices[SHUFFLED]))
    rendered.add_row(name, *cells)

  add("all", results)
  for kind in SLICES:
    rendered.add_section()
    for name in first[kind]:
      add(_slice_name(kind, name), _slice(results, kind, name))
  return rendered


def _slice_name(kind: str, name: str) -> str:
  return f"{_PREFIXES[kind]}{_IN_WORDS.get(name, name)}"


def _slice(results: Results, kind: str, name: str) -> Results:
  return {condition: result[kind][name] for condition, result in results.items()}


def gain(result: Mapping[str, Any]) -> str:
  """Returns a bag's gain by ancestors, with its standard error; "" without."""
  return _with_error(result, "gain", "gain_standard_error")


def difference(result: Mapping[str, Any]) -> str:
  """Returns a paired difference with its standard error, "" without one."""
  return _with_error(result, "minus_true", "standard_error")


def _with_error(result: Mapping[str, Any], value: str, error: str) -> str:
  if value not in result:
    return ""
  more = f" ± {result[error]:.3f}" if error in result else ""
  return f"{result[value]:+.3f}{more}"
