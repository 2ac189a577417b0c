"""What becomes of trees on the way to subtrees, counted."""

from __future__ import annotations

import dataclasses
import math

_CLASSES_SHOWN = 20


@dataclasses.dataclass
class SubtreeCounts:
  """What became of the tokens and nodes of the trees seen so far.

  Attributes:
    classes: comments by class of `CommentLabelsConfig`, those that no comment has too.
    other_labels: comments whose labels are not among the classes.
    numbers: comments to predict that have a number by `CommentNumbersConfig`.
    number_sum: of those, transformed.
    number_squares: of those, transformed: the sum of their squares.
    numbers_missing: comments to predict that have none.
    numbers_odd: and whose is no finite number.
    with_score: comments to predict that have a score; counted if numbers are asked for.
    with_label: likewise a label.
  """

  trees: int = 0
  comments: int = 0
  subtrees: int = 0
  nodes: int = 0
  context_copies: int = 0
  tokens: int = 0
  tokens_cut: int = 0
  spans: int = 0
  spans_lost: int = 0
  classes: dict[str, int] = dataclasses.field(default_factory=dict)
  other_labels: int = 0
  numbers: int = 0
  number_sum: float = 0.0
  number_squares: float = 0.0
  numbers_missing: int = 0
  numbers_odd: int = 0
  with_score: int = 0
  with_label: int = 0
  words: int = 0
  words_copied: int = 0

  def add(self, other: SubtreeCounts) -> None:
    """Adds another's counts to these."""
    for name, number in other.classes.items():
      self.classes[name] = self.classes.get(name, 0) + number
    for field in dataclasses.fields(self):
      if field.name == "classes":
        continue
      total = getattr(self, field.name) + getattr(other, field.name)
      setattr(self, field.name, total)

  def report(self) -> str:
    """One line: subtrees, context encoded twice, share of tokens cut off, of labels."""
    copied = self.context_copies / max(1, self.nodes)
    cut = self.tokens_cut / max(1, self.tokens)
    return (
      f"{self.trees:,} trees, {self.comments:,} comments, {self.tokens:,} tokens"
      f" ({cut:.1%} cut off) in {self.subtrees:,} subtrees"
      f" ({copied:.1%} of their nodes are context copies)"
    ) + self._report_asked_for()

  def _report_asked_for(self) -> str:
    report = ""
    if self.words:
      report += (
        f"; {self.words_copied / self.words:.1%} of {self.words:,} words taken out,"
        " copied from comments above"
      )
    if self.spans:
      report += (
        f"; {self.spans:,} labelled spans ({self.spans_lost:,} lost in cleaning)"
      )
    if asked := self.report_labels():
      report += f"; {asked}"
    return report

  def report_labels(self) -> str:
    """What classes or numbers comments have; nothing if neither is asked for."""
    return "; ".join(filter(None, (self.report_classes(), self.report_numbers())))

  def report_numbers(self) -> str:
    """How many comments have numbers, and which; nothing if none are asked for."""
    if not (self.numbers or self.numbers_missing or self.numbers_odd):
      return ""
    mean, deviation = self.number_moments()
    return (
      f"{self.numbers:,} comments with numbers: mean {mean:.4g}, standard deviation"
      f" {deviation:.4g} by CommentNumbersConfig.transform ({self.numbers_missing:,}"
      f" more have none, {self.numbers_odd:,} one that is not finite)"
    )

  def number_moments(self) -> tuple[float, float]:
    """Mean and standard deviation of the numbers, transformed; 0 without any."""
    count = max(1, self.numbers)
    mean = self.number_sum / count
    return mean, math.sqrt(max(0.0, self.number_squares / count - mean**2))

  def report_classes(self) -> str:
    """How many comments have each class; nothing if there are no classes."""
    if not self.classes:
      return ""
    shown = [f"{name} {n:,}" for name, n in list(self.classes.items())[:_CLASSES_SHOWN]]
    if len(self.classes) > _CLASSES_SHOWN:
      rest = list(self.classes.values())[_CLASSES_SHOWN:]
      shown.append(f"{sum(rest):,} of {len(rest):,} other classes")
    return (
      f"{sum(self.classes.values()):,} labelled comments: {', '.join(shown)}"
      f" ({self.other_labels:,} more have labels that are not in"
      " CommentLabelsConfig.names)"
    )
