"""clu metrics of a batch, from the sums a step computes."""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax.numpy as jnp
from clu import metrics as clu_metrics

from commentree.models.layers import Array


@flax.struct.dataclass
class Sum(clu_metrics.Metric):
  """A total over batches."""

  total: Array

  @classmethod
  def from_model_output(cls, values: Array, **_) -> Sum:
    """Returns the sum of `values`."""
    return cls(total=jnp.sum(values))

  @classmethod
  def empty(cls) -> Sum:
    """Returns the sum of nothing."""
    return cls(total=jnp.zeros((), jnp.float32))

  def merge(self, other: Sum) -> Sum:
    """Returns the sum over both."""
    return type(self)(total=self.total + other.total)

  def compute(self) -> Array:
    """Returns the total."""
    return self.total


@flax.struct.dataclass
class Average(clu_metrics.Average):
  """An average; 0 of nothing, where clu's is NaN."""

  def compute(self) -> Array:
    """Returns the average."""
    return self.total / jnp.where(self.count == 0, 1, self.count)


def metrics_of_sums(sums: Mapping[str, Array]) -> dict[str, clu_metrics.Metric]:
  """Returns the metrics of one batch.

  Args:
    sums: scalars as `CommentTreeModel.loss_sums` returns them.

  Returns:
    Averages per masked token (`loss` and `z_loss` in nats, `accuracy` or
    `logits_accuracy`), the shares of positions that hold tokens, and totals of comments
    and tokens. With reply matching also that loss, `reply_matching`, averaged over
    pairs: 0 without any.
  """
  averages = {
    "loss": ("loss", "weights"),
    "z_loss": ("z_loss", "weights"),
    "non_padding_fraction/encoder": ("encoder_tokens", "encoder_positions"),
    "non_padding_fraction/decoder": ("decoder_tokens", "decoder_positions"),
  }
  for name in ("accuracy", "logits_accuracy"):
    if name in sums:
      averages[name] = (name, "weights")
  metrics: dict[str, clu_metrics.Metric] = {
    name: Average(total=sums[total], count=sums[count])
    for name, (total, count) in averages.items()
  }
  if "reply_matching" in sums:
    metrics["reply_matching"] = Average(
      total=sums["reply_matching"], count=sums["reply_pairs"]
    )
  totals = {
    "masked_tokens": "weights",
    "comments": "comments",
    "encoder_tokens": "encoder_tokens",
    "decoder_tokens": "decoder_tokens",
  }
  for name, total in totals.items():
    metrics[name] = Sum(total=sums[total])
  return metrics
