"""SentencePiece vocabularies: training, opening, and adding markers to one.

Ids of those trained here are T5's: padding 0, end of sequence 1, unknown 2, none for
a beginning. After them come the marker tokens (`<mask>`, `<user_0>`, `<url>`…), each a
user-defined symbol, so that it is one token wherever it stands.
"""

from __future__ import annotations

import functools
import io
import itertools
import pathlib
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import sentencepiece

from commentree.errors import UserError
from commentree.tasks.vocabulary import vocabulary_files, word_starts
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

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
# Raise when `write_word_vocabulary` writes other bytes than before.
FORMAT_VERSION = 1

_ASCII = string.ascii_letters + string.digits + string.punctuation
# SentencePiece skips longer sentences without a word.
_MAX_SENTENCE_BYTES = 4096
# The sum of likelihoods depends on it in the last digit: never the number of cores.
_TRAINING_THREADS = 2


def train(
  texts: Iterable[str],
  *,
  model_type: str,
  size: int,
  byte_fallback: bool,
  markers: Sequence[str],
) -> bytes:
  """Trains a vocabulary; equal arguments give equal bytes.

  Args:
    texts: consumed once, as a stream (though SentencePiece holds what it is given).
    model_type: 'unigram' or 'bpe'.
    size: pieces, specials and markers included.
    byte_fallback: write a character without a piece as bytes.
    markers: tokens that are never to be cut, among them `<mask>`.

  Returns:
    The model file's content.

  Raises:
    UserError: if the text does not suit the size.
  """
  # Its BPE aborts the process over a required character that is nowhere in the text.
  feed = _Feed(texts, last=[" ".join(_ASCII)] if model_type == "bpe" else [])
  try:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=feed.sentences(),
      model_writer=model,
      model_type=model_type,
      vocab_size=size,
      byte_fallback=byte_fallback,
      # Rare ones would be unknown otherwise: of 4 million words, [ $ + and Q.
      required_chars=_ASCII,
      user_defined_symbols=list(markers),
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      num_threads=_TRAINING_THREADS,
      max_sentence_length=2 * _MAX_SENTENCE_BYTES,
      minloglevel=2,
    )
  except RuntimeError as error:
    if feed.error is not None:
      raise feed.error from None
    _explain(error, size, feed.characters_read)
  return model.getvalue()


class _Feed:
  """Hands texts to SentencePiece, whose C++ does not keep exceptions."""

  def __init__(self, texts: Iterable[str], last: Sequence[str]):
    self._texts = texts
    self._last = last
    self.characters_read = 0
    self.error: Exception | None = None

  def sentences(self) -> Iterator[bytes]:
    try:
      for text in self._texts:
        self.characters_read += len(text)
        yield from cut_sentences(text)
    except Exception as error:
      self.error = error
      raise
    if self.characters_read:
      yield from (text.encode() for text in self._last)


def cut_sentences(text: str) -> Iterator[bytes]:
  """Cuts a text at line ends, and long lines at spaces, into UTF-8 that is not long."""
  for line in text.splitlines():
    raw = line.encode("utf-8", "replace").replace(b"\0", b" ").strip()
    while len(raw) > _MAX_SENTENCE_BYTES:
      end = raw.rfind(b" ", 1, _MAX_SENTENCE_BYTES)
      if end < 0:
        end = _MAX_SENTENCE_BYTES
        while raw[end] & 0xC0 == 0x80:  # never inside a character
          end -= 1
      yield raw[:end]
      raw = raw[end:].lstrip()
    if raw:
      yield raw


def _explain(error: RuntimeError, size: int, characters: int) -> NoReturn:
  """Turns SentencePiece's refusal into one line that names the mend."""
  message = str(error)
  text = f"{characters:,} characters of text"
  if found := re.search(r"too high \(\d+\).*<= (\d+)", message):
    raise UserError(
      f"vocabulary size {size}: too large for {text}; ask for at most"
      f" {found[1]}, or give more trees"
    ) from None
  if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
    raise UserError(
      f"vocabulary size {size}: too small for the markers and characters of the"
      f" {text}; ask for at least {found[1]}, or fewer user markers"
    ) from None
  raise error


def _model_proto() -> Any:
  """The module of SentencePiece's file format, whose classes exist at run time only."""
  from sentencepiece import sentencepiece_model_pb2

  return sentencepiece_model_pb2


def _text_proto() -> Any:
  from sentencepiece import sentencepiece_pb2

  return sentencepiece_pb2


def write_word_vocabulary(
  words: Sequence[str],
  path: pathlib.Path,
  markers: Sequence[str],
  sentinels: int = 0,
) -> None:
  """Writes a vocabulary in which each of `words` is one piece, without training.

  Args:
    words: distinct, most frequent first, of letters alone.
    path: file to write; it appears whole or not at all.
    markers: tokens that are never to be cut, among them `<mask>`.
    sentinels: how many of T5's sentinels to add, behind all else.

  Raises:
    UserError: if the file cannot be written.
  """
  proto = _model_proto()

  vocabulary_files.check_writable(path)
  model = proto.ModelProto()
  kind = proto.ModelProto.SentencePiece
  pieces = [
    ("<pad>", kind.CONTROL),
    ("</s>", kind.CONTROL),
    ("<unk>", kind.UNKNOWN),
    *((marker, kind.USER_DEFINED) for marker in markers),
    # Without it, the space in front of a marker would be an unknown character.
    (WORD_START, kind.NORMAL),
    *((WORD_START + word, kind.NORMAL) for word in words),
    *((sentinel_names(n)[0], kind.CONTROL) for n in reversed(range(sentinels))),
  ]
  for piece, type_ in pieces:
    model.pieces.add(piece=piece, type=type_, score=0.0)
  model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
  model.trainer_spec.vocab_size = len(pieces)
  model.trainer_spec.pad_id = PAD_ID
  model.trainer_spec.eos_id = EOS_ID
  model.trainer_spec.unk_id = UNK_ID
  model.trainer_spec.bos_id = -1
  model.trainer_spec.user_defined_symbols.extend(markers)
  model.normalizer_spec.name = "identity"
  model.normalizer_spec.add_dummy_prefix = True
  model.normalizer_spec.remove_extra_whitespaces = True
  model.normalizer_spec.escape_whitespaces = True
  vocabulary_files.write(path, model.SerializeToString(deterministic=True))


def add_markers(
  content: bytes, markers: Sequence[str], sentinels: int = 0
) -> tuple[bytes, list[str]]:
  """Appends those markers that a model lacks, behind all of its pieces.

  Sentinels come first, the last of them in front: so T5's get the ids that T5 and its
  checkpoints have them at.

  A marker that is an ordinary piece, or one that no text can hold, keeps its id and
  becomes uncuttable. `<mask>` is only sought: a model's own `[MASK]` serves.

  Args:
    content: the model file's.
    markers: tokens that are never to be cut.
    sentinels: how many of T5's sentinels there are to be; no text is ever made of them.

  Returns:
    (the new file's content, the markers and sentinels added).
  """
  proto = _model_proto()
  kind = proto.ModelProto.SentencePiece
  model = proto.ModelProto.FromString(content)
  known = {piece.piece: piece for piece in model.pieces}
  added = []
  for number in reversed(range(sentinels)):
    names = sentinel_names(number)
    if not any(name in known for name in names):
      model.pieces.add(piece=names[0], type=kind.CONTROL, score=0.0)
      added.append(names[0])
  for marker in markers:
    if marker == MASK_NAMES[0] and any(name in known for name in MASK_NAMES):
      continue
    if marker in known:
      known[marker].type = kind.USER_DEFINED
      continue
    model.pieces.add(piece=marker, type=kind.USER_DEFINED, score=0.0)
    model.trainer_spec.user_defined_symbols.append(marker)
    added.append(marker)
  model.trainer_spec.vocab_size = len(model.pieces)
  return model.SerializeToString(deterministic=True), added


def call_mask(content: bytes, name: str, new_name: str) -> bytes:
  """Renames the token for masking; see `backend_kinds.call_mask`."""
  proto = _model_proto()
  model = proto.ModelProto.FromString(content)
  for piece in model.pieces:
    if piece.piece == name:
      piece.piece, piece.type = new_name, proto.ModelProto.SentencePiece.USER_DEFINED
  return model.SerializeToString(deterministic=True)


class SentencePieceBackend(TokenizerBackend):
  """A SentencePiece model: unigram or BPE, with bytes for rare characters or not."""

  def __init__(self, content: bytes):
    """Opens a model.

    Args:
      content: of a `.model` file.

    Raises:
      ValueError: if it is not one.
    """
    proto = _model_proto()
    kind = proto.ModelProto.SentencePiece
    try:
      model = proto.ModelProto.FromString(content)
      names = [piece.piece for piece in model.pieces]
      if not names:
        raise ValueError("it has no pieces")
      foreign_mask = MASK_NAMES[1]
      if foreign_mask in names:
        # Cleaning does not keep users from writing it.
        model.pieces[names.index(foreign_mask)].type = kind.CONTROL
        content = model.SerializeToString(deterministic=True)
      self.backend = sentencepiece.SentencePieceProcessor(model_proto=content)
    except Exception as error:  # protobuf and SentencePiece have their own
      raise ValueError(str(error)) from error
    types = np.array([piece.type for piece in model.pieces])
    self.size = len(names)
    unmaskable = (kind.CONTROL, kind.UNKNOWN, kind.USER_DEFINED, kind.UNUSED)
    self.maskable = ~np.isin(types, unmaskable)
    self.is_marker = (types == kind.USER_DEFINED) & np.array(
      [MARKER_SHAPE.fullmatch(name) is not None for name in names]
    )
    self._ids = {name: token_id for token_id, name in enumerate(names)}

    def known(token_id: int) -> int | None:
      return token_id if token_id >= 0 else None

    self.pad_id = max(0, self.backend.pad_id())
    self.eos_id = known(self.backend.eos_id())
    self.bos_id = known(self.backend.bos_id())
    self.start_id = first_there(self.bos_id, known(self.backend.pad_id()), self.eos_id)
    self.unk_id = known(self.backend.unk_id())
    self.mask_id = first_known(self, MASK_NAMES)
    self.space_id = self.piece_to_id(WORD_START)
    self.maskable[self.sentinels] = False

  @functools.cached_property
  def begins_word(self) -> np.ndarray | None:
    """Whether a token begins a word; see `TokenizerBackend`."""
    return word_starts.starts_word(list(self._ids))

  def encode(self, texts: Sequence[str], *, offsets: bool = False) -> Encoded:
    """Returns the tokens of each text; see `TokenizerBackend`."""
    if offsets:
      return self._encode_with_offsets(texts)
    encoded = self.backend.encode(list(texts), num_threads=1)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    flat = itertools.chain.from_iterable(encoded)
    return Encoded(np.fromiter(flat, np.int32, int(lengths.sum())), lengths, None)

  def _encode_with_offsets(self, texts: Sequence[str]) -> Encoded:
    serialized = self.backend.encode(
      list(texts), out_type="serialized_proto", num_threads=1
    )
    parse = _text_proto().SentencePieceText.FromString
    ids = [np.zeros(0, np.int32)]
    spans = [np.zeros((0, 2), np.int32)]
    for text, raw in zip(texts, serialized):
      pieces = parse(raw).pieces
      ids.append(np.array([piece.id for piece in pieces], np.int32))
      # Each begins where the one before ends; reading `begin` takes a third longer.
      first = pieces[0].begin if pieces else 0
      bounds = np.array([first, *(piece.end for piece in pieces)], np.int64)
      lone_space = ids[-1] == self.space_id
      spans.append(_to_characters(text, bounds[:-1], bounds[1:], lone_space))
    lengths = np.array([len(tokens) for tokens in ids[1:]], np.int64)
    return Encoded(np.concatenate(ids), lengths, np.concatenate(spans))

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of tokens; see `TokenizerBackend`."""
    whole = [int(i) for i in ids]
    sentinels = set(self.sentinels.tolist())
    if sentinels.isdisjoint(whole):
      return self.backend.decode(whole)
    # Nothing to SentencePiece, but not to those who look at what was taken out.
    parts = itertools.groupby(whole, key=lambda i: i if i in sentinels else -1)
    return " ".join(
      self.id_to_piece(one) if one >= 0 else self.backend.decode(list(some))
      for one, some in parts
    )

  def id_to_piece(self, token_id: int) -> str:
    """Returns a token's name; see `TokenizerBackend`."""
    return self.backend.id_to_piece(int(token_id))

  def is_bytes(self, token_id: int) -> bool:
    """Whether a token holds bytes; see `TokenizerBackend`."""
    return self.backend.is_byte(int(token_id))

  def piece_to_id(self, piece: str) -> int | None:
    """Returns a token's id, or None; see `TokenizerBackend`."""
    return self._ids.get(piece)


def _to_characters(
  text: str, starts: np.ndarray, ends: np.ndarray, lone_space: np.ndarray
) -> np.ndarray:
  """Turns SentencePiece's byte offsets of one text into our offsets, int32 [n, 2].

  Of the tokens that share a character (bytes of it, or what normalisation made of
  it), SentencePiece gives it to the last; here they all have it. The space that it
  puts in front of a text is nowhere in it.
  """
  ends = ends.copy()
  for i in np.flatnonzero((starts == ends) & ~lone_space)[::-1].tolist():
    if i + 1 < len(starts) and starts[i] == starts[i + 1]:
      ends[i] = ends[i + 1]
  if not text.isascii():
    raw = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    characters = np.concatenate([[0], np.cumsum(raw & 0xC0 != 0x80)])
    starts, ends = characters[starts], characters[ends]
  return np.stack([starts, ends], axis=1).astype(np.int32)
