"""Vocabularies of every kind: training them, and from text to token ids.

A file holds a SentencePiece model or a `tokenizer.json`; its content tells which.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import sentencepiece
import tokenizers
from msgspec import Meta

from commentree.errors import UserError
from commentree.settings import check_fields
from commentree.tasks.trees.markers import MASK
from commentree.tasks.vocabulary import (
  backend_kinds,
  hugging_face_backend,
  marker_checks,
  sentencepiece_backend,
  vocabulary_files,
)
from commentree.tasks.vocabulary.backend import TokenizerBackend
from commentree.tasks.vocabulary.encoded_texts import (
  split,
  strip_marker_spaces,
  without_spaces,
)
from commentree.tasks.vocabulary.token_texts import TokenTexts

ModelType = Literal["unigram", "bpe", "byte_bpe", "wordpiece"]

# Those that SentencePiece trains; the others are of Hugging Face's tokenizers.
SENTENCEPIECE_TYPES = ("unigram", "bpe")


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
  """How to train a vocabulary.

  Attributes:
    size: pieces, specials and markers included.
    model_type: 'unigram' or 'bpe' of SentencePiece; 'byte_bpe' or 'wordpiece' of
      Hugging Face's tokenizers, as RoBERTa's and BERT's.
    byte_fallback: write a character without a piece as bytes (256 pieces more), not
      as unknown; SentencePiece only.
  """

  size: Annotated[int, Meta(ge=8, le=1_000_000)] = 8000
  model_type: ModelType = "unigram"
  byte_fallback: bool = False

  def __post_init__(self):
    check_fields(self)
    if self.byte_fallback and not self.is_sentencepiece:
      raise UserError(
        f"VocabularyConfig.byte_fallback with model_type = {self.model_type!r}: is for"
        " 'unigram' and 'bpe' alone; 'byte_bpe' knows every byte anyway"
      )

  @property
  def is_sentencepiece(self) -> bool:
    """Whether SentencePiece trains it."""
    return self.model_type in SENTENCEPIECE_TYPES


def train_vocabulary(
  texts: Iterable[str],
  path: str | os.PathLike[str],
  config: VocabularyConfig,
  markers: Sequence[str],
  sentinels: int = 0,
  *,
  details: Mapping[str, Any] | None = None,
  overwrite: bool = True,
) -> pathlib.Path:
  """Trains a vocabulary; equal arguments give equal bytes.

  Args:
    texts: cleaned texts without author markers; consumed once.
    path: file to write; a record of the settings goes beside it
      (`vocabulary_files.record_path`).
    config: size and kind.
    markers: tokens that are never to be cut, among them `<mask>`.
    sentinels: how many of its tokens are T5's sentinels, behind all others.
    details: what else the record is to say, such as where the texts are from.
    overwrite: whether another vocabulary at the path is replaced.

  Returns:
    The path.

  Raises:
    UserError: if there is no text, the text does not suit the size, the file cannot
      be written, or another is there.
  """
  path = pathlib.Path(path)
  vocabulary_files.check_writable(path)
  settings = {**training_settings(config, markers, sentinels), **(details or {})}
  feed = _Counted(texts)
  if config.is_sentencepiece:
    library = {"sentencepiece": sentencepiece.__version__}
    train = functools.partial(
      sentencepiece_backend.train, byte_fallback=config.byte_fallback
    )
  else:
    library = {"tokenizers": tokenizers.__version__}
    train = hugging_face_backend.train  # type: ignore[assignment]
  held = iter(feed)
  first = next(held, None)
  if first is None:
    raise UserError(
      "no text to train a vocabulary on: every comment is empty or was skipped"
    )
  content = train(
    itertools.chain([first], held),
    model_type=config.model_type,
    size=config.size - sentinels,
    markers=markers,
  )
  if sentinels:
    content, _ = backend_kinds.adding(content)(content, (), sentinels)
  counts = {"texts": feed.texts, "characters": feed.characters}
  _write_with_record(
    path, content, {**settings, **counts, **library}, overwrite=overwrite
  )
  return path


def training_settings(
  config: VocabularyConfig, markers: Sequence[str], sentinels: int = 0
) -> dict[str, Any]:
  """Returns what the record of a trained vocabulary says of its settings."""
  return {
    **dataclasses.asdict(config),
    "markers": list(markers),
    "sentinels": sentinels,
  }


class _Counted:
  """The texts that hold something, counted as they are read."""

  def __init__(self, texts: Iterable[str]):
    self._texts = texts
    self.texts = 0
    self.characters = 0

  def __iter__(self) -> Iterator[str]:
    for text in self._texts:
      if text.strip():
        self.texts += 1
        self.characters += len(text)
        yield text


def _write_with_record(
  path: pathlib.Path, content: bytes, record: dict[str, Any], *, overwrite: bool
) -> None:
  if not overwrite:
    vocabulary_files.check_same_content(path, content)
  record = {**record, "fingerprint": vocabulary_files.content_hash(content)}
  # The vocabulary comes last: where it is, its record is.
  vocabulary_files.write(
    vocabulary_files.record_path(path), json.dumps(record, indent=2).encode()
  )
  vocabulary_files.write(path, content)


def add_markers(
  source: str | os.PathLike[str],
  path: str | os.PathLike[str],
  markers: Sequence[str],
  sentinels: int = 0,
  *,
  overwrite: bool = True,
) -> list[str]:
  """Writes a copy of a vocabulary that knows our markers, behind its own tokens.

  A token for masking that is there, such as BERT's `[MASK]`, is kept. Every token
  keeps its id, and every text without a marker its tokens.

  Args:
    source: a SentencePiece model or `tokenizer.json`; it stays as it is.
    path: file to write; a record goes beside it (`vocabulary_files.record_path`).
    markers: tokens that are never to be cut, among them `<mask>`.
    sentinels: how many of T5's sentinels, `<extra_id_0>` and so on, it is to have.
    overwrite: whether another vocabulary at the path is replaced.

  Returns:
    The markers and sentinels that were not there before.

  Raises:
    UserError: if the vocabulary cannot be read or take them, the file cannot be
      written, or another is there.
  """
  path = pathlib.Path(path)
  vocabulary_files.check_writable(path)
  content = vocabulary_files.read(source)
  before = backend_kinds.open_encoder(content, source)
  add = backend_kinds.adding(content)
  try:
    extended, added = add(content, markers, sentinels)
  except UserError as error:
    raise UserError(f"{os.fspath(source)}: {error}") from None
  after = backend_kinds.open_encoder(extended, source, markers)
  marker_checks.check_unchanged(before, after, source)
  marker_checks.check_markers(after, markers, source)
  record = {
    "from": os.fspath(source),
    "grown_from": [
      vocabulary_files.content_hash(content),
      *vocabulary_files.grown_from(source, content),
    ],
    "size": after.size,
    "markers": list(markers),
    "added": added,
  }
  _write_with_record(path, extended, record, overwrite=overwrite)
  return added


class Tokenizer:
  """From text to token ids; the vocabulary is read, or made, at first use.

  Attributes:
    markers: tokens that the vocabulary must know, beside one for masking.
  """

  def __init__(
    self, find: Callable[[], str | os.PathLike[str]], markers: Sequence[str] = ()
  ):
    """Looks at nothing yet.

    Args:
      find: returns the path of the vocabulary; called once.
      markers: tokens that the vocabulary must know, beside one for masking.
    """
    self._find = find
    self.markers = tuple(markers)

  def __getstate__(self) -> dict[str, Any]:
    # Copies go by the file; neither functions nor the libraries' objects pickle well.
    return {"path": self.path, "markers": self.markers}

  @functools.cached_property
  def path(self) -> str:
    """The vocabulary's file."""
    return os.fspath(self._find())

  @functools.cached_property
  def content(self) -> bytes:
    """What is in the vocabulary's file."""
    return vocabulary_files.read(self.path)

  @functools.cached_property
  def _encoder(self) -> TokenizerBackend:
    encoder = backend_kinds.open_encoder(self.content, self.path, self.markers)
    marker_checks.check_markers(encoder, self.markers, self.path)
    return encoder

  def check(self) -> None:
    """Reads the vocabulary.

    Raises:
      UserError: if it is missing, its kind is unknown, or it lacks markers.
    """
    _ = self._encoder

  @property
  def backend(self) -> Any:
    """The object of SentencePiece or tokenizers that does the work."""
    return self._encoder.backend

  @property
  def pad_id(self) -> int:
    """Id of padding; 0 if the vocabulary has none, for nothing ever reads it."""
    return self._encoder.pad_id

  @property
  def eos_id(self) -> int | None:
    """Id of the end of a sequence, if there is one."""
    return self._encoder.eos_id

  @property
  def bos_id(self) -> int | None:
    """Id of the beginning of a sequence, if there is one."""
    return self._encoder.bos_id

  @property
  def unk_id(self) -> int | None:
    """Id of the unknown, if there is one."""
    return self._encoder.unk_id

  @property
  def start_id(self) -> int:
    """Id of what is read before a text's first token is predicted.

    Raises:
      UserError: if there is nothing of the kind.
    """
    return self._needed(self._encoder.start_id, "begin", "<s>, [CLS], <pad>")

  @property
  def end_id(self) -> int:
    """Id of what is predicted behind a text's last token: the end of a sequence.

    Raises:
      UserError: if it is missing.
    """
    return self._needed(self._encoder.eos_id, "end", "</s>, [SEP], <eos>")

  def _needed(self, token_id: int | None, what: str, names: str) -> int:
    if token_id is None:
      raise UserError(
        f"{self.path}: has no token to {what} a comment with (such as {names}),"
        " which this objective needs; give a vocabulary that has one"
      )
    return token_id

  @property
  def mask_id(self) -> int:
    """Id of `<mask>`, or of what the vocabulary has for it."""
    mask_id = self._encoder.mask_id
    assert mask_id is not None  # else the vocabulary was refused
    return mask_id

  @property
  def maskable(self) -> np.ndarray:
    """Whether a token may be masked, bool [vocabulary size], by id.

    Padding, beginning, end, unknown, markers and tokens held in reserve may not.
    """
    return self._encoder.maskable

  @property
  def sentinels(self) -> np.ndarray:
    """Ids of T5's sentinels, `<extra_id_0>` first, int32 [as many as there are]."""
    return self._encoder.sentinels

  @property
  def begins_word(self) -> np.ndarray:
    """Whether a token begins a word, bool [vocabulary size], by id.

    Raises:
      UserError: if the vocabulary does not tell.
    """
    begins_word = self._encoder.begins_word
    if begins_word is None:
      raise UserError(
        f"MaskingConfig.whole_words = True: the tokens of {self.path} do not tell where"
        " words begin; set it to False"
      )
    return begins_word

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding table that the vocabulary needs."""
    return self._encoder.size

  @functools.cached_property
  def fingerprint(self) -> str:
    """Names the vocabulary's contents: equal fingerprints, equal token ids."""
    self.check()
    return vocabulary_files.content_hash(self.content)

  @functools.cached_property
  def grown_from(self) -> tuple[str, ...]:
    """Fingerprints of vocabularies that this one has all tokens of, by the same ids."""
    return vocabulary_files.grown_from(self.path, self.content)

  @functools.cached_property
  def texts(self) -> TokenTexts:
    """What tokens read as, one behind another."""
    return TokenTexts(self._encoder)

  def id_to_piece(self, token_id: int) -> str:
    """Returns a token's name, for people: `▁word`, `##ing`, `<0xE6>`."""
    return self._encoder.id_to_piece(token_id)

  def piece_to_id(self, piece: str) -> int | None:
    """Returns a token's id by the vocabulary's own spelling, or None."""
    return self._encoder.piece_to_id(piece)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the token ids of each text, int32.

    A space in front of a marker is no token.

    Args:
      texts: cleaned texts; markers in them become one token each.
    """
    encoder = self._encoder
    return split(strip_marker_spaces(encoder, encoder.encode(texts)))

  def encode_with_masks(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the token ids of each text, as `encode_batch`, with masks in them.

    Args:
      texts: cleaned texts, in which `<mask>` is the token for masking, regardless of
        the vocabulary calls it. Its own name, such as `[MASK]`, is a word as any other.
    """
    encoder = self._mask_encoder
    return split(strip_marker_spaces(encoder, encoder.encode(texts)))

  @functools.cached_property
  def _mask_encoder(self) -> TokenizerBackend:
    """The vocabulary with its token for masking as a marker that texts may hold."""
    if self._encoder.is_marker[self.mask_id]:
      return self._encoder
    name = self._encoder.id_to_piece(self.mask_id)
    content = backend_kinds.call_mask(self.content, name, MASK)
    return backend_kinds.open_encoder(content, self.path, (*self.markers, MASK))

  def encode_batch_with_offsets(
    self, texts: Sequence[str]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns each text's token ids, as `encode_batch`, and where the tokens stand.

    Offsets are half-open and count code points of the text as given, int32 [n, 2].
    White space in front of a token is none of it, so a token of white space alone is
    empty. Tokens that share a character, such as its bytes, all have it.
    """
    encoder = self._encoder
    encoded = strip_marker_spaces(encoder, encoder.encode(texts, offsets=True))
    assert encoded.offsets is not None
    results = []
    ends = np.concatenate([[0], np.cumsum(encoded.lengths)]).tolist()
    for text, (i, j) in zip(texts, itertools.pairwise(ends)):
      offsets = encoded.offsets[i:j]
      results.append((encoded.ids[i:j], without_spaces(text, offsets)))
    return results

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of tokens, in which padding, end and beginning are nothing."""
    return self._encoder.decode(ids)
