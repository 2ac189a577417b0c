"""Models started from files, and asked for hidden states."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from commentree.models.batch import smallest
from commentree.models.config import ModelConfig
from commentree.models.context.encoded import Encoded
from commentree.models.model import CommentTreeModel
from commentree.training import partitioning
from commentree.training import state as state_lib
from commentree.training.config import PartitioningConfig
from commentree.training.warm_starts import apply, assignments, hugging_face, sources
from commentree.training.warm_starts.rules import WarmStartPlan


@dataclasses.dataclass
class Started:
  """A model, its parameters, and the plan by which they were loaded."""

  model: CommentTreeModel
  params: dict
  plan: WarmStartPlan

  @property
  def named(self):
    return partitioning.flatten_names(jax.tree.map(np.asarray, self.params))


def settings_of(path):
  """Returns what `config.json` says."""
  file, config = hugging_face.read_config(sources.storage.as_path(path))
  return hugging_face.settings_of(file, config)


def start(path, own=(), *, vocab_size, **changes) -> Started:
  """Starts a model whose settings are those of the file, and `changes`.

  Token vectors are the pooled ones: the first so many.
  """
  config = ModelConfig(
    **{
      **settings_of(path),
      "vocab_size": vocab_size,
      "pooling": "first",
      "vectors_per_comment": 12,
      "ancestor_positions": "none",
      "dtype": "float32",
      **changes,
    }
  )
  like = abstract_params(config)
  source, plan = assignments.plan_for(path, apply.specs_of(like), own, config)
  params = apply.fill(plan, source, like, functools.partial(draw, config))
  return Started(CommentTreeModel(config), params, plan)


# Many tests start models of one kind: what takes time is tracing them.
@functools.cache
def abstract_params(config: ModelConfig):
  """Returns the abstract parameters of a model on all devices."""
  placing = PartitioningConfig()
  mesh = partitioning.make_mesh(placing)
  return state_lib.abstract_params(CommentTreeModel(config), smallest(), mesh, placing)


def draw(config: ModelConfig, names):
  """Returns some of its parameters, always the same ones."""
  return dict(_drawn(config, tuple(names)))


@functools.cache
def _drawn(config, names):
  like, key = abstract_params(config), jax.random.key(3)
  return state_lib.draw_params(CommentTreeModel(config), smallest(), like, key, names)


def row(tokens):
  return np.asarray(tokens, np.int32)[None, None]


def encoder_states(started: Started, tokens) -> np.ndarray:
  """Returns the encoder's token vectors of a comment, `[L, D]`.

  Two rows: the comment, and one of other comments that it must not see.
  """
  length = len(tokens)
  batch = {name: np.asarray(values) for name, values in smallest().items()}
  batch["encoder_input_tokens"] = row([*tokens, *tokens[::-1]])
  batch["encoder_segment_ids"] = row([1] * length + [2] * length)
  batch["encoder_positions"] = row([*range(length), *range(length)])
  batch["encoder_slot_depths"] = np.zeros((1, 2), np.int32)
  encoded = jax.jit(started.model.encode)(started.params, batch)
  assert np.asarray(encoded.used_BEJ)[0, 0].sum() == min(
    length, started.model.config.vectors_per_comment
  )
  return np.asarray(encoded.vectors_BEJD)[0, 0, :length]


def decoder_logits(started: Started, tokens, states) -> np.ndarray:
  """Returns the decoder's logits of a comment given vectors `[S, D]`, `[L, V]`."""
  length, seen = len(tokens), len(states)
  batch = {name: np.asarray(values) for name, values in smallest().items()}
  batch["decoder_input_tokens"] = row(tokens)
  batch["decoder_segment_ids"] = row([1] * length)
  batch["decoder_positions"] = row(range(length))
  batch["decoder_masked_positions"] = row(range(length))
  batch["encoder_slot_depths"] = np.zeros((1, seen), np.int32)
  batch["ancestor_slots"] = row(range(1, seen + 1))
  batch["ancestor_distances"] = row([1] * seen)
  vectors = np.asarray(states, np.float32)[None, :, None]
  apply_fn = functools.partial(started.model.module.apply, method="decode")
  encoded = Encoded(vectors, np.ones((1, seen, 1), bool), vectors[:, :, 0])
  logits = jax.jit(apply_fn)({"params": started.params}, encoded, batch)
  return np.asarray(logits)[0, 0]
