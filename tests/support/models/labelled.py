"""The packed batch with labels or numbers in place of masked tokens."""

from __future__ import annotations

import numpy as np

# One layer a side: what stands on it is what is tested.
SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 1}
TAGGING = {**SMALL, "head": "tagging", "num_labels": 5}
CLASSIFYING = {**SMALL, "head": "classification", "num_labels": 3}
REGRESSION = {**SMALL, "head": "regression", "num_labels": 1}
HEADS = {
  "classification": CLASSIFYING,
  "first": {**CLASSIFYING, "classify_from": "first"},
  "linear": TAGGING,
  "gru": {**TAGGING, "tagger": "gru"},
  "crf": {**TAGGING, "tagger": "crf"},
  "regression": REGRESSION,
  "ranking": {**REGRESSION, "regression_loss": "ranking"},
}


def of_tokens(batch, num_labels=5, seed=0):
  """Every token of the targets has a label; M is L."""
  rng = np.random.default_rng(seed)
  segments = batch["decoder_segment_ids"]
  columns = np.broadcast_to(np.arange(segments.shape[-1]), segments.shape)
  return {
    **batch,
    "decoder_masked_positions": np.where(segments > 0, columns, 0).astype(np.int32),
    "decoder_target_tokens": np.where(
      segments > 0, rng.integers(0, num_labels, segments.shape), 0
    ).astype(np.int32),
    "decoder_loss_weights": (segments > 0).astype(np.float32),
  }


def of_comments(batch, num_labels=3, seed=0):
  """Every target has a label, at its first token; some of them count for nothing."""
  rng = np.random.default_rng(seed)
  batch = {name: values.copy() for name, values in batch.items()}
  names = ("masked_positions", "target_tokens", "loss_weights")
  positions, labels, weights = (batch[f"decoder_{name}"] for name in names)
  for values in (positions, labels, weights):
    values[:] = 0
  begins = (batch["decoder_positions"] == 0) & (batch["decoder_segment_ids"] > 0)
  for example, row in np.ndindex(begins.shape[:2]):
    for m, column in enumerate(np.flatnonzero(begins[example, row])):
      positions[example, row, m] = column
      labels[example, row, m] = rng.integers(num_labels)
      weights[example, row, m] = rng.random() < 0.8
  return batch


def with_numbers(batch, seed=0):
  """Every target has a number, some of them the same; some count for nothing."""
  batch = of_comments(batch, 1, seed)
  shape = batch["target_depths"].shape
  numbers = np.random.default_rng(seed).integers(-2, 3, shape) / 2
  return {**batch, "target_numbers": numbers.astype(np.float32)}


def for_head(config, batch, seed=0):
  if config.head == "regression":
    return with_numbers(batch, seed)
  make = of_tokens if config.head == "tagging" else of_comments
  return make(batch, config.num_labels, seed)
