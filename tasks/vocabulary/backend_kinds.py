"""The kinds of vocabularies, told by the content of a file, not by its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from commentree.errors import UserError
from commentree.tasks.vocabulary import (
  hugging_face_backend,
  sentencepiece_backend,
  vocabulary_files,
)
from commentree.tasks.vocabulary.backend import TokenizerBackend


def open_encoder(
  content: bytes, where: str | os.PathLike[str], markers: Sequence[str] = ()
) -> TokenizerBackend:
  """Opens a vocabulary by its content.

  Args:
    content: of the file.
    where: its name, for errors.
    markers: tokens that are markers, even if the file says otherwise.

  Raises:
    UserError: if its kind is unknown.
  """
  try:
    if vocabulary_files.is_json(content):
      return hugging_face_backend.HuggingFaceBackend(content, markers)
    return sentencepiece_backend.SentencePieceBackend(content)
  except ValueError as error:
    what = vocabulary_files.part_of_tokenizer(content, where)
    raise UserError(
      f"{os.fspath(where)}: "
      + (
        what
        or "is not a SentencePiece model or tokenizer.json; give a checkpoint's own, or"
        " make one for a new model with `commentree vocab --input=TREES`"
      )
    ) from error


def adding(content: bytes) -> Callable[..., tuple[bytes, list[str]]]:
  """Returns what adds markers and sentinels to a vocabulary of this kind."""
  if vocabulary_files.is_json(content):
    return hugging_face_backend.add_markers
  return sentencepiece_backend.add_markers


def call_mask(content: bytes, name: str, new_name: str) -> bytes:
  """Renames the token for masking, so that a text may hold it by its new name.

  Args:
    content: of the vocabulary's file.
    name: of the token.
    new_name: that no text has for anything else.

  Returns:
    The content with the new name.
  """
  kind = (
    hugging_face_backend if vocabulary_files.is_json(content) else sentencepiece_backend
  )
  return kind.call_mask(content, name, new_name)
