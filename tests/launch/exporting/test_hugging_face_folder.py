"""`commentree convert --to=hugging_face`: an encoder that other libraries load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers

from commentree.launch.main import main
from commentree.tests.support.launch import made_runs
from commentree.tests.support.training.warm_starts import started
from commentree.training.warm_starts import safetensors_writing, sources

ROBERTA = {
  "ModelConfig.family": "roberta",
  "ModelConfig.mlp_activations": ("gelu_exact",),
  "ModelConfig.num_positions": 40,
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  """A WordPiece vocabulary of the generated trees' words, with a BERT's tokens."""
  path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  words = [
    *special,
    *(chr(97 + i) for i in range(26)),
    *(f"##{chr(97 + i)}" for i in range(26)),
  ]
  read = tokenizers.Tokenizer(
    tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
  )
  read.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  read.decoder = tokenizers.decoders.WordPiece()
  read.add_special_tokens(special)
  source = path.with_name("source.json")
  read.save(str(source))
  assert main(["vocab", f"--from={source}", f"--output={path}"]) == 0
  return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, vocabulary):
  return made_runs.make(
    tmp_path_factory.mktemp("run"),
    **ROBERTA,
    VOCABULARY=vocabulary,
    **{"SubtreeConfig.sequence_ends": True},
  )


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
