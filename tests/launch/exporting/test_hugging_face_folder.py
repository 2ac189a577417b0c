"""`commentree convert --to=hugging_face`: a model that other libraries load.

`tests/training/parity/test_hugging_face_folder.py` and
`tests/launch/parity/test_whole_model.py` show by the libraries that it is the same.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tokenizers

from commentree.launch.main import main
from commentree.tests.support.launch import made_runs, wordpiece
from commentree.tests.support.training.warm_starts import started
from commentree.training.warm_starts import safetensors_writing, sources


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return wordpiece.make(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, vocabulary):
  folder = tmp_path_factory.mktemp("run")
  return made_runs.make(folder, **wordpiece.ROBERTA, VOCABULARY=vocabulary)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
  target = tmp_path_factory.mktemp("target") / "encoder"
  assert main(["convert", "--to=hugging_face", f"{run}/checkpoint_1", str(target)]) == 0
  return target


def test_the_folder_holds_what_the_libraries_look_for(folder):
  found = {
    str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
  }
  assert found == {
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
  }
  pooling = json.loads((folder / "1_Pooling/config.json").read_text())
  assert pooling["pooling_mode_mean_tokens"]
  assert not pooling["pooling_mode_cls_token"]
  assert pooling["word_embedding_dimension"] == 16
  config = json.loads((folder / "config.json").read_text())
  assert config["max_position_embeddings"] == 38
  assert config["pad_token_id"] == 0


def test_the_tokenizer_puts_the_ends_of_a_sequence_around_a_text(folder, run):
  read = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  assert read.encode("ab").tokens == ["[CLS]", "a", "##b", "[SEP]"]
  own = tokenizers.Tokenizer.from_file(str(run / "vocabulary/tokenizer.json"))
  assert read.get_vocab() == own.get_vocab()
  config = json.loads((folder / "tokenizer_config.json").read_text())
  assert config["pad_token"] == "[PAD]"
  assert config["model_max_length"] == 24


def test_a_warm_start_from_the_folder_is_the_run_s_encoder(folder, run):
  parameters = safetensors_writing.parameters_of(
    sources.open_source(f"{run}/checkpoint_1")
  )
  size = parameters.arrays["token_embedder.embedding"].shape[0]
  again = started.start(folder, vocab_size=size).named
  for name in ("token_embedder.embedding", "encoder.layers_0.attention.query.kernel"):
    spec = parameters.arrays[name]
    whole = tuple(slice(0, n) for n in spec.shape)
    np.testing.assert_array_equal(again[name], parameters.read(name, whole))


def test_the_card_says_what_is_known_and_what_is_not(run, folder, tmp_path):
  card = (folder / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: transformers\n")
  assert "| pooling | mean, 1 vectors a comment |" in card
  assert "state it before you publish" in card
  assert "Do ancestors help?" not in card
  result = {"loss": 2.5, "accuracy": 0.5, "tokens": 9, "minus_true": 0.25,
            "standard_error": 0.01, "trees": 3}  # fmt: skip
  row = {"kind": "eval", "step": 1, "dataset": "held_out",
         "results": {"true": {"loss": 2.25, "accuracy": 0.5, "tokens": 9},
                     "shuffled": result}}  # fmt: skip
  (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  target = tmp_path / "encoder"
  assert main(["convert", "--to=hugging_face", f"{run}/checkpoint_1", str(target)]) == 0
  card = (target / "README.md").read_text()
  assert "ancestors save 0.250 ± 0.010 nats a token" in card
  assert "| shuffled | 2.500 | +0.250 ± 0.010 |" in card


def test_the_card_of_a_run_that_diverged_is_written(run, tmp_path):
  nothing = {"loss": None, "accuracy": 0.0, "tokens": 9}
  paired = {"minus_true": None, "standard_error": None, "trees": 3}
  row = {"kind": "eval", "step": 1, "dataset": "held_out",
         "results": {"true": nothing, "shuffled": {**nothing, **paired}}}  # fmt: skip
  (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  target = tmp_path / "encoder"
  assert main(["convert", "--to=hugging_face", f"{run}/checkpoint_1", str(target)]) == 0
  assert "| true | nan |" in (target / "README.md").read_text()


def test_a_dry_run_writes_nothing_and_nothing_is_overwritten(run, tmp_path, capsys):
  target = tmp_path / "encoder"
  command = ["convert", "--to=hugging_face", f"{run}/checkpoint_1", str(target)]
  assert main([*command, "--dry_run"]) == 0
  assert f"would write {target}" in capsys.readouterr().out
  assert not target.exists()
  target.mkdir()
  assert main(command) == 2
  assert "is there already" in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
  target = tmp_path_factory.mktemp("target") / "whole"
  command = ["convert", "--to=hugging_face", "--whole_model", f"{run}/checkpoint_1"]
  assert main([*command, str(target)]) == 0
  return target


def test_the_whole_model_is_there_with_a_file_that_computes_it(whole):
  assert {path.name for path in whole.iterdir()} == {
    "README.md",
    "config.json",
    "model.safetensors",
    "modeling_commentree.py",
    "tokenizer.json",
    "tokenizer_config.json",
  }
  config = json.loads((whole / "config.json").read_text())
  source = (whole / "modeling_commentree.py").read_text()
  asked = set(re.findall(r"\bconfig\.(?!json\b)(\w+)", source))
  assert {"family", "vocab_size", "pooling", "ancestor_pointer"} <= asked <= set(config)
  for name in config["auto_map"].values():
    module, kind = name.split(".")
    assert f"class {kind}(" in (whole / f"{module}.py").read_text()
  assert config["mlp_activations"] == ["gelu_exact"]
  assert config["max_ancestors"] == 4
  card = (whole / "README.md").read_text()
  assert "trust_remote_code=True" in card
  assert "| decoder | 1 layers |" in card


def test_a_warm_start_from_the_whole_model_is_the_run_s_model(whole, run):
  parameters = safetensors_writing.parameters_of(
    sources.open_source(f"{run}/checkpoint_1")
  )
  written = sources.open_source(str(whole))
  assert set(written.arrays) == set(parameters.arrays)
  for name, spec in parameters.arrays.items():
    every = tuple(slice(0, n) for n in spec.shape)
    np.testing.assert_array_equal(
      written.read(name, every), parameters.read(name, every)
    )


def test_layers_that_are_scanned_are_written_one_by_one(tmp_path):
  run = made_runs.make(
    tmp_path,
    **{"ModelConfig.scan_layers": True, "ModelConfig.num_decoder_layers": 3},
  )
  target = tmp_path / "whole"
  command = ["convert", "--to=hugging_face", "--whole_model", f"{run}/checkpoint_1"]
  assert main([*command, str(target)]) == 0
  stacked = safetensors_writing.parameters_of(
    sources.open_source(f"{run}/checkpoint_1")
  )
  name = "decoder.layers.encoder_decoder_attention.query.kernel"
  every = tuple(slice(0, n) for n in stacked.arrays[name].shape)
  whole = sources.open_source(str(target))
  for layer, values in enumerate(stacked.read(name, every)):
    found = whole.read(name.replace("layers", f"layers_{layer}"), every[1:])
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"ModelConfig.num_thread_layers": 1}, "ModelConfig.num_thread_layers is 1"),
    ({"ModelConfig.context": "none"}, "ModelConfig.context is 'none'"),
    (
      {"ModelConfig.ancestor_positions": "depth"},
      "ModelConfig.ancestor_positions is 'depth', which modeling_commentree.py does not"
      " compute; it does 'relative_bias' and 'distance' and 'none'",
    ),
    ({"ModelConfig.vectors_to_logits": True}, "ModelConfig.vectors_to_logits is True"),
    (
      {"ModelConfig.nearest_context_tokens": 8},
      "ModelConfig.nearest_context_tokens is 8",
    ),
    ("clm", "is for runs of the objective mlm; this run's is clm"),
  ],
)
def test_what_the_whole_model_cannot_have_is_named(tmp_path, capsys, settings, said):
  given = ("clm", {}) if settings == "clm" else ("mlm", settings)
  run = made_runs.make(tmp_path, given[0], **given[1])
  target = tmp_path / "whole"
  command = ["convert", "--to=hugging_face", "--whole_model", f"{run}/checkpoint_1"]
  assert main([*command, str(target)]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert "--whole_model: " in line
  assert said in line
  assert not target.exists()


def test_only_models_for_hugging_face_may_be_whole(run, tmp_path, capsys):
  command = ["convert", "--whole_model", f"{run}/checkpoint_1", str(tmp_path / "new")]
  assert main(command) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "commentree: --whole_model: is of no use with --to=orbax"


def test_what_cannot_be_pooled_or_tokenized_there_is_said(tmp_path, capsys):
  run = made_runs.make(tmp_path, **{"ModelConfig.pooling": "attention"})
  target = tmp_path / "encoder"
  assert main(["convert", "--to=hugging_face", f"{run}/checkpoint_1", str(target)]) == 0
  said = capsys.readouterr().out
  assert "no tokenizer is written: the vocabulary is SentencePiece's" in said
  assert {path.name for path in target.iterdir()} == {
    "README.md",
    "config.json",
    "model.safetensors",
  }
  assert json.loads((target / "config.json").read_text())["model_type"] == "t5"


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
  target = tmp_path / "encoder"
  command = ["convert", "--to=hugging_face", f"{tmp_path}/checkpoint_1", str(target)]
  assert main(command) == 2
  assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_is_no_checkpoint_of_it(run, tmp_path, capsys):
  command = ["convert", "--to=hugging_face", str(run), str(tmp_path / "encoder")]
  assert main(command) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith("give MODEL_DIR/checkpoint_<step>")
