"""An encoder written as a model of Hugging Face: BERT's or T5's encoder.

The rules by which a warm start takes arrays from such models are followed the other
way round. RoBERTa and BERT differ in where positions begin; ours is written as a BERT,
whose positions begin at 0, so that no id of padding decides them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.training.warm_starts import hugging_face, hugging_face_rules, writing
from commentree.training.warm_starts.formats.array_source import (
  ArraySource,
  ArraySpec,
  Index,
  Unstacked,
  whole,
)

_ENCODER = re.compile(r"token_embedder\.|encoder\.")
_STACK = "encoder.layers."
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
# Names that the rules look for, of models whose other names begin with nothing.
_NAMES: Mapping[hugging_face_rules.Kind, tuple[str, ...]] = {
  "bert": (
    "encoder.layer.0.attention.self.query.weight",
    "embeddings.word_embeddings.weight",
  ),
  "t5": ("encoder.final_layer_norm.weight", "shared.weight"),
}
_ACTIVATIONS = {
  "gelu_exact": "gelu",
  "gelu": "gelu_new",
  "relu": "relu",
  "silu": "silu",
}


class EncoderArrays:
  """The arrays of an encoder by Hugging Face's names.

  Attributes:
    left_out: parameters of the encoder for which such a model has no place.
  """

  def __init__(self, parameters: ArraySource, config: ModelConfig):
    """Finds the names.

    Args:
      parameters: of a checkpoint, by our names.
      config: of the model.
    """
    self.path, self.kind = parameters.path, "an encoder"
    self._source = Unstacked(parameters, _layer_of)
    self._offset = config.position_offset
    self._from: dict[str, tuple[str, bool]] = {}
    self.left_out: list[str] = []
    self.arrays: Mapping[str, ArraySpec] = {}
    arrays: dict[str, ArraySpec] = {}
    kind = kind_of(config)
    # The rules ask a source for the names of its arrays alone.
    names = writing.TreeArrays(dict.fromkeys(_NAMES[kind], np.float32(0)))
    rules = hugging_face_rules.RULES[kind](
      names, {"d_model": config.emb_dim}, config.num_encoder_layers
    )
    for name, spec in self._source.arrays.items():
      if not _ENCODER.match(name):
        continue
      for rule in rules:
        if match := re.fullmatch(rule.parameter, name):
          break
      else:
        match = None
      if match is None or rule.source is None:
        self.left_out.append(name)
        continue
      turned = rule.transform.startswith("transpose")
      shape = spec.shape[::-1] if turned else spec.shape
      theirs = match.expand(rule.source.removesuffix("?"))
      if theirs == _POSITIONS:
        shape = (shape[0] - self._offset, *shape[1:])
      self._from[theirs] = (name, turned)
      arrays[theirs] = ArraySpec(shape, np.dtype(np.float32))
    if kind == "bert" and _TYPES not in arrays:
      # A BERT adds the vector of a type to every token.
      arrays[_TYPES] = ArraySpec((1, config.emb_dim), np.dtype(np.float32))
    self.arrays = arrays

  def check(self) -> list[str]:
    """As `ArraySource.check`."""
    return self._source.check()

  def read(self, name: str, index: Index) -> np.ndarray:
    """As `ArraySource.read`; float32, whatever the checkpoint has."""
    if name not in self._from:
      return np.zeros(self.arrays[name].shape, np.float32)[index]
    ours, turned = self._from[name]
    values = self._source.read(ours, whole(self._source.arrays[ours].shape))
    if name == _POSITIONS:
      values = values[self._offset :]
    return np.ascontiguousarray((values.T if turned else values)[index], np.float32)


def _layer_of(name: str) -> tuple[str, int] | None:
  """Says how layers that `scan_layers` stacks are called one by one."""
  if not name.startswith(_STACK):
    return None
  return f"encoder.layers_{{}}.{name.removeprefix(_STACK)}", 0


def kind_of(config: ModelConfig) -> hugging_face_rules.Kind:
  """Returns which model an encoder is written as."""
  return "bert" if config.family == "roberta" else "t5"


def config_json(
  config: ModelConfig, vocab_size: int, pad_id: int, end_id: int | None
) -> dict[str, Any]:
  """Returns the `config.json` of an encoder.

  Args:
    config: of the model.
    vocab_size: rows of the table of tokens.
    pad_id: of the vocabulary.
    end_id: of the end of a sequence; None if there is none.

  Raises:
    UserError: if Hugging Face's model has no such setting.
  """
  first, *gate = config.mlp_activations
  width = config.num_heads * config.head_dim
  common = {"vocab_size": vocab_size, "pad_token_id": pad_id, "dtype": "float32"}
  if kind_of(config) == "bert":
    if gate or first not in _ACTIVATIONS or width != config.emb_dim:
      raise UserError(
        "--to=hugging_face: a BERT has one activation and heads that make up the width;"
        f" this encoder has {config.mlp_activations} and {config.num_heads} heads of"
        f" {config.head_dim} in {config.emb_dim}"
      )
    return {
      "architectures": ["BertModel"],
      "model_type": "bert",
      "hidden_size": config.emb_dim,
      "num_hidden_layers": config.num_encoder_layers,
      "num_attention_heads": config.num_heads,
      "intermediate_size": config.mlp_dim,
      "hidden_act": _ACTIVATIONS[first],
      "max_position_embeddings": config.num_positions - config.position_offset,
      "type_vocab_size": max(config.type_vocab_size, 1),
      "layer_norm_eps": config.layer_norm_epsilon,
      "hidden_dropout_prob": config.dropout_rate,
      "attention_probs_dropout_prob": config.dropout_rate,
      **common,
    }
  kinds = {
    ("gelu", "linear"): "gated-gelu",
    ("relu",): "relu",
    ("silu", "linear"): "gated-silu",
  }
  projection = kinds.get(tuple(config.mlp_activations))
  if projection is None:
    raise UserError(
      f"--to=hugging_face: a T5 has the activations {', '.join(map(str, kinds))}; this"
      f" encoder has {config.mlp_activations}"
    )
  return {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": config.emb_dim,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "num_layers": config.num_encoder_layers,
    "num_heads": config.num_heads,
    "feed_forward_proj": projection,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": config.dropout_rate,
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": False,
    "eos_token_id": end_id,
    **common,
  }


CONFIG_FILE = hugging_face.CONFIG_FILE
