"""A tiny model and tiny data with the trainer's interfaces, compiled in no time.

The model predicts each masked token from its row's tokens and the target's ancestor
slots, so that hiding ancestors changes its loss.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning

from commentree.models.config import ModelConfig
from commentree.models.context import pooling
from commentree.training.partitioning import ProcessShard

WHOLE = ProcessShard(0, 1)
VOCAB = 16
WIDTH = 8
SHAPES = {
  "encoder_input_tokens": (2, 8),
  "encoder_segment_ids": (2, 8),
  "encoder_positions": (2, 8),
  "encoder_slot_depths": (4,),
  "decoder_input_tokens": (3, 8),
  "decoder_segment_ids": (3, 8),
  "decoder_positions": (3, 8),
  "decoder_masked_positions": (3, 2),
  "decoder_target_tokens": (3, 2),
  "decoder_loss_weights": (3, 2),
  "ancestor_slots": (6, 3),
  "ancestor_distances": (6, 3),
  "target_depths": (6,),
  "target_trees": (6,),
}


def random_batch(seed: int, batch_size: int) -> dict[str, np.ndarray]:
  """Draws valid forests: two comments of four tokens a row, one masked token each."""
  rng = np.random.default_rng(seed)
  batch = {
    name: np.zeros((batch_size, *shape), np.int32) for name, shape in SHAPES.items()
  }
  halves = np.repeat([0, 1], 4)
  for side, rows in (("encoder", 2), ("decoder", 3)):
    segments = 1 + 2 * np.arange(rows)[:, None] + halves
    batch[f"{side}_segment_ids"][:] = segments
    batch[f"{side}_positions"][:] = np.tile(np.arange(4), 2)
    tokens = rng.integers(4, VOCAB, (batch_size, rows, 8))
    batch[f"{side}_input_tokens"][:] = tokens
  batch["decoder_masked_positions"][:] = [1, 6]
  batch["decoder_target_tokens"][:] = rng.integers(4, VOCAB, (batch_size, 3, 2))
  # Uneven weights: the mean of means is not the mean.
  batch["decoder_loss_weights"] = rng.integers(0, 2, (batch_size, 3, 2)).astype("f4")
  batch["decoder_loss_weights"][:, 0, 0] = 1
  batch["encoder_slot_depths"][:] = [0, 1, 2, 3]
  depths = rng.integers(1, 4, (batch_size, 6))
  batch["target_depths"][:] = depths
  # Trees of a few targets, most of them in several batches.
  batch["target_trees"][:] = rng.integers(1, 12, (batch_size, 6))
  hops = np.arange(1, 4)
  visible = hops <= depths[..., None]
  batch["ancestor_slots"][:] = np.where(visible, depths[..., None] - hops + 1, 0)
  batch["ancestor_distances"][:] = np.where(visible, hops, 0)
  return batch


def rows_of(batch: dict[str, np.ndarray], share: ProcessShard) -> dict[str, np.ndarray]:
  """Returns a share of a batch."""
  return {
    name: np.split(values, share.count)[share.index] for name, values in batch.items()
  }


class Batches:
  """Endless batches; batch n is a function of n."""

  def __init__(self, share: ProcessShard = WHOLE):
    self.share = share
    self.next = 0

  def __next__(self) -> dict[str, np.ndarray]:
    self.next += 1
    return rows_of(random_batch(self.next, 8), self.share)

  def get_state(self) -> dict[str, int]:
    return {"next": self.next}

  def set_state(self, state: dict[str, int]) -> None:
    self.next = state["next"]


def held_out(batches: int = 3):
  """Returns evaluation data: as many batches, the rows of a share each."""
  return lambda share=WHOLE: (
    rows_of(random_batch(-1 + 10**9 + i, 8), share) for i in range(batches)
  )


class _Network(nn.Module):
  dropout_rate: float

  @nn.compact
  def __call__(self, batch, deterministic):
    parameter = partitioning.param_with_axes
    init = nn.initializers.normal(0.1)
    table = parameter("embedding", init, (VOCAB, WIDTH), axes=("vocab", "embed"))
    scale = parameter("scale", nn.initializers.ones, (WIDTH,), axes=("embed",))
    kernel = parameter("kernel", init, (WIDTH, 4 * WIDTH), axes=("embed", "mlp"))
    out = parameter("out", init, (4 * WIDTH, VOCAB), axes=("mlp", "vocab"))
    row = table[batch["decoder_input_tokens"]].mean(axis=-2, keepdims=True)
    seen = (batch["ancestor_slots"] / 4).mean(axis=(1, 2))
    x = row * scale[None, None, None] + table[batch["decoder_masked_positions"]]
    x = x + seen[:, None, None, None]
    x = nn.Dropout(self.dropout_rate, deterministic=deterministic)(x)
    hidden = partitioning.with_sharding_constraint(
      nn.relu(x @ kernel), ("batch", None, "length", "mlp")
    )
    return hidden @ out


class StubModel:
  """The part of `models.interface.Model` that the trainer uses."""

  config = ModelConfig()

  def __init__(self, dropout_rate: float = 0.0):
    self.module = _Network(dropout_rate)

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    batch = {name: jnp.zeros(s, input_types[name]) for name, s in input_shapes.items()}
    return self.module.init(rng, batch, True)

  def _tokens(self, params, batch, rng):
    logits = self.module.apply(
      {"params": params},
      batch,
      rng is None,
      rngs=None if rng is None else {"dropout": rng},
    )
    log_probs = jax.nn.log_softmax(logits)
    targets = batch["decoder_target_tokens"]
    nll = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return nll, (logits.argmax(-1) == targets).astype(jnp.float32)

  def loss_sums(self, params, batch, dropout_rng):
    nll, correct = self._tokens(params, batch, dropout_rng)
    weights = batch["decoder_loss_weights"]
    loss = jnp.sum(nll * weights)
    sums = {
      "loss": loss,
      "accuracy": jnp.sum(correct * weights),
      "weights": weights.sum(),
      "comments": jnp.sum((batch["decoder_positions"] == 0).astype(jnp.float32)),
      "decoder_tokens": jnp.float32(batch["decoder_input_tokens"].size - 4),
      "decoder_positions": jnp.float32(batch["decoder_input_tokens"].size),
    }
    return loss, weights.sum(), sums

  def recall_sums(self, params, batch):
    del params, batch
    return {}

  def vector_sums(self, params, batch):
    del params
    slots = batch["encoder_segment_ids"]
    return pooling.vector_sums(
      jnp.stack([slots, slots + 1.0], axis=-1), jnp.asarray(slots) > 0
    )

  def evaluate_batch(self, params, batch, condition):
    slots = batch["ancestor_slots"]
    if condition == "none":
      slots = jnp.zeros_like(slots)
    elif condition == "parent_only":
      slots = slots * (jnp.arange(3) == 0)[None, None].astype(slots.dtype)
    elif condition == "shuffled":
      slots = jnp.flip(slots, axis=0)
    nll, correct = self._tokens(params, {**batch, "ancestor_slots": slots}, None)
    target = jnp.take_along_axis(
      batch["decoder_segment_ids"], batch["decoder_masked_positions"], axis=-1
    )
    weights = batch["decoder_loss_weights"]
    return {"nll": nll, "correct": correct, "weights": weights, "targets": target}
