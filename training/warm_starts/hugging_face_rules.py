"""Which array of Hugging Face's models each parameter comes from.

Models are known by the names of their arrays. These may all begin with something: that
of the body under a head (`roberta.`), what a wrapper puts in front (`module.`,
`_orig_mod.`), or both. Of weights that a model ties, files have one name or another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from commentree.training.warm_starts.formats.array_source import ArraySource
from commentree.training.warm_starts.rules import COLUMNS, ROWS, Assignment, Rule

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
_NULL_VECTOR = r"ancestors\.null_vector"
# Of ours, regardless of the family; a file has no counterpart. What is added to the
# inputs of either stack is 0 at first, so that they are what they were.
_OURS = (
  Rule(r"language_embedding|ancestors\.depth_embedding", None, "zeros"),
  Rule(r"(?!token_embedder\.|encoder\.|decoder\.).*", None),
)


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
  """Returns the first name that there is; without one, the first."""
  names = list(names)
  return next((name for name in names if name in source.arrays), names[0])


def has_cross_attention(config: Mapping[str, Any]) -> bool:
  """Whether a model of BERT's kind was a decoder that attends to an encoder."""
  return bool(config.get("is_decoder") and config.get("add_cross_attention"))


def is_tied(config: Mapping[str, Any]) -> bool:
  """Whether a T5 gives logits by its table of tokens."""
  return config.get("tie_word_embeddings") is not False


def scales_logits(config: Mapping[str, Any]) -> bool:
  """Whether a T5 divides what logits are made of by the square root of its width."""
  tied_t5 = is_tied(config) and config.get("model_type") == "t5"
  return bool(config.get("scale_decoder_outputs", tied_t5))


def _dense(parameter: str, source: str) -> list[Rule]:
  """Returns the rules of a linear map, which PyTorch has the other way round."""
  optional = "?" if source.endswith("?") else ""
  source = source.removesuffix("?")
  return [
    Rule(rf"{parameter}\.kernel", f"{source}.weight{optional}", "transpose"),
    Rule(rf"{parameter}\.bias", f"{source}.bias{optional}"),
  ]


def _bert_rules(
  source: ArraySource, config: Mapping[str, Any], layers: int
) -> Assignment:
  """Returns the rules of RoBERTa and BERT: one encoder for both stacks.

  Without cross-attention in the file, ours adds nothing at first, and the norm behind
  it is that of self-attention: the decoder computes what the encoder does.
  """
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
  norm_across = rf"{both}\.post_cross_attention_layer_norm"
  if has_cross_attention(config):
    across = [
      *_dense(
        rf"{cross}\.(?P<part>query|key|value)", rf"{layer}.crossattention.self.\g<part>"
      ),
      *_dense(rf"{cross}\.out", f"{layer}.crossattention.output.dense"),
      *norm(norm_across, f"{layer}.crossattention.output.LayerNorm"),
    ]
  else:
    across = [
      Rule(rf"{cross}\.out\..*", None, "zeros"),
      Rule(rf"{cross}\..*", None),
      *norm(norm_across, f"{layer}.attention.output.LayerNorm"),
    ]
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
    *across,
    *_dense(rf"{both}\.mlp\.wi", f"{layer}.intermediate.dense"),
    *_dense(rf"{both}\.mlp\.wo", f"{layer}.output.dense"),
    *norm(rf"{both}\.post_mlp_layer_norm", f"{layer}.output.LayerNorm"),
    *_dense(r"decoder\.logits_transform", f"{head}.{dense}?"),
    *norm(r"decoder\.logits_norm", f"{head}.{head_norm}?"),
    Rule(r"decoder\.logits_bias", f"{logits_bias}?", ROWS),
    # Of the size of a state, and none that a comment has: those have no such part
    # before the norm scales them.
    Rule(_NULL_VECTOR, f"{prefix}encoder.layer.{layers - 1}.output.LayerNorm.{scale}"),
    *_OURS,
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


def _t5_rules(
  source: ArraySource, config: Mapping[str, Any], layers: int
) -> Assignment:
  """Returns the rules of T5, mT5 and FLAN-T5, whose stacks are as ours.

  An encoder alone starts both stacks. Cross-attention then adds nothing at first, and
  the decoder computes what the encoder does.
  """
  del layers
  (prefix,) = _prefixes(source, _BODIES["t5"])
  block = f"{prefix}decoder.block."
  encoder_alone = not any(name.startswith(block) for name in source.arrays)
  tables = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]
  if tied := is_tied(config):
    tables.append("lm_head")
  table = _first_there(source, (f"{prefix}{name}.weight" for name in tables))
  rules = [
    Rule(r"token_embedder\.embedding", table, ROWS),
    _logits_of_t5(
      source, config, prefix, None if encoder_alone and not tied else table
    ),
    Rule(_NULL_VECTOR, f"{prefix}encoder.final_layer_norm.weight"),
    *_stack_of_t5("encoder", f"{prefix}encoder", 1),
  ]
  if encoder_alone:
    layer = r"decoder\.layers_\d+"
    rules += [
      *_stack_of_t5("decoder", f"{prefix}encoder", 1, ("", "to_causal_buckets")),
      Rule(rf"{layer}\.encoder_decoder_attention\.out\.kernel", None, "zeros"),
      Rule(rf"{layer}\..*", None),
    ]
  else:
    across = r"decoder\.layers_(?P<layer>\d+)"
    there = rf"{prefix}decoder.block.\g<layer>.layer.1"
    rules += [
      # Its decoder is causal.
      *_stack_of_t5("decoder", f"{prefix}decoder", 2, ("from_causal_buckets", "")),
      *_attention_of_t5(
        rf"{across}\.encoder_decoder_attention", f"{there}.EncDecAttention"
      ),
      Rule(
        rf"{across}\.pre_cross_attention_layer_norm\.scale",
        f"{there}.layer_norm.weight",
      ),
    ]
  return [*rules, *_OURS]


def _stack_of_t5(
  side: str, there: str, mlp: int, buckets: tuple[str, str] = ("", "")
) -> list[Rule]:
  """Returns the rules of a stack, without cross-attention.

  Args:
    side: of ours.
    there: name of the stack in the file.
    mlp: number of the MLP in its blocks.
    buckets: what is done to positions if ours sees both ways, and if it is causal.
  """
  layer = rf"{side}\.layers_(?P<layer>\d+)"
  block = rf"{there}.block.\g<layer>.layer"
  relative = "layer.0.SelfAttention.relative_attention_bias.weight"
  return [
    *(
      Rule(
        rf"{side}\.relpos_bias\.{name}",
        f"{there}.block.0.{relative}",
        f"transpose, {change}",
      )
      for name, change in zip(("rel_embedding", "causal_rel_embedding"), buckets)
    ),
    *_attention_of_t5(rf"{layer}\.(?:self_)?attention", f"{block}.0.SelfAttention"),
    Rule(
      rf"{layer}\.pre_(?:self_)?attention_layer_norm\.scale",
      f"{block}.0.layer_norm.weight",
    ),
    Rule(
      rf"{layer}\.mlp\.(?P<part>wi|wi_0|wi_1|wo)\.kernel",
      rf"{block}.{mlp}.DenseReluDense.\g<part>.weight",
      "transpose",
    ),
    Rule(rf"{layer}\.pre_mlp_layer_norm\.scale", f"{block}.{mlp}.layer_norm.weight"),
    Rule(rf"{side}\.{side}_norm\.scale", f"{there}.final_layer_norm.weight"),
  ]


def _attention_of_t5(parameter: str, source: str) -> list[Rule]:
  """Returns the rules of an attention, given its names."""
  letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
  return [
    Rule(rf"{parameter}\.{ours}\.kernel", f"{source}.{theirs}.weight", "transpose")
    for ours, theirs in letters.items()
  ]


def _logits_of_t5(
  source: ArraySource, config: Mapping[str, Any], prefix: str, table: str | None
) -> Rule:
  """Returns the rule of the logits, for which T5 1.0 has no weights of its own.

  It multiplies by the table of tokens and divides by the square root of the width.

  Args:
    source: the arrays.
    config: the model's.
    prefix: what the names of all arrays begin with.
    table: name of the table of tokens; None if logits are not by it.
  """
  own = f"{prefix}lm_head.weight"
  name = own if own in source.arrays else table
  how = f"transpose, {COLUMNS}"
  if scales_logits(config):
    scale = int(config["d_model"]) ** -0.5
    how = f"transpose, scale:{scale!r}, {COLUMNS}"
  return Rule(r"decoder\.logits_dense\.kernel", name, how)


RULES: dict[Kind, Callable[[ArraySource, Mapping[str, Any], int], Assignment]] = {
  "bert": _bert_rules,
  "t5": _t5_rules,
}
"""By the kind; called with the arrays, `config.json` and our encoder's layers."""
