"""Models of Hugging Face: the rules for their arrays, and the settings that they need.

`config.json` tells the kind. RoBERTa and BERT have an encoder, from which both stacks
start, as in Juneja 2021; T5 has both. What shapes do not show, as the number of heads,
is compared with the run's settings, or the numbers would be taken for others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from ...errors import UserError
from ...models.config import ModelConfig
from .. import storage
from .rules import Assignment, Rule
from .sources import ArraySource

CONFIG_FILE = "config.json"

_LONGEST_CONFIG = 2**24
_ACTIVATIONS = {
  "gelu": "gelu_exact",
  "gelu_new": "gelu",
  "gelu_fast": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}
# What a warm start may have less of than the file: layers, and positions.
_MAY_DIFFER = ("num_encoder_layers", "num_decoder_layers", "num_positions")
# Of ours, whatever the family; a file has no counterpart.
_OURS = Rule(r"(?!token_embedder\.|encoder\.|decoder\.).*", None)

Settings = dict[str, Any]


def assign(
  source: ArraySource, settings: ModelConfig | None = None
) -> tuple[ArraySource, Assignment]:
  """Returns the rules for a model, or for arrays that are named as our parameters.

  Args:
    source: safetensors.
    settings: the run's; compared with the model's if there are any.

  Raises:
    UserError: if the model cannot be had in these settings.
  """
  kind = _kind(source)
  if kind is None:
    return source, [Rule(r".*", r"\g<0>?")]
  file, config = read_config(source.path)
  if config is None:
    raise UserError(
      f"{file}: there is no such file, and without it nobody knows how many heads the"
      " model has: get it from where the arrays are from"
    )
  if settings is not None:
    _check(file, settings_of(file, config), settings)
  return source, _RULES[kind](source, config)


def read_config(path: epath.Path) -> tuple[epath.Path, Mapping[str, Any] | None]:
  """Returns the `config.json` of a model, and what it says; None if it is not there.

  Args:
    path: the model's folder, or a file in it.

  Raises:
    UserError: if it cannot be read.
  """
  folder = path.parent if path.name.endswith(".safetensors") else path
  file = folder / CONFIG_FILE
  if not file.is_file():
    return file, None
  if file.stat().length > _LONGEST_CONFIG:
    raise UserError(f"{file} has {file.stat().length:,} bytes: this is no config.json")
  try:
    config = json.loads(file.read_bytes())
  except (ValueError, RecursionError) as error:
    raise UserError(f"{file} is no JSON ({storage.reason(error)}): get it again") from (
      error
    )
  if not isinstance(config, dict):
    raise UserError(f"{file} is no JSON object: get it again")
  return file, config


def settings_of(file: epath.Path, config: Mapping[str, Any]) -> Settings:
  """Returns the fields of `ModelConfig` that make it the model of a `config.json`.

  Args:
    file: the file, to be named.
    config: what it says.

  Raises:
    UserError: if it is of another kind, or has something that we do not.
  """
  model_type = config.get("model_type")
  if model_type not in _SETTINGS:
    raise UserError(
      f"{file}: model_type = {model_type!r}: {', '.join(_SETTINGS)} have settings here;"
      " say by WARM_START_RULES what others have where"
    )
  try:
    settings = _SETTINGS[model_type](config)
    ModelConfig(**settings)
  except KeyError as error:
    raise UserError(f"{file} has no {error.args[0]}: get it again") from error
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise UserError(f"{file} cannot be read ({error}): get it again") from error
  except UserError as error:
    raise UserError(f"{file}: {error}") from error
  return settings


def gin_lines(path: str) -> list[str]:
  """Returns what a model file of gin has to say for a model's arrays to fit.

  Args:
    path: the model's folder, or a file in it.

  Raises:
    UserError: if there is no `config.json`, or one of another kind.
  """
  file, config = read_config(storage.as_path(path))
  if config is None:
    raise UserError(f"{file}: there is no such file; settings are read from it")
  settings = settings_of(file, config)
  return [f"ModelConfig.{name} = {value!r}" for name, value in settings.items()]


def _check(file: epath.Path, there: Settings, here: ModelConfig) -> None:
  """Compares settings; raises UserError naming all that differ."""
  differing = [
    f"ModelConfig.{name} = {getattr(here, name)!r}, there {value!r}"
    for name, value in there.items()
    if name not in _MAY_DIFFER and getattr(here, name) != value
  ]
  if differing:
    raise UserError(
      f"{file} is of a model with other settings: {'; '.join(differing)}: set them as"
      " there; `commentree convert FROM --print_gin` prints them"
    )


def _kind(source: ArraySource) -> str | None:
  """Returns which rules are for a source, by the names that it has."""
  if _bert_prefix(source) is not None:
    return "bert"
  return "t5" if "encoder.final_layer_norm.weight" in source.arrays else None


def _bert_prefix(source: ArraySource) -> str | None:
  """Returns what comes before `embeddings.…`: the model is alone, or under a head."""
  tail = "embeddings.word_embeddings.weight"
  found = [name.removesuffix(tail) for name in source.arrays if name.endswith(tail)]
  # Of several, as in a file with two encoders, nobody knows which.
  return found[0] if len(found) == 1 else None


def _settings_of_bert(config: Mapping[str, Any], has_padding_row: bool) -> Settings:
  if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
    raise UserError(
      f"position_embedding_type = {kind!r}: only 'absolute' is there here"
    )
  layers, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
  heads = int(config["num_attention_heads"])
  if width % heads:
    raise UserError(f"hidden_size = {width} does not divide over {heads} heads")
  return {
    "family": "roberta",
    "emb_dim": width,
    "num_heads": heads,
    "num_encoder_layers": layers,
    "num_decoder_layers": layers,
    "head_dim": width // heads,
    "mlp_dim": int(config["intermediate_size"]),
    "mlp_activations": (_activation(config.get("hidden_act", "gelu")),),
    "num_positions": int(config["max_position_embeddings"]),
    # RoBERTa counts positions from the one after its padding token's id.
    "position_offset": int(config.get("pad_token_id", 1)) + 1 if has_padding_row else 0,
    "type_vocab_size": int(config["type_vocab_size"]),
    "layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-12)),
  }


def _settings_of_t5(config: Mapping[str, Any]) -> Settings:
  for name, ours in (
    ("relative_attention_num_buckets", 32),
    ("relative_attention_max_distance", 128),
    ("layer_norm_epsilon", 1e-6),
  ):
    if config.get(name, ours) != ours:
      raise UserError(f"{name} = {config[name]!r}: only {ours} is there here")
  layers = int(config["num_layers"])
  words = str(config.get("feed_forward_proj", "relu")).split("-")
  # Hugging Face's name for T5 1.1's means the tanh form, which it calls gelu_new.
  first = "gelu_new" if words == ["gated", "gelu"] else words[-1]
  gate = ("linear",) if words[0] == "gated" else ()
  return {
    "family": "t5",
    "emb_dim": int(config["d_model"]),
    "num_heads": int(config["num_heads"]),
    "num_encoder_layers": layers,
    "num_decoder_layers": int(config.get("num_decoder_layers") or layers),
    "head_dim": int(config["d_kv"]),
    "mlp_dim": int(config["d_ff"]),
    "mlp_activations": (_activation(first), *gate),
  }


def _activation(name: Any) -> str:
  if name not in _ACTIVATIONS:
    raise UserError(f"activation {name!r}: {', '.join(_ACTIVATIONS)} are there here")
  return _ACTIVATIONS[name]


_SETTINGS: dict[str, Callable[[Mapping[str, Any]], Settings]] = {
  **dict.fromkeys(
    ("roberta", "xlm-roberta", "camembert"),
    lambda config: _settings_of_bert(config, has_padding_row=True),
  ),
  "bert": lambda config: _settings_of_bert(config, has_padding_row=False),
  **dict.fromkeys(("t5", "mt5"), _settings_of_t5),
}


def _dense(parameter: str, source: str) -> list[Rule]:
  """Returns the rules of a linear map, which PyTorch has the other way round."""
  optional = "?" if source.endswith("?") else ""
  source = source.removesuffix("?")
  return [
    Rule(rf"{parameter}\.kernel", f"{source}.weight{optional}", "transpose"),
    Rule(rf"{parameter}\.bias", f"{source}.bias{optional}"),
  ]


def _bert_rules(source: ArraySource, config: Mapping[str, Any]) -> Assignment:
  """Returns the rules of RoBERTa and BERT: one encoder for both stacks."""
  del config
  prefix = _bert_prefix(source)
  assert prefix is not None
  layer = rf"{prefix}encoder.layer.\g<layer>"
  # Files that were TensorFlow's at first, as Google's BERTs, have its names of norms.
  old = any(name.endswith("LayerNorm.gamma") for name in source.arrays)
  scale, bias = ("gamma", "beta") if old else ("weight", "bias")

  def norm(parameter: str, array: str) -> list[Rule]:
    optional = "?" if array.endswith("?") else ""
    array = array.removesuffix("?")
    return [
      Rule(rf"{parameter}\.scale", f"{array}.{scale}{optional}"),
      Rule(rf"{parameter}\.bias", f"{array}.{bias}{optional}"),
    ]

  both = r"(?:encoder|decoder)\.layers_(?P<layer>\d+)"
  cross = rf"{both}\.encoder_decoder_attention"
  embeddings = f"{prefix}embeddings"
  parts = rf"{both}\.(?:self_)?attention\.(?P<part>query|key|value)"
  parts_across = rf"{cross}\.(?P<part>query|key|value)"
  head = "lm_head" if "lm_head.dense.weight" in source.arrays else "cls.predictions"
  dense, head_norm = (
    ("dense", "layer_norm")
    if head == "lm_head"
    else ("transform.dense", "transform.LayerNorm")
  )
  return [
    Rule(
      r"token_embedder\.embedding", f"{embeddings}.word_embeddings.weight", "grow:0"
    ),
    Rule(
      r"token_embedder\.position_embedding",
      f"{embeddings}.position_embeddings.weight",
      "cut:0",
    ),
    Rule(
      r"token_embedder\.type_embedding", f"{embeddings}.token_type_embeddings.weight"
    ),
    *norm(r"token_embedder\.norm", f"{embeddings}.LayerNorm"),
    *_dense(parts, rf"{layer}.attention.self.\g<part>"),
    *_dense(rf"{both}\.(?:self_)?attention\.out", f"{layer}.attention.output.dense"),
    *norm(
      rf"{both}\.post_(?:self_)?attention_layer_norm",
      f"{layer}.attention.output.LayerNorm",
    ),
    # Only models that were decoders have it; else it is fresh.
    *_dense(parts_across, rf"{layer}.crossattention.self.\g<part>?"),
    *_dense(rf"{cross}\.out", f"{layer}.crossattention.output.dense?"),
    *norm(
      rf"{both}\.post_cross_attention_layer_norm",
      f"{layer}.crossattention.output.LayerNorm?",
    ),
    *_dense(rf"{both}\.mlp\.wi", f"{layer}.intermediate.dense"),
    *_dense(rf"{both}\.mlp\.wo", f"{layer}.output.dense"),
    *norm(rf"{both}\.post_mlp_layer_norm", f"{layer}.output.LayerNorm"),
    *_dense(r"decoder\.logits_transform", f"{head}.{dense}?"),
    *norm(r"decoder\.logits_norm", f"{head}.{head_norm}?"),
    Rule(r"decoder\.logits_bias", f"{head}.bias?", "grow:0"),
    _OURS,
  ]


def _t5_rules(source: ArraySource, config: Mapping[str, Any]) -> Assignment:
  """Returns the rules of T5, mT5 and FLAN-T5, whose stacks are as ours."""
  layer = r"\g<side>.block.\g<layer>.layer"
  either = r"(?P<side>encoder|decoder)\.layers_(?P<layer>\d+)"
  tables = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
  )
  table = next((name for name in tables if name in source.arrays), tables[0])
  relative = "layer.0.SelfAttention.relative_attention_bias.weight"
  letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
  rules = [
    Rule(r"token_embedder\.embedding", table, "grow:0"),
    Rule(
      r"encoder\.relpos_bias\.rel_embedding", f"encoder.block.0.{relative}", "transpose"
    ),
    Rule(
      r"decoder\.relpos_bias\.rel_embedding",
      f"decoder.block.0.{relative}",
      "transpose, causal_buckets",
    ),
    Rule(
      rf"{either}\.pre_(?:self_)?attention_layer_norm\.scale",
      f"{layer}.0.layer_norm.weight",
    ),
    Rule(
      rf"{either}\.pre_cross_attention_layer_norm\.scale",
      f"{layer}.1.layer_norm.weight",
    ),
    *_logits_of_t5(source, config, table),
  ]
  for ours, theirs in letters.items():
    rules += [
      Rule(
        rf"{either}\.(?:self_)?attention\.{ours}\.kernel",
        f"{layer}.0.SelfAttention.{theirs}.weight",
        "transpose",
      ),
      Rule(
        rf"{either}\.encoder_decoder_attention\.{ours}\.kernel",
        f"{layer}.1.EncDecAttention.{theirs}.weight",
        "transpose",
      ),
    ]
  for side, number in (("encoder", 1), ("decoder", 2)):
    block = rf"{side}\.layers_(?P<layer>\d+)"
    there = rf"{side}.block.\g<layer>.layer.{number}"
    rules += [
      Rule(
        rf"{block}\.mlp\.(?P<part>wi|wi_0|wi_1|wo)\.kernel",
        rf"{there}.DenseReluDense.\g<part>.weight",
        "transpose",
      ),
      Rule(rf"{block}\.pre_mlp_layer_norm\.scale", f"{there}.layer_norm.weight"),
      Rule(rf"{side}\.{side}_norm\.scale", f"{side}.final_layer_norm.weight"),
    ]
  return [*rules, _OURS]


def _logits_of_t5(
  source: ArraySource, config: Mapping[str, Any], table: str
) -> Sequence[Rule]:
  """Returns the rule of the logits, for which T5 1.0 has no weights of its own.

  It multiplies by the table of tokens and divides by the square root of the width.
  """
  name = "lm_head.weight" if "lm_head.weight" in source.arrays else table
  tied = config.get("tie_word_embeddings") is not False
  if config.get("scale_decoder_outputs", tied and config.get("model_type") == "t5"):
    scale = int(config["d_model"]) ** -0.5
    how = f"transpose, scale:{scale!r}, grow:1"
  else:
    how = "transpose, grow:1"
  return [Rule(r"decoder\.logits_dense\.kernel", name, how)]


_RULES: dict[str, Callable[[ArraySource, Mapping[str, Any]], Assignment]] = {
  "bert": _bert_rules,
  "t5": _t5_rules,
}
