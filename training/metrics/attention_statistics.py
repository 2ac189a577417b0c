"""What the decoder's cross-attention makes of the ancestors, in an evaluation.

Of the tokens that see an ancestor: how large what it adds is against what it is added
to, how spread its weights are, how much of them is on the parent. Of all tokens: how
much is on the null vector. Of a pointer: how much it copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from commentree.training.metrics.batch_sums import BatchSums

ATTENTION = "cross_attention"

_HEADINGS = {
  "update_share": "update / stream",
  "entropy": "entropy (nats)",
  "most_entropy": "at most",
  "parent_weight": "on the parent",
  "null_weight": "on the null vector",
}


class AttentionSums(BatchSums):
  """Sums over batches of what `models.diagnostics` notes, by layer."""

  def results(self) -> dict[str, Any]:
    """Returns means over layers, and `by_layer`; none if no token sees an ancestor.

    `update_share`, the root of the mean square of what is added by that of what it is
    added to; `entropy` of the weights in nats, the mean over heads and tokens, and
    `most_entropy`, that of weights spread evenly; `parent_weight`, the share of the
    weights that is on the parent, of comments that see theirs; `null_weight`, the share
    that is on the null vector, of all comments. With a pointer also `copy_share`, the
    mean probability of a copy at masked tokens that see an ancestor.
    """
    sums = self._sums
    if not sums or not sums["with_ancestors"].any():
      return {}

    def ratio(part: str, whole: str) -> np.ndarray:
      return sums[part] / np.maximum(sums[whole], 1e-30)

    values = {
      "update_share": np.sqrt(ratio("update", "stream")),
      "entropy": ratio("entropy", "with_ancestors"),
      "most_entropy": ratio("most_entropy", "with_ancestors"),
      "parent_weight": ratio("parent_weight", "with_parent"),
      "null_weight": ratio("null_weight", "tokens"),
    }
    layers = range(len(sums["tokens"]))
    copies = {}
    if "may_copy" in sums:
      copies["copy_share"] = float(ratio("copied", "may_copy").mean())
    return {
      **copies,
      **{name: float(of_layers.mean()) for name, of_layers in values.items()},
      "by_layer": {
        str(layer): {name: float(v[layer]) for name, v in values.items()}
        for layer in layers
      },
    }


def sentence(results: Mapping[str, Any]) -> str:
  """Says what cross-attention does; "" if nothing is known.

  Args:
    results: of one condition of an evaluation.
  """
  found = results.get(ATTENTION)
  if not found:
    return ""
  copies = ""
  if "copy_share" in found:
    copies = f"; {found['copy_share']:.1%} of the probability is copied from ancestors"
  return (
    f"cross-attention adds {found['update_share']:.2g} of what it is added to; entropy"
    f" {found['entropy']:.2f} of at most {found['most_entropy']:.2f} nats;"
    f" {found['parent_weight']:.0%} on the parent, {found['null_weight']:.0%} on the"
    f" null vector{copies}"
  )


def table(results: Mapping[str, Any]) -> Table | None:
  """Returns the same as a table, a row a layer; None if nothing is known.

  Args:
    results: of one condition of an evaluation.
  """
  found = results.get(ATTENTION)
  if not found:
    return None
  rendered = Table(title="cross-attention to the ancestors", title_justify="left")
  rendered.add_column("layer")
  for heading in _HEADINGS.values():
    rendered.add_column(heading, justify="right")
  for name, row in (*found["by_layer"].items(), ("mean", found)):
    rendered.add_row(name, *(f"{row[each]:.3f}" for each in _HEADINGS))
  return rendered
