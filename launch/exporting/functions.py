"""What functions a model is exported as: inputs, outputs, computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from commentree.launch.inference.modes import mode_table
from commentree.launch.inference.modes.base import Mode
from commentree.launch.inference.modes.generate import Generate
from commentree.launch.inference.modes.score import Likelihood
from commentree.launch.inference.run_context import RunContext
from commentree.models.decoding import decoding
from commentree.models.model import CommentTreeModel
from commentree.tasks.forests.forest_layout import ForestShape

Arrays = Mapping[str, jax.Array]

# Words of 32 bits that tell a reply from all others.
IDENTITY_WORDS = 4

_AXES = {
  "encoder_input_tokens": "tokens of the comments that others see, [B, R, L]",
  "encoder_segment_ids": "slot of each token's comment from 1, 0 for padding",
  "encoder_positions": "place of each token in its comment, from 0",
  "encoder_slot_depths": "depth of each slot's comment, -1 for an unused slot, [B, E]",
  "decoder_input_tokens": "tokens that are read, [B, R, L]",
  "decoder_segment_ids": "target that each token is of from 1, 0 for padding",
  "decoder_positions": "place of each token in its target, from 0",
  "decoder_masked_positions": "columns of the rows to predict at, [B, R, M]",
  "decoder_target_tokens": "tokens or labels to score there",
  "ancestor_slots": "slots of a target's ancestors, nearest first, 0: none, [B, T, A]",
  "ancestor_distances": "hops to them, 1 for the parent",
  "target_depths": "depth of each target, 0 for a post, [B, T]",
  "target_prefix_lengths": "leading tokens of a target that all of its tokens see",
  "encoder_languages": "language of each token from 1, 0 for none",
  "decoder_languages": "language of each token from 1, 0 for none",
}
_READ = (
  "encoder_input_tokens",
  "encoder_segment_ids",
  "encoder_positions",
  "encoder_slot_depths",
)
_ABOVE = ("ancestor_slots", "ancestor_distances", "target_depths")
_PREDICTED = (
  "decoder_input_tokens",
  "decoder_segment_ids",
  "decoder_positions",
  "decoder_masked_positions",
)


@dataclasses.dataclass(frozen=True)
class Input:
  """An array that a function takes.

  Attributes:
    shape: with the batch.
    dtype: name of NumPy's.
    about: what it is.
  """

  shape: tuple[int, ...]
  dtype: str
  about: str


@dataclasses.dataclass(frozen=True)
class Function:
  """A function of parameters and inputs.

  Attributes:
    name: as users call it.
    about: what it computes.
    inputs: by name.
    outputs: what each array that it returns is, by name.
    settings: of what it does, for those who call it.
    compute: from parameters and inputs to outputs.
  """

  name: str
  about: str
  inputs: Mapping[str, Input]
  outputs: Mapping[str, str]
  settings: Mapping[str, Any]
  compute: Callable[[Any, Arrays], dict[str, jax.Array]]


def make(
  mode: str,
  run: RunContext,
  model: CommentTreeModel,
  batch_size: int,
  options: Mapping[str, Any],
) -> Function:
  """Makes the function of a mode of `commentree infer`.

  Args:
    mode: its name.
    run: the run.
    model: its model.
    batch_size: forests that are computed at once.
    options: the mode's own, as `mode_table` has them.

  Raises:
    UserError: if an option is out of range.
  """
  made = mode_table.make(mode, run, options=options)
  forest = _Forest(made.shape, batch_size, model)
  if isinstance(made, Generate):
    return _generate(forest, made, model)
  kinds: dict[str, Callable[..., Function]] = {
    "fill": _fill,
    "embed": _embed,
    "score": _score,
    "tag": _labels,
    "classify": _labels,
    "regress": _numbers,
  }
  return kinds[mode](made, forest, run, model, options)


class _Forest:
  """What inputs have in common."""

  def __init__(self, shape: ForestShape, batch_size: int, model: CommentTreeModel):
    self.shapes = {
      name: (batch_size, *sizes) for name, sizes in shape.feature_shapes().items()
    }
    # What a model was trained without it has no parameters for.
    self.languages = bool(model.config.num_languages)
    self._optional_features = shape.optional_features

  def inputs(self, *names: str) -> dict[str, Input]:
    """Returns features as inputs, and the optional ones that belong to them."""
    sides = [side for side in ("encoder", "decoder") if f"{side}_positions" in names]
    if self.languages:
      names += tuple(f"{side}_languages" for side in sides)
    if "decoder" in sides:
      names += tuple(
        name for name in self._optional_features if "languages" not in name
      )
    sizes = {**self.shapes}
    for side in sides:
      sizes[f"{side}_languages"] = sizes[f"{side}_positions"]
    return {name: Input(sizes[name], "int32", _AXES[name]) for name in names}


def _fill(
  mode: Mode,
  forest: _Forest,
  run: RunContext,
  model: CommentTreeModel,
  options: Mapping[str, Any],
) -> Function:
  top_k, maskable = options.get("top_k", 5), run.tokenizer.maskable

  def compute(params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    log_probs = jax.nn.log_softmax(model.logits(params, inputs))
    # Markers and the like are never hidden, and so never sought.
    words = jnp.where(maskable, log_probs[..., : len(maskable)], -jnp.inf)
    best, tokens = jax.lax.top_k(words, top_k)
    return {"tokens": tokens, "log_probabilities": best}

  return Function(
    mode.name,
    "The likeliest tokens at masked positions, given the ancestors.",
    forest.inputs(*_READ, *_PREDICTED, *_ABOVE),
    {
      "tokens": "the likeliest tokens at each position, best first",
      "log_probabilities": "theirs, in nats",
    },
    {"mask_id": run.tokenizer.mask_id},
    compute,
  )


def _embed(
  mode: Mode,
  forest: _Forest,
  run: RunContext,
  model: CommentTreeModel,
  options: Mapping[str, Any],
) -> Function:
  del run, options

  def compute(params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    encoded = model.encode(params, inputs)
    vectors = encoded.vectors_BEJD.astype(jnp.float32)
    return {"vectors": vectors, "used": encoded.used_BEJ}

  return Function(
    mode.name,
    "The vectors that comments are pooled to.",
    forest.inputs(*_READ),
    {
      "vectors": "of each slot, [B, E, vectors per comment, width]",
      "used": "which of them hold anything",
    },
    {},
    compute,
  )


def _score(
  mode: Mode,
  forest: _Forest,
  run: RunContext,
  model: CommentTreeModel,
  options: Mapping[str, Any],
) -> Function:
  del options

  def compute(params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    log_probs = jax.nn.log_softmax(model.logits(params, inputs))
    targets = inputs["decoder_target_tokens"][..., None]
    found = jnp.take_along_axis(log_probs, targets, axis=-1)[..., 0]
    return {"log_probabilities": found}

  settings: dict[str, Any] = {}
  if isinstance(mode, Likelihood):
    assert run.causal is not None
    settings = {"start_id": run.causal.start_id, "end_id": run.causal.end_id}
  else:
    settings = {"mask_id": run.tokenizer.mask_id}
  return Function(
    mode.name,
    "The log probability of given tokens at given positions, given the ancestors.",
    forest.inputs(*_READ, *_PREDICTED, "decoder_target_tokens", *_ABOVE),
    {"log_probabilities": "of `decoder_target_tokens`, in nats"},
    settings,
    compute,
  )


def _labels(
  mode: Mode,
  forest: _Forest,
  run: RunContext,
  model: CommentTreeModel,
  options: Mapping[str, Any],
) -> Function:
  del run, options

  def compute(params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    # Every position given is of a chain of labels.
    weights = jnp.ones(inputs["decoder_masked_positions"].shape)
    labels, beside = model.predict_batch_with_aux(
      params, {**inputs, "decoder_loss_weights": weights}
    )
    return {"labels": labels, "probabilities": beside["probabilities"]}

  what = "tokens" if mode.name == "tag" else "comments"
  return Function(
    mode.name,
    f"Labels of {what}, given the ancestors.",
    forest.inputs(*_READ, *_PREDICTED, *_ABOVE),
    {
      "labels": "number of the label at each position",
      "probabilities": "of all labels there",
    },
    {},
    compute,
  )


def _numbers(
  mode: Mode,
  forest: _Forest,
  run: RunContext,
  model: CommentTreeModel,
  options: Mapping[str, Any],
) -> Function:
  del options
  config = run.config.data.preprocessing.comment_numbers
  ranks = model.config.regression_loss == "ranking"

  def compute(params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    numbers = model.predict_batch(params, inputs)
    if not ranks:
      # As `CommentNumbersConfig.restored`.
      numbers = config.mean + config.standard_deviation * numbers
      if config.transform == "log":
        numbers = jnp.copysign(jnp.expm1(jnp.abs(numbers)), numbers)
    return {"numbers": numbers}

  about = "to order the replies to one comment by" if ranks else "as the data has them"
  return Function(
    mode.name,
    "Numbers of comments, given the ancestors.",
    forest.inputs(*_READ, *_PREDICTED, *_ABOVE),
    {"numbers": f"at each position, {about}"},
    {},
    compute,
  )


def _generate(forest: _Forest, mode: Generate, model: CommentTreeModel) -> Function:
  config = mode.config
  slots = forest.shapes["target_depths"]
  more = {
    "wanted": Input(slots, "bool", "to which targets replies are wanted"),
    "first_tokens": Input(
      (*slots, 1), "int32", "token that a reply begins with, -1 for none given"
    ),
  }
  if config.method == "sample":
    more["identities"] = Input(
      (*slots, IDENTITY_WORDS),
      "uint32",
      "what tells a reply from all others: the same words, the same draws",
    )
    more["seed"] = Input((), "uint32", "of all that is drawn")

  def compute(params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    keys = None
    if config.method == "sample":
      keys = decoding.reply_keys(inputs["seed"], inputs["identities"])
    replies = model.generate(
      params,
      inputs,
      config,
      keys,
      wanted=inputs["wanted"],
      first_tokens=inputs["first_tokens"],
    )
    return {
      field.name: getattr(replies, field.name) for field in dataclasses.fields(replies)
    }

  return Function(
    "generate",
    "Replies, each to the ancestors of a target.",
    {**forest.inputs(*_READ, *_ABOVE), **more},
    {
      "tokens": "of the replies, [B, T, replies, most tokens]",
      "log_probabilities": "in nats; -inf for a reply that a beam did not find",
      "lengths": "tokens without the end",
      "ended": "false for what was cut off",
    },
    {
      name: value
      for name, value in dataclasses.asdict(config).items()
      if name != "never"
    },
    compute,
  )
