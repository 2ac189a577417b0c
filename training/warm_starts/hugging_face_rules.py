"""Which array of Hugging Face's models each parameter comes from.

Models are known by the names of their arrays. These may all begin with something: that
of the body under a head (`roberta.`), what a wrapper puts in front (`module.`,
`_orig_mod.`), or both. Of weights that a model ties, files have one name or another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from .rules import COLUMNS, ROWS, Assignment, Rule
from .sources import ArraySource

Kind = Literal["bert", "t5"]

# One array of each kind's encoder.
_BODIES: dict[Kind, str] = {
  "bert": "encoder.layer.0.attention.self.query.weight",
  "t5": "encoder.final_layer_norm.weight",
}
# Heads of masked tokens: their dense layer, and its norm.
_HEADS = (
  ("lm_head", "dense", "layer_norm"),
  ("cls.predictions", "transform.dense", "transform.LayerNorm"),
)
# Of ours, whatever the family; a file has no counterpart.
_OURS = Rule(r"(?!token_embedder\.|encoder\.|decoder\.).*", None)


def kind_of(source: ArraySource) -> Kind | None:
  """Returns which rules are for a source; None if no one model's names are there."""
  for kind, tail in _BODIES.items():
    # Of several, as in a file with two encoders, nothing says which to take.
    if len(_prefixes(source, tail)) == 1:
      return kind
  return None


def _prefixes(source: ArraySource, tail: str) -> list[str]:
  """Returns what stands before `tail` in the names that end so."""
  return [
    name.removesuffix(tail)
    for name in source.arrays
    if name == tail or name.endswith(f".{tail}")
  ]


def _first_there(source: ArraySource, names: Iterable[str]) -> str:
  """Returns the first name that there is; if there is none, the first."""
  names = list(names)
  return next((name for name in names if name in source.arrays), names[0])


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
  (prefix,) = _prefixes(source, _BODIES["bert"])
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
  head, dense, head_norm = _head_of(source, prefix)
  table = _first_there(
    source, (f"{embeddings}.word_embeddings.weight", f"{head}.decoder.weight")
  )
  logits_bias = _first_there(source, (f"{head}.bias", f"{head}.decoder.bias"))
  return [
    Rule(r"token_embedder\.embedding", table, ROWS),
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
    Rule(r"decoder\.logits_bias", f"{logits_bias}?", ROWS),
    _OURS,
  ]


def _head_of(source: ArraySource, body: str) -> tuple[str, str, str]:
  """Returns the name of a head, and in it of its dense layer and its norm.

  Args:
    source: the arrays.
    body: what the names of the encoder begin with.
  """
  for head, dense, norm in _HEADS:
    found = _prefixes(source, f"{head}.{dense}.weight")
    # Of several, that which stands beside this encoder.
    beside = [prefix for prefix in found if body.startswith(prefix)]
    if beside or len(found) == 1:
      return f"{max(beside or found, key=len)}{head}", dense, norm
  return _HEADS[0]


def _t5_rules(source: ArraySource, config: Mapping[str, Any]) -> Assignment:
  """Returns the rules of T5, mT5 and FLAN-T5, whose stacks are as ours."""
  (prefix,) = _prefixes(source, _BODIES["t5"])
  layer = rf"{prefix}\g<side>.block.\g<layer>.layer"
  either = r"(?P<side>encoder|decoder)\.layers_(?P<layer>\d+)"
  tables = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]
  if tied := config.get("tie_word_embeddings") is not False:
    tables.append("lm_head")
  table = _first_there(source, (f"{prefix}{name}.weight" for name in tables))
  relative = "layer.0.SelfAttention.relative_attention_bias.weight"
  letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
  rules = [
    Rule(r"token_embedder\.embedding", table, ROWS),
    Rule(
      r"encoder\.relpos_bias\.rel_embedding",
      f"{prefix}encoder.block.0.{relative}",
      "transpose",
    ),
    Rule(
      r"decoder\.relpos_bias\.rel_embedding",
      f"{prefix}decoder.block.0.{relative}",
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
    _logits_of_t5(source, config, prefix, table, tied),
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
    there = rf"{prefix}{side}.block.\g<layer>.layer.{number}"
    rules += [
      Rule(
        rf"{block}\.mlp\.(?P<part>wi|wi_0|wi_1|wo)\.kernel",
        rf"{there}.DenseReluDense.\g<part>.weight",
        "transpose",
      ),
      Rule(rf"{block}\.pre_mlp_layer_norm\.scale", f"{there}.layer_norm.weight"),
      Rule(rf"{side}\.{side}_norm\.scale", f"{prefix}{side}.final_layer_norm.weight"),
    ]
  return [*rules, _OURS]


def _logits_of_t5(
  source: ArraySource, config: Mapping[str, Any], prefix: str, table: str, tied: bool
) -> Rule:
  """Returns the rule of the logits, for which T5 1.0 has no weights of its own.

  It multiplies by the table of tokens and divides by the square root of the width.
  """
  name = _first_there(source, (f"{prefix}lm_head.weight", table))
  name = name if name in source.arrays else table
  how = f"transpose, {COLUMNS}"
  if config.get("scale_decoder_outputs", tied and config.get("model_type") == "t5"):
    scale = int(config["d_model"]) ** -0.5
    how = f"transpose, scale:{scale!r}, {COLUMNS}"
  return Rule(r"decoder\.logits_dense\.kernel", name, how)


RULES: dict[Kind, Callable[[ArraySource, Mapping[str, Any]], Assignment]] = {
  "bert": _bert_rules,
  "t5": _t5_rules,
}
