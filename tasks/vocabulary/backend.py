"""What a tokenizer can do, whichever library does it.

`sentencepiece_backend` and `hugging_face_backend` implement it.
"""

from __future__ import annotations

import abc
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Stands for the space in front of a word.
WORD_START = "▁"
# What vocabularies call the token that hides another.
MASK_NAMES = ("<mask>", "[MASK]")

# Uncuttable tokens that look like this are markers: a space before one says nothing.
MARKER_SHAPE = re.compile(r"<\S+>|\[\S+\]")


class Encoded(NamedTuple):
  """Token ids of several texts, end to end.

  Attributes:
    ids: int32 [tokens of all texts].
    lengths: tokens of each text. [texts]
    offsets: first code point of each token in its text, and the one behind its last,
      int32 [tokens, 2]; None if they were not asked for.
  """

  ids: np.ndarray
  lengths: np.ndarray
  offsets: np.ndarray | None


class TokenizerBackend(abc.ABC):
  """A vocabulary in memory.

  Attributes:
    backend: the object that does the work, a `sentencepiece.SentencePieceProcessor`
      or a `tokenizers.Tokenizer`.
    size: rows of the embedding table that it needs.
    pad_id: padding; 0 if the vocabulary has none, for nothing ever reads it.
    eos_id: end of sequence, or None, as below.
    bos_id: beginning of sequence.
    start_id: what is read before a text's first token is predicted: the beginning of
      sequence, else padding (as T5 does), else the end (as GPT-2 does).
    unk_id: what stands for the unknown.
    mask_id: what hides a token that is to be predicted.
    space_id: the token of a lone space.
    maskable: whether a token may be masked or put in at random, bool [size].
    is_marker: whether a token is a marker, bool [size].
    begins_word: whether a token begins a word, bool [size]; None if tokens do not tell.
    sentinels: ids of `<extra_id_0>`, `<extra_id_1>` and so on, T5's sentinels of spans
      taken out, int32 [as many as there are].
  """

  backend: Any
  size: int
  pad_id: int
  eos_id: int | None
  bos_id: int | None
  start_id: int | None
  unk_id: int | None
  mask_id: int | None
  space_id: int | None
  maskable: np.ndarray
  is_marker: np.ndarray

  @functools.cached_property
  def sentinels(self) -> np.ndarray:
    """Sought when they are first asked for."""
    found: list[int] = []
    while (token_id := first_known(self, sentinel_names(len(found)))) is not None:
      found.append(token_id)
    return np.array(found, np.int32)

  @property
  @abc.abstractmethod
  def begins_word(self) -> np.ndarray | None:
    """Made when it is first asked for."""

  @abc.abstractmethod
  def encode(self, texts: Sequence[str], *, offsets: bool = False) -> Encoded:
    """Returns the library's tokens of each text, no beginning or end added."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of tokens, in which padding, end and beginning are nothing."""

  @abc.abstractmethod
  def id_to_piece(self, token_id: int) -> str:
    """Returns a token's name, for people: `▁word`, `##ing`, `<0xE6>`.

    `▁` is a space that the token begins with; `<0xE6>` is a byte of a character that
    takes several tokens.
    """

  @abc.abstractmethod
  def is_bytes(self, token_id: int) -> bool:
    """Whether a token holds bytes, which may be only a part of a character."""

  @abc.abstractmethod
  def piece_to_id(self, piece: str) -> int | None:
    """Returns a token's id by the vocabulary's own spelling, or None."""


def sentinel_names(number: int) -> tuple[str, str]:
  """What vocabularies call a sentinel; the second is mT5's."""
  name = f"<extra_id_{number}>"
  return name, WORD_START + name


def first_there(*token_ids: int | None) -> int | None:
  """The first id that there is."""
  return next((i for i in token_ids if i is not None), None)


def first_known(encoder: TokenizerBackend, names: Sequence[str]) -> int | None:
  """Id of the first of `names` that the vocabulary has."""
  for name in names:
    token_id = encoder.piece_to_id(name)
    if token_id is not None:
      return token_id
  return None
