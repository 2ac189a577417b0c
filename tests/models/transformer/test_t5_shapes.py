"""The parameters are T5 1.1's: names, shapes and logical axes, from tiny to xxl."""

from __future__ import annotations

import pytest

from commentree.tests.support.models.parameter_shapes import VOCAB_SIZE, parameters

# Width, heads, head width, MLP width, layers of each stack (Raffel et al. 2020 and
# the T5 1.1 release). Of the larger, which take long to trace, four of the 24 layers.
SIZES = {
  "small": (512, 6, 64, 1024, 8),
  "base": (768, 12, 64, 2048, 12),
  "large": (1024, 16, 64, 2816, 4),
  "xl": (2048, 32, 64, 5120, 4),
  "xxl": (4096, 64, 64, 10240, 4),
}


def expected(size):
  """Writes out name -> (shape, logical axes) of a T5 1.1 checkpoint."""
  d, heads, kv, ff, layers = SIZES[size]
  joined = heads * kv
  attention = {
    "query": ((d, joined), ("embed", "joined_kv")),
    "key": ((d, joined), ("embed", "joined_kv")),
    "value": ((d, joined), ("embed", "joined_kv")),
    "out": ((joined, d), ("joined_kv", "embed")),
  }
  mlp = {
    "wi_0": ((d, ff), ("embed", "mlp")),
    "wi_1": ((d, ff), ("embed", "mlp")),
    "wo": ((ff, d), ("mlp", "embed")),
  }
  norm = ((d,), ("embed",))
  relpos = ((heads, 32), ("heads", "relpos_buckets"))
  table = {
    "token_embedder.embedding": ((VOCAB_SIZE, d), ("vocab", "embed")),
    "encoder.relpos_bias.rel_embedding": relpos,
    "decoder.relpos_bias.rel_embedding": relpos,
    "encoder.encoder_norm.scale": norm,
    "decoder.decoder_norm.scale": norm,
    "decoder.logits_dense.kernel": ((d, VOCAB_SIZE), ("embed", "vocab")),
  }
  blocks = {
    "encoder": (["attention"], ["attention", "mlp"]),
    "decoder": (
      ["self_attention", "encoder_decoder_attention"],
      ["self_attention", "cross_attention", "mlp"],
    ),
  }
  for side, (attentions, norms) in blocks.items():
    for i in range(layers):
      layer = f"{side}.layers_{i}"
      for name in attentions:
        for part, entry in attention.items():
          table[f"{layer}.{name}.{part}.kernel"] = entry
      for part, entry in mlp.items():
        table[f"{layer}.mlp.{part}.kernel"] = entry
      for name in norms:
        table[f"{layer}.pre_{name}_layer_norm.scale"] = norm
  return table


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_t5_1_1_and_the_ancestors(size):
  d, heads, kv, ff, layers = SIZES[size]
  table = parameters(
    emb_dim=d,
    num_heads=heads,
    head_dim=kv,
    mlp_dim=ff,
    num_encoder_layers=layers,
    num_decoder_layers=layers,
  )
  ours = {
    "ancestors.null_vector": ((d,), ("embed",)),
    "ancestors.distance_bias": ((heads, 33), ("heads", "ancestor_distance")),
  }
  assert table == {**expected(size), **ours}


def test_other_settings_add_these_parameters_and_no_others():
  def added(**settings):
    return {k: v for k, v in parameters(**settings).items() if k not in plain}

  plain = parameters(ancestor_positions="none")
  assert added(ancestor_positions="sinusoidal") == {}
  assert added(ancestor_positions="distance") == {
    "ancestors.distance_embedding": ((33, 128), ("ancestor_distance", "embed"))
  }
  assert added(ancestor_positions="depth") == {
    "ancestors.depth_embedding": ((33, 128), ("ancestor_distance", "embed"))
  }
  assert added(
    ancestor_positions="none", pooling="attention", vectors_per_comment=3
  ) == {"pooling.queries": ((3, 128), ("vectors", "embed"))}


def test_logits_by_the_table_of_tokens_have_no_weights_of_their_own():
  tied, plain = parameters(logits_via_embedding=True), parameters()
  assert plain.keys() - tied.keys() == {"decoder.logits_dense.kernel"}
  assert tied.items() <= plain.items()


def test_scanned_layers_share_one_array_with_a_leading_axis_layers():
  scanned = parameters(scan_layers=True)
  unrolled = parameters()
  for name, (shape, axes) in unrolled.items():
    if ".layers_1." in name:
      continue
    if ".layers_0." in name:
      name = name.replace("layers_0", "layers")
      shape, axes = (2, *shape), ("layers", *axes)
    assert scanned.pop(name) == (shape, axes)
  assert not scanned
