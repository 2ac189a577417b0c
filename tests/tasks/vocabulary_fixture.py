"""Small vocabularies as others make them, and the texts that they are trained on."""

import io
import json
import random

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


MAKERS = {
  "t5": lambda folder: like_t5(folder / "spiece.model"),
  "bpe": lambda folder: like_t5(folder / "bpe.model", "bpe"),
  "roberta": lambda folder: like_roberta(folder / "roberta.json"),
  "bert": lambda folder: like_bert(folder / "bert.json"),
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
