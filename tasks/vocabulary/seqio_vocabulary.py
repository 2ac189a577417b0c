"""A SeqIO vocabulary whose file is sought, or made, when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from commentree.tasks.vocabulary.vocabularies import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
  """A tokenizer as SeqIO wants one; registering a task neither reads nor makes it."""

  def __init__(self, tokenizer: Tokenizer):
    """Looks at nothing yet.

    Args:
      tokenizer: does the work.
    """
    super().__init__()
    self._tokenizer = tokenizer

  @property
  def tokenizer(self) -> Any:
    """The object of SentencePiece or tokenizers that does the work."""
    return self._tokenizer.backend

  @property
  def pad_id(self) -> int:
    """Id of padding."""
    return self._tokenizer.pad_id

  @property
  def bos_id(self) -> int | None:
    """Id of the beginning of a sequence, if there is one."""
    return self._tokenizer.bos_id

  @property
  def eos_id(self) -> int | None:
    """Id of the end of a sequence, if there is one."""
    return self._tokenizer.eos_id

  @property
  def unk_id(self) -> int | None:
    """Id of the unknown, if there is one."""
    return self._tokenizer.unk_id

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.vocab_size

  def _encode(self, s: str) -> Sequence[int]:
    (ids,) = self._tokenizer.encode_batch([s])
    return ids.tolist()

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes | np.ndarray) -> np.ndarray:
      raw: bytes = np.asarray(text, object).item()  # eagerly, an array of rank 0
      return self._tokenizer.encode_batch([raw.decode("utf-8", "replace")])[0]

    ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows: np.ndarray) -> np.ndarray:
      texts = [
        self._tokenizer.decode(row.tolist()).encode()
        for row in rows.reshape(-1, rows.shape[-1])
      ]
      return np.array(texts, object).reshape(rows.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    texts.set_shape(ids.shape[:-1])
    return texts

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, TokenizerVocabulary):
      return False
    if self._tokenizer is other._tokenizer:
      return True
    return self._tokenizer.fingerprint == other._tokenizer.fingerprint

  def __str__(self) -> str:
    return f"TokenizerVocabulary({self._tokenizer})"


def load_vocabulary(path: str | os.PathLike[str]) -> TokenizerVocabulary:
  """Opens a vocabulary as SeqIO knows them.

  Raises:
    UserError: if there is no such file, or it is not a vocabulary of ours.
  """
  tokenizer = Tokenizer(lambda: path)
  tokenizer.check()
  return TokenizerVocabulary(tokenizer)
