"""The whole model as a folder that `transformers` loads, by a modeling file of ours."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from commentree.errors import UserError
from commentree.launch.settings.configurables import RunConfig
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.training.warm_starts.formats.array_source import (
  ArraySource,
  Renamed,
  Unstacked,
)

MODELING_FILE = "modeling_commentree.py"
FLAG = "--whole_model"

_CLASSES = {
  "AutoConfig": "CommentTreeConfig",
  "AutoModel": "CommentTreeForMaskedLM",
  "AutoModelForMaskedLM": "CommentTreeForMaskedLM",
}
# What the modeling file reads of ModelConfig.
_SETTINGS = (
  "family",
  "emb_dim",
  "num_heads",
  "num_encoder_layers",
  "num_decoder_layers",
  "head_dim",
  "mlp_dim",
  "mlp_activations",
  "logits_via_embedding",
  "num_positions",
  "position_offset",
  "type_vocab_size",
  "layer_norm_epsilon",
  "norm_before_ancestors",
  "pooling",
  "vectors_per_comment",
  "normalize_pooled_vectors",
  "ancestor_positions",
  "max_ancestor_distance",
  "ancestor_pointer",
)
# What it can of settings that it does not read, or not with every value.
_POSSIBLE: dict[str, tuple[Any, ...]] = {
  "context": ("pooled",),
  "nearest_context_tokens": (0,),
  "num_thread_layers": (0,),
  "ancestor_positions": ("relative_bias", "distance", "none"),
  "vectors_to_logits": (False,),
  "num_languages": (0,),
  "causal_position_buckets": (False,),
}
_STACK = re.compile(r"(encoder|decoder)\.layers\.(.+)")
# Trains vectors, and has no part in logits.
_MATCHER = "reply_matcher."


def check(run: RunConfig) -> None:
  """Makes sure that the modeling file computes what a run's model does.

  Raises:
    UserError: if it does not, naming the setting.
  """
  if run.data.objective_names != ("mlm",):
    raise UserError(
      f"{FLAG}: is for runs of the objective mlm; this run's is"
      f" {' and '.join(run.data.objective_names)}"
    )
  for name, possible in _POSSIBLE.items():
    value = getattr(run.model, name)
    if value not in possible:
      raise UserError(
        f"{FLAG}: this run's ModelConfig.{name} is {value!r}, which"
        f" {MODELING_FILE} does not compute; it does"
        f" {' and '.join(map(repr, possible))}"
      )


def arrays_of(parameters: ArraySource) -> tuple[ArraySource, list[str]]:
  """Returns the arrays of the model, layer by layer, and the names of those left out.

  Args:
    parameters: of a checkpoint, by our names, which are the modeling file's too.
  """
  unstacked = Unstacked(parameters, _layer_of)
  left_out = [name for name in unstacked.arrays if name.startswith(_MATCHER)]
  names = {name: name for name in unstacked.arrays if name not in left_out}
  return Renamed(unstacked, names), left_out


def _layer_of(name: str) -> tuple[str, int] | None:
  """Says how layers that `scan_layers` stacks are called one by one."""
  found = _STACK.fullmatch(name)
  return found and (f"{found[1]}.layers_{{}}.{found[2]}", 0)


def config_json(
  run: RunConfig, vocab_size: int, tokenizer: Tokenizer
) -> dict[str, Any]:
  """Returns the `config.json` of the model.

  Args:
    run: settings that `check` has let pass.
    vocab_size: rows of the table of tokens.
    tokenizer: the run's.
  """
  module = MODELING_FILE.removesuffix(".py")
  return {
    "model_type": "commentree",
    "architectures": [_CLASSES["AutoModelForMaskedLM"]],
    "auto_map": {auto: f"{module}.{name}" for auto, name in _CLASSES.items()},
    **{name: getattr(run.model, name) for name in _SETTINGS},
    "vocab_size": vocab_size,
    "max_ancestors": run.data.preprocessing.subtrees.max_ancestors,
    "pad_token_id": tokenizer.pad_id,
    "mask_token_id": tokenizer.mask_id,
    "tie_word_embeddings": False,
    "dtype": "float32",
  }


def modeling_source() -> str:
  """Returns the modeling file, which is not imported: it takes PyTorch."""
  return pathlib.Path(__file__).with_name(MODELING_FILE).read_text()
