"""Models of Hugging Face compute here what they compute there.

What they compute there is, in this file, what NumPy makes of the papers;
`tests/training/parity` asks `transformers` itself.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.launch.commands import convert
from commentree.launch.main import main
from commentree.tests.support.training.warm_starts import started
from commentree.tests.support.training.warm_starts import (
  written_by_hugging_face as written,
)

TOKENS = [4, 17, 8, 8, 29, 3, 11, 5, 23]
VOCAB = 30


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
  # Of states as large as these, a part in ten thousand.
  assert np.abs(theirs).max() > 0.5


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
  arrays = written.bert_arrays(written.ROBERTA, "roberta.", head="roberta")
  folder = tmp_path_factory.mktemp("hub") / "roberta"
  return written.write(folder, arrays, written.ROBERTA), arrays


@pytest.fixture(scope="module")
def of_roberta(roberta):
  return started.start(roberta[0], vocab_size=VOCAB)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  arrays = written.t5_arrays(written.T5)
  folder = tmp_path_factory.mktemp("hub") / "t5"
  return written.write(folder, arrays, written.T5), arrays


def test_the_encoder_of_roberta_has_the_reference_s_hidden_states(roberta, of_roberta):
  theirs = written.bert_hidden(roberta[1], written.ROBERTA, TOKENS, "roberta.")
  close(started.encoder_states(of_roberta, TOKENS), theirs)


def test_the_encoder_of_bert_has_the_reference_s_hidden_states(tmp_path):
  arrays = written.bert_arrays(written.BERT)
  folder = written.write_in_parts(tmp_path / "bert", arrays, written.BERT)
  ours = started.start(folder, vocab_size=VOCAB, scan_layers=True)
  theirs = written.bert_hidden(arrays, written.BERT, TOKENS)
  close(started.encoder_states(ours, TOKENS), theirs)


def test_a_decoder_with_cross_attention_has_the_reference_s_logits(tmp_path):
  config = {**written.ROBERTA, "is_decoder": True, "add_cross_attention": True}
  arrays = written.bert_arrays(config, "roberta.", head="roberta")
  ours = started.start(written.write(tmp_path, arrays, config), vocab_size=VOCAB)
  assert ours.model.config.norm_before_ancestors
  assert ours.plan.fresh() == []
  assert ours.plan.unused == ()
  states = np.random.default_rng(7).normal(size=(5, 16))
  theirs = written.bert_logits(arrays, config, TOKENS, "roberta.", "lm_head", states)
  close(started.decoder_logits(ours, TOKENS, states), theirs)


def test_both_stacks_of_t5_have_the_reference_s_hidden_states(t5):
  folder, arrays = t5
  # As the decoder here sees both ways, its positions are counted so in the reference.
  own = (
    r"decoder\.relpos_bias\.rel_embedding",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "transpose",
  )
  ours = started.start(folder, [own], vocab_size=VOCAB)
  encoded = written.t5_hidden(arrays, written.T5, "encoder", TOKENS)
  close(started.encoder_states(ours, TOKENS), encoded)
  hidden = written.t5_hidden(arrays, written.T5, "decoder", TOKENS[::-1], encoded)
  logits = started.decoder_logits(ours, TOKENS[::-1], encoded)
  np.testing.assert_allclose(
    logits, hidden @ arrays["lm_head.weight"].T, atol=1e-4, rtol=0
  )


def test_a_causal_t5_s_nearest_positions_are_kept_and_far_ones_are_their_means(t5):
  folder, arrays = t5
  table = arrays["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
  ours = started.start(folder, vocab_size=VOCAB).named
  for position in range(1, 129):
    there = [
      written.bucket(-d, causal=True)
      for d in range(129)
      if written.bucket(-d, causal=False) == written.bucket(-position, causal=False)
    ]
    for key in (-position, position):
      column = ours["decoder.relpos_bias.rel_embedding"][
        :, written.bucket(key, causal=False)
      ]
      np.testing.assert_allclose(column, table[there].mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    ours["decoder.relpos_bias.rel_embedding"][:, :8], table[:8].T, rtol=1e-6
  )
  in_order = started.start(folder, vocab_size=VOCAB, causal_position_buckets=True).named
  np.testing.assert_array_equal(
    in_order["decoder.relpos_bias.causal_rel_embedding"], table.T
  )


def test_t5_1_0_gives_logits_by_its_table_over_the_root_of_its_width(tmp_path):
  arrays = written.t5_arrays(written.T5_1_0)
  folder = written.write(tmp_path / "t5", arrays, written.T5_1_0)
  apart = started.start(folder, vocab_size=VOCAB, logits_via_embedding=False)
  assert apart.model.config.mlp_activations == ("relu",)
  np.testing.assert_allclose(
    apart.named["decoder.logits_dense.kernel"], arrays["shared.weight"].T / 4, rtol=1e-6
  )
  tied = started.start(folder, vocab_size=VOCAB)
  assert tied.model.config.logits_via_embedding
  assert "decoder.logits_dense.kernel" not in tied.named
  assert tied.plan.unused == ()
  states = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
  logits = [started.decoder_logits(one, [5, 6, 7], states) for one in (tied, apart)]
  np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


def test_logits_by_the_table_are_not_for_a_t5_with_weights_of_its_own(tmp_path):
  folder = written.write(tmp_path, written.t5_arrays(written.T5), written.T5)
  with pytest.raises(UserError, match="logits_via_embedding = True, there False"):
    started.start(folder, vocab_size=VOCAB, logits_via_embedding=True)


def test_one_encoder_of_roberta_starts_both_stacks_and_its_head_the_logits(
  roberta, of_roberta
):
  _, arrays = roberta
  named = of_roberta.named
  layer = "layers_1.{}attention.value.kernel"
  there = arrays["roberta.encoder.layer.1.attention.self.value.weight"].T
  np.testing.assert_array_equal(named["encoder." + layer.format("")], there)
  np.testing.assert_array_equal(named["decoder." + layer.format("self_")], there)
  for ours, theirs in (
    ("decoder.logits_transform.kernel", arrays["lm_head.dense.weight"].T),
    ("decoder.logits_norm.scale", arrays["lm_head.layer_norm.weight"]),
    ("decoder.logits_bias", arrays["lm_head.bias"]),
  ):
    np.testing.assert_array_equal(named[ours], theirs)
  fresh = of_roberta.plan.fresh()
  assert {name.split(".")[2] for name in fresh} == {"encoder_decoder_attention"}
  assert of_roberta.plan.unused == ()


def test_what_a_file_lacks_is_fresh_and_what_is_not_wanted_is_told(tmp_path):
  arrays = written.bert_arrays(written.BERT)
  arrays["pooler.dense.weight"] = np.zeros((16, 16), np.float32)
  arrays["embeddings.position_ids"] = np.arange(20)[None]
  folder = written.write(tmp_path / "bert", arrays, written.BERT)
  plan = started.start(
    folder, vocab_size=VOCAB, num_decoder_layers=1, num_positions=12
  ).plan
  assert set(plan.unused) == {"pooler.dense.weight", "embeddings.position_ids"}
  fresh = {line.parameter for line in plan.of("fresh")}
  assert "decoder.logits_bias" in fresh
  assert "decoder.logits_transform.kernel" in fresh


def test_a_larger_vocabulary_grows_by_the_mean_and_is_told(roberta):
  folder, arrays = roberta
  ours = started.start(folder, vocab_size=VOCAB + 5)
  assert [line.parameter for line in ours.plan.of("grown")] == [
    "decoder.logits_bias",
    "token_embedder.embedding",
  ]
  table = arrays["roberta.embeddings.word_embeddings.weight"]
  grown = ours.named["token_embedder.embedding"]
  np.testing.assert_array_equal(grown[:VOCAB], table)
  np.testing.assert_allclose(
    grown[VOCAB:], np.tile(table.mean(0), (5, 1)), rtol=1e-5, atol=1e-6
  )
  report = "\n".join(ours.plan.report())
  assert "grown from 30, what is new is their mean" in report


def test_norms_with_tensorflow_s_names_and_bfloat16_are_read(tmp_path):
  def renamed(name):
    if "LayerNorm" in name:
      name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
    return name

  plain = written.in_bfloat16(written.bert_arrays(written.BERT, "bert.", head="bert"))
  arrays = {renamed(name): array for name, array in plain.items()}
  folder = written.write(tmp_path / "bert", arrays, written.BERT)
  named = started.start(folder, vocab_size=VOCAB).named
  for ours, theirs in (
    ("encoder.layers_0.post_mlp_layer_norm.bias", "encoder.layer.0.output.LayerNorm"),
    ("token_embedder.norm.bias", "embeddings.LayerNorm"),
  ):
    there = arrays[f"bert.{theirs}.beta"].astype(np.float32)
    np.testing.assert_array_equal(named[ours], there)
  scale = arrays["cls.predictions.transform.LayerNorm.gamma"].astype(np.float32)
  np.testing.assert_array_equal(named["decoder.logits_norm.scale"], scale)


@pytest.mark.parametrize(
  "changes",
  [
    {"num_heads": 2, "head_dim": 8},
    {"layer_norm_epsilon": 1e-12},
    {"position_offset": 0},
    {"mlp_activations": ("gelu",)},
    {"family": "t5"},
  ],
)
def test_settings_that_shapes_do_not_show_are_compared(roberta, changes):
  with pytest.raises(UserError, match="other settings") as raised:
    started.start(roberta[0], vocab_size=VOCAB, **changes)
  message = str(raised.value)
  assert "\n" not in message
  for name in changes:
    assert f"ModelConfig.{name} = " in message


def test_all_shapes_that_differ_are_told_at_once(roberta):
  with pytest.raises(UserError, match="18 parameters do not fit") as raised:
    started.start(
      roberta[0],
      vocab_size=VOCAB,
      num_encoder_layers=3,
      num_positions=21,
      type_vocab_size=1,
    )
  for name in ("position_embedding", "encoder.layers_2."):
    assert name in str(raised.value)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (
      {**written.ROBERTA, "position_embedding_type": "relative_key"},
      "position_embeddi",
    ),
    ({**written.ROBERTA, "hidden_act": "mish"}, "activation 'mish'"),
    ({**written.ROBERTA, "num_attention_heads": 3}, "does not divide over 3 heads"),
    ({**written.ROBERTA, "num_attention_heads": 0}, "cannot be read"),
    ({**written.ROBERTA, "hidden_size": -16}, "ModelConfig.emb_dim"),
    ({**written.ROBERTA, "num_hidden_layers": "many"}, "cannot be read"),
    ({**written.T5, "relative_attention_num_buckets": 64}, "only 32"),
    ({**written.T5, "model_type": "umt5"}, "model_type = 'umt5'"),
    ({"model_type": "roberta"}, "has no num_hidden_layers"),
  ],
)
def test_a_config_that_cannot_be_had_is_one_line(tmp_path, config, message):
  folder = written.write(tmp_path / "odd", {}, config)
  with pytest.raises(UserError, match=message) as raised:
    started.settings_of(folder)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [(None, "how many heads"), ("[]", "no JSON object"), ("[" * 10**6, "no JSON")],
)
def test_a_model_without_a_config_that_can_be_read_is_one_line(tmp_path, text, message):
  folder = written.write(tmp_path / "odd", written.bert_arrays(written.ROBERTA))
  if text is not None:
    (folder / "config.json").write_text(text)
  source = started.sources.open_source(folder)
  with pytest.raises(UserError, match=message) as raised:
    started.hugging_face.rules_for(source)
  assert "\n" not in str(raised.value)


def test_settings_are_printed_as_gin_takes_them(roberta, capsys, tmp_path):
  folder, _ = roberta
  assert convert.main([str(folder), "--print_gin"]) == 0
  printed = capsys.readouterr().out
  assert "ModelConfig.position_offset = 2\n" in printed
  from commentree.launch.settings import gin_cli

  file = tmp_path / "mine.gin"
  file.write_text(printed)
  required = ["MODEL_DIR = 'm'", "TRAIN_STEPS = 1", "MIXTURE_OR_TASK_NAME = 't'"]
  run = gin_cli.load(["runs/pretrain.gin", str(file)], required)
  for name, value in started.settings_of(folder).items():
    assert getattr(run.model, name) == value
  assert run.data.preprocessing.subtrees.sequence_ends


def test_a_missing_target_is_one_line(capsys):
  assert main(["convert", "somewhere"]) == 2
  assert "name the folder to make" in capsys.readouterr().err


def test_arrays_named_as_ours_find_their_places_without_a_config(roberta, of_roberta):
  named = of_roberta.named
  folder = roberta[0].parent / "ours"
  written.write(folder, named)
  assert not (folder / "config.json").exists()
  source = started.sources.open_source(folder)
  _, rules = started.hugging_face.rules_for(source)
  specs = started.apply.specs_of(of_roberta.params)
  plan = started.assignments.plan_for(str(folder), specs)[1]
  assert len(plan.of("loaded")) == len(named)
  assert json.loads(json.dumps(plan.to_json()))["unused"] == []
  assert len(rules) == 1
