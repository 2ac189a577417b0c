"""Small vocabularies as others make them, and the texts that they are trained on."""

import io
import json
import random

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as hf_trainers


def some_texts(number=400, seed=0):
  """Sentences of made-up words, the same for the same seed."""
  rng = random.Random(seed)
  syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
  words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(300)]
  return [" ".join(rng.choices(words, k=rng.randint(3, 25))) for _ in range(number)]


def like_t5(path, model_type="unigram"):
  """As T5's `spiece.model`: 0, 1, 2, no `<`, nothing user-defined."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(some_texts()),
    model_writer=model,
    model_type=model_type,
    vocab_size=120,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  path.write_bytes(model.getvalue())
  return path


def like_roberta(path):
  """As RoBERTa's `tokenizer.json`: byte-level BPE, `<mask>` behind everything."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  specials = ["<s>", "<pad>", "</s>", "<unk>"]
  trainer = hf_trainers.BpeTrainer(
    vocab_size=500,
    show_progress=False,
    special_tokens=specials,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )
  tokenizer.train_from_iterator(some_texts(), trainer)
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)]
  )
  tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
  tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
  tokenizer.enable_truncation(16)
  path.write_text(tokenizer.to_str(pretty=True))
  return path


def like_bert(path):
  """As BERT's `tokenizer.json`: WordPiece in lower case, rows kept in reserve."""
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  reserved = [f"[unused{i}]" for i in range(3)]
  specials = ["[PAD]", *reserved, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  trainer = hf_trainers.WordPieceTrainer(
    vocab_size=200,
    show_progress=False,
    special_tokens=specials,
    initial_alphabet=list("abcdefghijklmnopqrstuvwxyz.,!?'[]()<>/_0123456789"),
  )
  tokenizer.train_from_iterator(some_texts(), trainer)
  document = json.loads(tokenizer.to_str())
  document["added_tokens"] = [
    token for token in document["added_tokens"] if token["content"] not in reserved
  ]
  path.write_text(json.dumps(document))
  return path


def like_llama_1(path):
  """As Llama's `tokenizer.model`: BPE with bytes for rare characters, no specials."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(some_texts()),
    model_writer=model,
    model_type="bpe",
    vocab_size=400,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  path.write_bytes(model.getvalue())
  return path


def like_llama_2(path):
  """As Llama's `tokenizer.json`: spaces are `▁`, and bytes for rare characters."""
  tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  trainer = hf_trainers.BpeTrainer(
    vocab_size=500,
    show_progress=False,
    special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
  )
  tokenizer.train_from_iterator(" ".join(some_texts()).split(), trainer)
  document = json.loads(tokenizer.to_str())
  document["added_tokens"] = document["added_tokens"][:3]
  path.write_text(json.dumps(document))
  return path


def like_xlm_roberta(path):
  """As XLM-RoBERTa's `tokenizer.json`: unigram pieces behind Metaspace."""
  tokenizer = tokenizers.Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  trainer = hf_trainers.UnigramTrainer(
    vocab_size=200,
    show_progress=False,
    special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    unk_token="<unk>",
  )
  tokenizer.train_from_iterator(some_texts(), trainer)
  path.write_text(tokenizer.to_str())
  return path


def of_words(path):
  """Whole words and punctuation, which nothing but spaces joins."""
  tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  trainer = hf_trainers.WordLevelTrainer(
    show_progress=False, special_tokens=["[PAD]", "[UNK]", "[SEP]", "[MASK]"]
  )
  texts = [f"{text}." for text in some_texts()]
  tokenizer.train_from_iterator([*texts, "( ) , ' - !"], trainer)
  path.write_text(tokenizer.to_str())
  return path


def like_clip(path):
  """As CLIP's: BPE whose tokens tell where a word ends, not where it begins."""
  tokenizer = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.decoder = decoders.BPEDecoder()
  trainer = hf_trainers.BpeTrainer(
    vocab_size=300,
    show_progress=False,
    special_tokens=["<pad>", "<unk>", "</s>", "<mask>"],
    end_of_word_suffix="</w>",
    initial_alphabet=list(".,!?'()"),
  )
  tokenizer.train_from_iterator(some_texts(), trainer)
  path.write_text(tokenizer.to_str())
  return path


MAKERS = {
  "t5": lambda folder: like_t5(folder / "spiece.model"),
  "bpe": lambda folder: like_t5(folder / "bpe.model", "bpe"),
  "roberta": lambda folder: like_roberta(folder / "roberta.json"),
  "bert": lambda folder: like_bert(folder / "bert.json"),
}

# Those and every other kind.
ALL_KINDS = {
  **MAKERS,
  "byte_fallback": lambda folder: like_llama_1(folder / "fallback.model"),
  "byte_fallback_json": lambda folder: like_llama_2(folder / "fallback.json"),
  "metaspace": lambda folder: like_xlm_roberta(folder / "metaspace.json"),
  "words": lambda folder: of_words(folder / "words.json"),
  "word_ends": lambda folder: like_clip(folder / "clip.json"),
}


def plain_ids(path, texts):
  """Token ids as the libraries give them, without anything of ours."""
  if path.suffix == ".model":
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [processor.encode(text) for text in texts]
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  tokenizer.no_truncation()
  tokenizer.no_padding()
  encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
  return [encoding.ids for encoding in encodings]


class Characters:
  """A vocabulary of characters: a token each."""

  def encode_batch(self, texts):
    return [np.array([ord(c) for c in text], np.int32) for text in texts]
