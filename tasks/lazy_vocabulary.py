"""A SeqIO vocabulary whose file is sought, or made, when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import seqio
import tensorflow as tf

from ..errors import UserError

Find = Callable[[], str | os.PathLike[str]]


class LazyVocabulary(seqio.SentencePieceVocabulary):
  """`seqio.SentencePieceVocabulary` that registering a task neither reads nor makes."""

  def __init__(self, find: Find):
    """Looks at nothing yet.

    Args:
      find: returns the model file's path; called once.
    """
    super().__init__("")
    self._find: Find | None = find

  @property
  def sentencepiece_model_file(self) -> str:
    """Path of the model file."""
    if self._find is not None:
      self._sentencepiece_model_file = os.fspath(self._find())
      self._find = None
    return self._sentencepiece_model_file

  def _model_context(self):
    if self._model is None:
      path = self.sentencepiece_model_file
      if not tf.io.gfile.exists(path):
        raise UserError(
          f"{path}: no such vocabulary; make one with `commentree vocab"
          f" --input=TREES --output={path}`"
        )
      try:
        super()._model_context()
      except Exception as error:  # protobuf, SentencePiece and gfile have their own
        raise UserError(
          f"{path}: is not a SentencePiece model; make one with `commentree vocab`"
        ) from error
    return self._model

  def __getstate__(self) -> dict[str, Any]:
    # Copies and comparisons go by the file; a function could not be pickled.
    _ = self.sentencepiece_model_file
    return super().__getstate__()
