"""The parameters of RoBERTa's family: names, shapes and logical axes."""

from __future__ import annotations

import pytest

from commentree.tests.support.models.parameter_shapes import parameters
from commentree.training.config import DEFAULT_AXIS_RULES

# Width, heads, layers, inner width, positions, types; vocabularies as published.
MODELS = {
  "roberta_base": ((768, 12, 12, 3072, 514, 1), 50265),
  "minilm": ((384, 12, 6, 1536, 512, 2), 30522),
}
# Of the published encoders: what their embeddings and layers hold.
PUBLISHED = {"roberta_base": 124_055_040, "minilm": 22_565_376}


def expected(size):
  d, _, layers, ff, positions, types = size
  table = {
    "token_embedder.position_embedding": ((positions, d), ("positions", "embed")),
    "token_embedder.type_embedding": ((types, d), ("types", "embed")),
    "decoder.logits_transform.kernel": ((d, d), ("embed", "mlp")),
    "decoder.logits_transform.bias": ((d,), ("mlp",)),
  }

  def norm(name):
    table[f"{name}.scale"] = table[f"{name}.bias"] = ((d,), ("embed",))

  norm("token_embedder.norm")
  norm("decoder.logits_norm")
  for side, attentions, norms in (
    ("encoder", ("attention",), ("attention", "mlp")),
    (
      "decoder",
      ("self_attention", "encoder_decoder_attention"),
      ("cross_attention", "mlp"),
    ),
  ):
    for i in range(layers):
      layer = f"{side}.layers_{i}"
      for name in attentions:
        for part in ("query", "key", "value"):
          table[f"{layer}.{name}.{part}.kernel"] = ((d, d), ("embed", "joined_kv"))
          table[f"{layer}.{name}.{part}.bias"] = ((d,), ("joined_kv",))
        table[f"{layer}.{name}.out.kernel"] = ((d, d), ("joined_kv", "embed"))
        table[f"{layer}.{name}.out.bias"] = ((d,), ("embed",))
      table[f"{layer}.mlp.wi.kernel"] = ((d, ff), ("embed", "mlp"))
      table[f"{layer}.mlp.wi.bias"] = ((ff,), ("mlp",))
      table[f"{layer}.mlp.wo.kernel"] = ((ff, d), ("mlp", "embed"))
      table[f"{layer}.mlp.wo.bias"] = ((d,), ("embed",))
      for name in norms:
        norm(f"{layer}.post_{name}_layer_norm")
  return table


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_published_models_and_the_ancestors(name):
  size, vocab = MODELS[name]
  d, heads, layers, ff, positions, types = size
  found = parameters(
    family="roberta",
    emb_dim=d,
    num_heads=heads,
    head_dim=d // heads,
    mlp_dim=ff,
    mlp_activations=("gelu_exact",),
    num_encoder_layers=layers,
    num_decoder_layers=layers,
    num_positions=positions,
    type_vocab_size=types,
    ancestor_positions="none",
  )
  shape, axes = found.pop("token_embedder.embedding")
  assert (shape[1], axes) == (d, ("vocab", "embed"))
  assert found.pop("decoder.logits_bias") == (shape[:1], ("vocab",))
  assert found.pop("ancestors.null_vector") == ((d,), ("embed",))
  assert found == expected(size)
  encoder = sum(
    (s[0] if len(s) == 1 else s[0] * s[1])
    for key, (s, _) in found.items()
    if key.startswith(("encoder", "token_embedder"))
  )
  assert encoder + vocab * d == PUBLISHED[name]


def test_every_axis_is_one_that_a_rule_knows():
  known = {axis for axis, _ in DEFAULT_AXIS_RULES}
  table = parameters(family="roberta", type_vocab_size=2, scan_layers=True)
  assert {axis for _, axes in table.values() for axis in axes} <= known
