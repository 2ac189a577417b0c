"""What becomes of trees on the way to subtrees, counted."""

from __future__ import annotations

import dataclasses

_CLASSES_SHOWN = 20


@dataclasses.dataclass
class SubtreeCounts:
  """What became of the tokens and nodes of the trees seen so far.

  Attributes:
    classes: comments by class of `CommentLabelsConfig`, those that no comment has too.
    other_labels: comments whose labels are not among the classes.
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
    if self.classes:
      report += f"; {self.report_classes()}"
    return report

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
