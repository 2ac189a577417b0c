"""What `commentree convert --to=hugging_face` writes, `transformers` computes alike."""

from __future__ import annotations

import json

import numpy as np
import pytest

from commentree.tests.support.training.warm_starts import started
from commentree.tests.support.training.warm_starts import (
  written_by_hugging_face as written,
)
from commentree.training.checkpointing import storage
from commentree.training.warm_starts import (
  hugging_face_writing,
  safetensors_writing,
  writing,
)

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip(
  "transformers", reason="the extra `parity` is not installed"
)

VOCAB = 30
TOKENS = [4, 17, 8, 8, 29, 3, 11, 5, 23]


@pytest.fixture(autouse=True)
def no_gradients():
  with torch.no_grad():
    yield


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("kind", ["roberta", "bert", "t5", "t5_1_0"])
def test_the_encoder_has_the_run_s_states(tmp_path, kind, scan_layers):
  config = getattr(written, kind.upper())
  make = written.t5_arrays if kind.startswith("t5") else written.bert_arrays
  hub = written.write(tmp_path / "hub", make(config), config)
  ours = started.start(hub, vocab_size=VOCAB, scan_layers=scan_layers)
  source = safetensors_writing.parameters_of(
    writing.TreeArrays({"target": ours.params})
  )
  arrays = hugging_face_writing.EncoderArrays(source, ours.model.config)
  folder = tmp_path / "ours"
  folder.mkdir()
  said = hugging_face_writing.config_json(ours.model.config, VOCAB, 0, 1)
  (folder / "config.json").write_text(json.dumps(said))
  safetensors_writing.write(arrays, storage.as_path(folder), {"format": "pt"})
  load = (
    transformers.T5EncoderModel if kind.startswith("t5") else transformers.AutoModel
  )
  model = load.from_pretrained(folder).eval()
  theirs = model(torch.tensor([TOKENS])).last_hidden_state[0].numpy()
  assert np.abs(theirs).max() > 0.5
  np.testing.assert_allclose(
    started.encoder_states(ours, TOKENS), theirs, atol=1e-5, rtol=1e-5
  )
