"""Vocabularies of Hugging Face's `tokenizers`: training, opening, adding markers.

Those trained here are byte-level BPE or WordPiece, with T5's ids: padding 0, end of
sequence 1, unknown 2, then the markers. Any other `tokenizer.json` opens as well;
its special tokens go by their usual names.

In a `tokenizer.json`, a token that is `special` is never found in text here, so that
no user can write `[MASK]` or `</s>`; markers are added tokens that are not special.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

# Trees are too small to be worth threads, which a forked process could not use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from commentree.errors import UserError
from commentree.tasks.vocabulary import word_starts
from commentree.tasks.vocabulary.backend import (
  MARKER_SHAPE,
  MASK_NAMES,
  WORD_START,
  Encoded,
  TokenizerBackend,
  first_known,
  first_there,
  sentinel_names,
)

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"

_CONTINUES = "##"
# With more ids than so many times its tokens a vocabulary would only take memory.
_MAX_ROWS_A_TOKEN = 100
_RARE = "a \U00013000"  # a hieroglyph: normalisers let letters pass
# Rarer characters are unknown to WordPiece.
_MAX_ALPHABET = 1000
_ASCII = string.ascii_letters + string.digits + string.punctuation
_BYTE_LEVEL_SPACE = "Ġ"

# By role, what vocabularies call their special tokens, the most telling first.
_PAD_NAMES = (PAD, "[PAD]", "<|padding|>", "<|pad|>")
_EOS_NAMES = (EOS, "[SEP]", "<eos>", "<|endoftext|>")
_BOS_NAMES = ("<s>", "[CLS]", "<bos>")
_UNK_NAMES = (UNK, "[UNK]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LONE_BYTE = re.compile("[\udc80-\udcff]")
# Rows that a vocabulary keeps free; no text holds them.
_RESERVED = re.compile(r"\[unused\d+\]|<extra_id_\d+>|madeupword\d+")


def train(
  texts: Iterable[str],
  *,
  model_type: Literal["byte_bpe", "wordpiece"],
  size: int,
  markers: Sequence[str],
) -> bytes:
  """Trains a vocabulary; equal arguments give equal bytes.

  Args:
    texts: consumed once, and held by 'wordpiece'.
    model_type: 'byte_bpe' or 'wordpiece'.
    size: tokens, specials and markers included.
    markers: tokens that are never to be cut, among them `<mask>`.

  Returns:
    The content of a `tokenizer.json`.

  Raises:
    UserError: if the text does not suit the size.
  """
  specials = [PAD, EOS, UNK, *markers]
  parts = _without_markers(texts, markers)
  trainer: trainers.Trainer
  helpers: list[str] = []
  if model_type == "byte_bpe":
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
      vocab_size=size,
      show_progress=False,
      special_tokens=specials,
      initial_alphabet=alphabet,
    )
    # As behind an author's marker.
    parts = (f" {part.lstrip()}" for part in parts)
  else:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(
      lowercase=False, strip_accents=False
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)
    held = list(parts)
    alphabet = _alphabet(tokenizer.normalizer, held)
    # The trainer numbers characters inside words in the order of a hash map, unless
    # it knows them before: ties would fall differently each time.
    helpers = [_CONTINUES + character for character in alphabet]
    trainer = trainers.WordPieceTrainer(
      vocab_size=size,
      show_progress=False,
      special_tokens=[*specials, *helpers],
      initial_alphabet=alphabet,
      limit_alphabet=len(alphabet),
      continuing_subword_prefix=_CONTINUES,
    )
    parts = iter(held)
  least = len(specials) + len(helpers) + len(alphabet)
  if size < least:
    raise UserError(
      f"vocabulary size {size}: too small for the markers and characters; ask for at"
      f" least {least}, or fewer user markers"
    )
  tokenizer.train_from_iterator(parts, trainer)
  reached = tokenizer.get_vocab_size()
  if reached < size:
    raise UserError(
      f"vocabulary size {size}: too large for the text; ask for at most {reached}, or"
      " give more trees"
    )
  document = json.loads(tokenizer.to_str())
  document["added_tokens"] = [
    _added_token(i, token, special=token in (PAD, EOS, UNK, *MASK_NAMES))
    for i, token in enumerate(specials)
  ]
  return _write(document)


def _without_markers(texts: Iterable[str], markers: Sequence[str]) -> Iterator[str]:
  """Yields what stands between markers, which the trainers would take for words."""
  if not markers:
    yield from texts
    return
  any_marker = re.compile("|".join(map(re.escape, markers)))
  for text in texts:
    for part in any_marker.split(text):
      if part.strip():
        yield part


def _alphabet(normalizer: Any, texts: Sequence[str]) -> list[str]:
  """ASCII, then the most frequent other characters, in an order that is always so."""
  counts: collections.Counter[str] = collections.Counter()
  for text in texts:
    counts.update(normalizer.normalize_str(text))
  others = sorted(
    (c for c in counts if c not in _ASCII and not c.isspace()),
    key=lambda c: (-counts[c], c),
  )
  return [*_ASCII, *others[: _MAX_ALPHABET - len(_ASCII)]]


def _added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
  """An entry of `added_tokens`; a space in front of it belongs to it."""
  return {
    "id": token_id,
    "content": content,
    "single_word": False,
    "lstrip": not special or content in MASK_NAMES,
    "rstrip": False,
    "normalized": False,
    "special": special,
  }


def _write(document: dict[str, Any]) -> bytes:
  return json.dumps(document, ensure_ascii=False, indent=2).encode()


def add_markers(
  content: bytes, markers: Sequence[str], sentinels: int = 0
) -> tuple[bytes, list[str]]:
  """Appends those markers that a `tokenizer.json` lacks, behind all of its tokens.

  Sentinels come first, as in SentencePiece models. `<mask>` is only sought: a
  vocabulary's own `[MASK]` serves.

  Args:
    content: the file's.
    markers: tokens that are never to be cut.
    sentinels: how many of T5's sentinels there are to be; no text is ever made of them.

  Returns:
    (the new file's content, the markers and sentinels added).

  Raises:
    UserError: if its ids have gaps, where new tokens would land.
  """
  document = json.loads(content)
  ids = tokenizers.Tokenizer.from_str(content.decode()).get_vocab()
  if set(ids.values()) != set(range(len(ids))):
    raise UserError(
      f"the ids of its {len(ids):,} tokens have gaps, which markers would fill; number"
      " them without"
    )
  listed = document.setdefault("added_tokens", [])
  already = {token["content"] for token in listed}
  added = []
  for number in reversed(range(sentinels)):
    names = sentinel_names(number)
    if not any(name in ids for name in names):
      ids[names[0]] = len(ids)
      added.append(names[0])
      listed.append(_added_token(ids[names[0]], names[0], special=True))
  for marker in markers:
    if marker in already:
      continue
    if marker == MASK_NAMES[0] and any(name in ids for name in MASK_NAMES):
      continue
    token_id = ids.get(marker)
    if token_id is None:
      token_id = ids[marker] = len(ids)
      added.append(marker)
    listed.append(_added_token(token_id, marker, special=marker in MASK_NAMES))
  listed.sort(key=lambda token: token["id"])
  return _write(document), added


def call_mask(content: bytes, name: str, new_name: str) -> bytes:
  """Renames the token for masking; see `backend_kinds.call_mask`."""
  document = json.loads(content)
  token_id = tokenizers.Tokenizer.from_str(content.decode()).get_vocab()[name]
  listed = document.get("added_tokens") or []
  document["added_tokens"] = sorted(
    [
      *(token for token in listed if token["content"] != name),
      _added_token(token_id, new_name, special=False),
    ],
    key=lambda token: token["id"],
  )
  vocabulary = document["model"]["vocab"]
  if isinstance(vocabulary, list):  # of the unigram model: each with its score
    for entry in vocabulary:
      entry[0] = new_name if entry[0] == name else entry[0]
  elif name in vocabulary:
    vocabulary[new_name] = vocabulary.pop(name)
  return _write(document)


class HuggingFaceBackend(TokenizerBackend):
  """A `tokenizer.json`."""

  def __init__(self, content: bytes, markers: Sequence[str] = ()):
    """Opens a vocabulary.

    Args:
      content: of a `tokenizer.json`.
      markers: added tokens that are markers, even if the file says otherwise.

    Raises:
      ValueError: if it is not one.
    """
    try:
      document = json.loads(content)
      added = document.get("added_tokens") or []
      for token in added:
        if token["content"] in markers:
          token.update(_added_token(token["id"], token["content"], special=False))
          token["lstrip"] = True
      # It adds tokens, which we do not want, and trims offsets, which we do.
      document["post_processor"] = None
      with _panics_as_errors():
        self.backend = tokenizers.Tokenizer.from_str(json.dumps(document))
        # A model that lacks the unknown token that it names says so only at a character
        # that it does not know.
        self.backend.encode(_RARE, add_special_tokens=False)
    except Exception as error:  # tokenizers raises bare ones
      raise ValueError(" ".join(str(error).split())) from error
    self.backend.no_truncation()
    self.backend.no_padding()
    # Special tokens are what users may not write.
    self.backend.encode_special_tokens = True
    ids = self.backend.get_vocab()
    self.size = 1 + max(ids.values(), default=-1)
    if self.size > _MAX_ROWS_A_TOKEN * len(ids):
      raise ValueError(f"its {len(ids):,} tokens have ids up to {self.size - 1:,}")
    special = {token["content"] for token in added if token["special"]}
    found = [token["content"] for token in added if not token["special"]]

    self.unk_id = first_known(self, (*_unknown_names(document), *_UNK_NAMES))
    self.eos_id = first_known(self, _EOS_NAMES)
    self.bos_id = first_known(self, _BOS_NAMES)
    pad_id = first_known(self, _PAD_NAMES)
    self.pad_id = 0 if pad_id is None else pad_id
    self.start_id = first_there(self.bos_id, pad_id, self.eos_id)
    self.mask_id = first_known(self, MASK_NAMES)
    roles = (self.unk_id, self.eos_id, self.bos_id, pad_id, self.mask_id)
    self.is_marker = np.zeros(self.size, bool)
    self.is_marker[[ids[t] for t in found if MARKER_SHAPE.fullmatch(t)]] = True
    self.maskable = np.zeros(self.size, bool)
    self.maskable[[i for t, i in ids.items() if not _RESERVED.fullmatch(t)]] = True
    self.maskable[[ids[token] for token in special]] = False
    self.maskable[[i for i in roles if i is not None]] = False
    self.maskable &= ~self.is_marker
    self._silent = {i for i in (self.eos_id, self.bos_id, pad_id) if i is not None}
    model = document.get("model") or {}
    before = [document.get("normalizer"), document.get("pre_tokenizer")]
    self._byte_level = '"ByteLevel"' in json.dumps(before)
    self._byte_fallback = '"ByteFallback"' in json.dumps(document.get("decoder"))
    if document.get("decoder") is None and (decoder := _usual_decoder(document)):
      self.backend.decoder = decoder
    self._continues = (
      model.get("continuing_subword_prefix", _CONTINUES)
      if model.get("type") == "WordPiece"
      else None
    )
    self.space_id = first_known(
      self, (_BYTE_LEVEL_SPACE if self._byte_level else WORD_START,)
    )

  @functools.cached_property
  def begins_word(self) -> np.ndarray | None:
    """Whether a token begins a word; see `TokenizerBackend`."""
    pieces = [self.id_to_piece(token_id) for token_id in range(self.size)]
    return word_starts.starts_word(pieces, self._continues)

  def encode(self, texts: Sequence[str], *, offsets: bool = False) -> Encoded:
    """Returns the tokens of each text; see `TokenizerBackend`."""
    if offsets:
      encode = self.backend.encode_batch
    else:
      encode = self.backend.encode_batch_fast  # knows no offsets
    with _panics_as_errors():
      encodings = encode(list(texts), add_special_tokens=False)
    per_text = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, per_text), np.int64, len(per_text))
    flat = itertools.chain.from_iterable(per_text)
    ids = np.fromiter(flat, np.int32, int(lengths.sum()))
    if not offsets:
      return Encoded(ids, lengths, None)
    spans = [span for encoding in encodings for span in encoding.offsets]
    return Encoded(ids, lengths, np.array(spans, np.int32).reshape(-1, 2))

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of tokens; see `TokenizerBackend`."""
    kept = [int(i) for i in ids if int(i) not in self._silent]
    with _panics_as_errors():
      return self.backend.decode(kept, skip_special_tokens=False)

  def id_to_piece(self, token_id: int) -> str:
    """Returns a token's name; see `TokenizerBackend`."""
    piece = self.backend.id_to_token(int(token_id)) or ""
    if not self._byte_level or self.is_marker[token_id]:
      return piece
    # Bytes that are no character become lone surrogates.
    text = _raw(piece).decode("utf-8", "surrogateescape").replace(" ", WORD_START)
    return _LONE_BYTE.sub(lambda byte: f"<0x{ord(byte[0]) & 0xFF:02X}>", text)

  def is_bytes(self, token_id: int) -> bool:
    """Whether a token holds bytes; see `TokenizerBackend`."""
    piece = self.backend.id_to_token(int(token_id)) or ""
    if self._byte_level:
      return "\ufffd" in _raw(piece).decode("utf-8", "replace")
    return self._byte_fallback and _BYTE.fullmatch(piece) is not None

  def piece_to_id(self, piece: str) -> int | None:
    """Returns a token's id, or None; see `TokenizerBackend`."""
    return self.backend.token_to_id(piece)


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
  """Makes what Rust code stops with, which no `except Exception` takes, an error."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != "PanicException":
      raise
    raise UserError(
      f"tokenizers cannot use the vocabulary's tokenizer.json ({error}); give another"
    ) from error


def _raw(piece: str) -> bytes:
  """The bytes of a token of byte-level BPE; one that was added is spelled plainly."""
  table = _bytes_by_letter()
  if all(letter in table for letter in piece):
    return bytes(table[letter] for letter in piece)
  return piece.encode("utf-8", "replace")


@functools.cache
def _bytes_by_letter() -> dict[str, int]:
  """The letters that byte-level BPE writes bytes with, as in GPT-2's code."""
  as_they_are = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in as_they_are]
  table = {chr(byte): byte for byte in as_they_are}
  return table | {chr(256 + place): byte for place, byte in enumerate(others)}


def _usual_decoder(document: dict[str, Any]) -> Any:
  """What joins tokens if a file does not say; None for words with spaces between."""
  before = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")])
  model = document.get("model") or {}
  if '"ByteLevel"' in before:
    return decoders.ByteLevel()
  if '"Metaspace"' in before:
    return decoders.Metaspace()
  if model.get("type") == "WordPiece":
    return decoders.WordPiece(model.get("continuing_subword_prefix", _CONTINUES))
  if suffix := model.get("end_of_word_suffix"):
    return decoders.BPEDecoder(suffix)
  return None


def _unknown_names(document: dict[str, Any]) -> list[str]:
  """The unknown token that a model itself names."""
  model = document.get("model") or {}
  name = model.get("unk_token")
  if isinstance(model.get("unk_id"), int):
    name = model["vocab"][model["unk_id"]][0]
  return [name] if name else []
