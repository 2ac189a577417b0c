"""What becomes of trees on the way to subtrees, counted."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class SubtreeCounts:
  """What became of the tokens and nodes of the trees seen so far."""

  trees: int = 0
  comments: int = 0
  subtrees: int = 0
  nodes: int = 0
  context_copies: int = 0
  tokens: int = 0
  tokens_cut: int = 0
  spans: int = 0
  spans_lost: int = 0
  labelled: int = 0
  other_labels: int = 0
  words: int = 0
  words_copied: int = 0

  def add(self, other: SubtreeCounts) -> None:
    """Adds another's counts to these."""
    for field in dataclasses.fields(self):
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
    if self.labelled or self.other_labels:
      report += (
        f"; {self.labelled:,} labelled comments ({self.other_labels:,} more have labels"
        " that are not in CommentLabelsConfig.names)"
      )
    return report
