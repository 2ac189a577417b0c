"""An encoder that was taken from a model of Hugging Face is written as it was there."""

from __future__ import annotations

import json

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.tests.support.training.warm_starts import started
from commentree.tests.support.training.warm_starts import (
  written_by_hugging_face as written,
)
from commentree.training.warm_starts import (
  hugging_face_writing,
  safetensors_writing,
  writing,
)
from commentree.training.warm_starts.formats.array_source import whole

VOCAB = 30
TOKENS = [4, 17, 8, 8, 29, 3]


def written_again(ours):
  """The arrays by which a started model's encoder is written."""
  source = safetensors_writing.parameters_of(
    writing.TreeArrays({"target": ours.params})
  )
  arrays = hugging_face_writing.EncoderArrays(source, ours.model.config)
  return arrays, {
    name: arrays.read(name, whole(spec.shape)) for name, spec in arrays.arrays.items()
  }


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("kind", ["roberta", "bert", "t5", "t5_1_0"])
def test_every_array_is_the_one_that_a_warm_start_read(tmp_path, kind, scan_layers):
  config = {
    "roberta": written.ROBERTA,
    "bert": written.BERT,
    "t5": written.T5,
    "t5_1_0": written.T5_1_0,
  }[kind]
  make = written.t5_arrays if kind.startswith("t5") else written.bert_arrays
  read = make(config)
  folder = written.write(tmp_path / "hub", read, config)
  ours = started.start(folder, vocab_size=VOCAB, scan_layers=scan_layers)
  arrays, found = written_again(ours)
  assert all("language_embedding" in name for name in arrays.left_out)
  encoder = {
    name: array
    for name, array in read.items()
    if name.startswith(("encoder.", "embeddings.", "shared."))
  }
  assert found.keys() == encoder.keys() - {"encoder.embed_tokens.weight"}
  for name, array in found.items():
    theirs = encoder[name]
    if name == "embeddings.position_embeddings.weight":
      theirs = theirs[ours.model.config.position_offset :]
    if name in ("embeddings.word_embeddings.weight", "shared.weight"):
      theirs = theirs[:VOCAB]
    np.testing.assert_array_equal(array, theirs, err_msg=name)
    assert array.dtype == np.float32


def test_what_is_written_starts_a_model_with_the_same_states(tmp_path):
  arrays = written.bert_arrays(written.ROBERTA, "roberta.", head="roberta")
  first = started.start(
    written.write(tmp_path / "hub", arrays, written.ROBERTA), vocab_size=VOCAB
  )
  source, _ = written_again(first)
  folder = tmp_path / "ours"
  folder.mkdir()
  config = hugging_face_writing.config_json(first.model.config, VOCAB, 1, 2)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors_writing.write(source, safetensors_writing.epath.Path(folder))
  again = started.start(folder, vocab_size=VOCAB)
  assert again.model.config.position_offset == 0
  np.testing.assert_array_equal(
    started.encoder_states(again, TOKENS), started.encoder_states(first, TOKENS)
  )


def test_a_part_of_an_array_is_that_part():
  config = ModelConfig(
    family="roberta", vocab_size=VOCAB, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24
  )
  values = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
  source = safetensors_writing.parameters_of(
    writing.TreeArrays(
      {"target": {"encoder": {"layers_0": {"mlp": {"wi": {"kernel": values}}}}}}
    )
  )
  arrays = hugging_face_writing.EncoderArrays(source, config)
  part = (slice(3, 9), slice(0, 16))
  name = "encoder.layer.0.intermediate.dense.weight"
  np.testing.assert_array_equal(arrays.read(name, part), values.T[3:9])


def test_a_type_that_a_bert_wants_and_the_encoder_lacks_adds_nothing():
  config = ModelConfig(
    family="roberta", vocab_size=VOCAB, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24,
    type_vocab_size=0,
    mlp_activations=("gelu",),
  )  # fmt: skip
  source = safetensors_writing.parameters_of(
    writing.TreeArrays(
      {"target": {"token_embedder": {"embedding": np.ones((VOCAB, 16))}}}
    )
  )
  arrays = hugging_face_writing.EncoderArrays(source, config)
  name = "embeddings.token_type_embeddings.weight"
  assert (
    hugging_face_writing.config_json(config, VOCAB, 0, None)["type_vocab_size"] == 1
  )
  np.testing.assert_array_equal(arrays.read(name, whole((1, 16))), np.zeros((1, 16)))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"family": "roberta", "mlp_activations": ("gelu", "linear")}, "one activation"),
    ({"family": "roberta", "mlp_activations": ("gelu",), "head_dim": 4}, "the width"),
    ({"family": "t5", "mlp_activations": ("gelu_exact", "linear")}, "a T5 has the"),
  ],
)
def test_what_hugging_face_has_no_setting_for_is_refused(settings, message):
  config = ModelConfig(
    **{"vocab_size": VOCAB, "emb_dim": 16, "num_heads": 2, "head_dim": 8, **settings}
  )
  with pytest.raises(UserError, match=message):
    hugging_face_writing.config_json(config, VOCAB, 0, None)
