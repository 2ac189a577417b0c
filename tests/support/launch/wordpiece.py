"""A vocabulary of letters with the special tokens of a BERT."""

from __future__ import annotations

import string

import tokenizers

from commentree.launch.main import main

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Settings of a run of the family "roberta" that a vocabulary of BERT's goes with.
ROBERTA = {
  "ModelConfig.family": "roberta",
  "ModelConfig.mlp_activations": ("gelu_exact",),
  "ModelConfig.num_positions": 40,
  "SubtreeConfig.sequence_ends": True,
}


def make(folder) -> str:
  """Writes it with our markers; returns the file."""
  letters = string.ascii_lowercase
  words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
  ids = {word: number for number, word in enumerate(words)}
  read = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
  read.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  read.decoder = tokenizers.decoders.WordPiece()
  read.add_special_tokens(SPECIAL)
  source, target = folder / "source.json", folder / "tokenizer.json"
  read.save(str(source))
  assert main(["vocab", f"--from={source}", f"--output={target}"]) == 0
  return str(target)
