"""Models of Hugging Face: the rules for their arrays, and the settings that they need.

`config.json` tells the kind. RoBERTa and BERT have an encoder, from which both stacks
start, as in Juneja 2021; T5 has both. What shapes do not show, as the number of heads,
is compared with the run's settings, or the numbers would be taken for others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from commentree import differences
from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.training.checkpointing import storage
from commentree.training.warm_starts import hugging_face_rules
from commentree.training.warm_starts.formats.array_source import ArraySource
from commentree.training.warm_starts.rules import Assignment, Rule

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

Settings = dict[str, Any]


def rules_for(
  source: ArraySource, settings: ModelConfig | None = None
) -> tuple[ArraySource, Assignment]:
  """Returns the rules for a model, or for arrays that are named as our parameters.

  Args:
    source: safetensors.
    settings: the run's; compared with the model's if there are any.

  Raises:
    UserError: if the model cannot be had in these settings.
  """
  kind = hugging_face_rules.kind_of(source)
  if kind is None:
    # Neither a model that is known here nor ours: nothing is fresh unless it is said.
    return source, [Rule(r".*", r"\g<0>")]
  file, config = read_config(source.path)
  if config is None:
    raise UserError(
      f"{file}: there is no such file, and without it nothing says how many heads the"
      " model has: get it from where the arrays are from"
    )
  there = settings_of(file, config)
  if settings is not None:
    if not settings.logits_via_embedding:
      # Logits of their own start as products with the table, where it is the table's.
      there.pop("logits_via_embedding", None)
    _check(file, there, settings)
  layers = settings.num_encoder_layers if settings else there["num_encoder_layers"]
  return source, hugging_face_rules.RULES[kind](source, config, layers)


def read_config(path: epath.Path) -> tuple[epath.Path, Mapping[str, Any] | None]:
  """Returns the `config.json` of a model, and what it says; None if it is not there.

  A field that is null there is left out, as if it were not there.

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
  return file, {name: value for name, value in config.items() if value is not None}


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
  lines = [f"ModelConfig.{name} = {value!r}" for name, value in settings.items()]
  if settings["family"] == "roberta":
    # Such models were trained on texts with a beginning and an end.
    lines.append("SubtreeConfig.sequence_ends = True")
  return lines


def _check(file: epath.Path, there: Settings, here: ModelConfig) -> None:
  """Compares settings; raises UserError naming all that differ."""
  compared = {name: value for name, value in there.items() if name not in _MAY_DIFFER}
  found = differences.find(compared, {name: getattr(here, name) for name in compared})
  differing = [f"ModelConfig.{name} = {now}, there {was}" for name, was, now in found]
  if differing:
    raise UserError(
      f"{file} is of a model with other settings: {'; '.join(differing)}: set them as"
      " there; `commentree convert FROM --print_gin` prints them"
    )


def _settings_of_bert(config: Mapping[str, Any], *, has_padding_row: bool) -> Settings:
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
    # Layers of decoders have a norm for either attention.
    "norm_before_ancestors": hugging_face_rules.has_cross_attention(config),
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
  encoder_alone = not config.get("is_encoder_decoder", True)
  by_table = hugging_face_rules.is_tied(config) and hugging_face_rules.scales_logits(
    config
  )
  settings = {
    "family": "t5",
    "emb_dim": int(config["d_model"]),
    "num_heads": int(config["num_heads"]),
    "num_encoder_layers": layers,
    # An encoder alone starts both stacks.
    "num_decoder_layers": layers
    if encoder_alone
    else int(config.get("num_decoder_layers") or layers),
    "head_dim": int(config["d_kv"]),
    "mlp_dim": int(config["d_ff"]),
    "mlp_activations": (_activation(first), *gate),
  }
  # An encoder alone has no logits, and so nothing to say of them.
  if by_table or not encoder_alone:
    settings["logits_via_embedding"] = by_table
  return settings


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
