"""The beginning and the end of a sequence around each comment.

RoBERTa and BERT were trained on texts between `<s>` and `</s>`, `[CLS]` and `[SEP]`,
and their states are others without. A comment that is cut loses words, never its end;
each chunk of one in chunks stands between its own. Neither token is masked, labelled or
part of a phrase, for `maskable` knows them, and no text spells them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from commentree.errors import UserError

if TYPE_CHECKING:
  from commentree.tasks.config.preprocessing import SubtreeConfig
  from commentree.tasks.vocabulary.vocabularies import Tokenizer


@dataclasses.dataclass(frozen=True)
class SequenceEnds:
  """What stands around the words of a node.

  Attributes:
    begin_id: id of the beginning of a sequence.
    end_id: id of its end.
    room: most tokens of a node between them.
    in_chunks: whether more than that becomes another node; it is cut off otherwise.
  """

  begin_id: int
  end_id: int
  room: int
  in_chunks: bool

  def around(self, tokens: np.ndarray) -> np.ndarray:
    """Returns a comment's tokens with its ends, `[n]`; nothing for nothing.

    Those that there is no room for stay behind the end, to be counted and cut off.
    """
    return self.beside(tokens, self.begin_id, self.end_id)

  def beside(self, values: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Returns values of a comment's tokens `[n, ...]`, and those of its ends."""
    if not len(values):
      return values
    first, last = (
      np.full((1, *values.shape[1:]), value, values.dtype) for value in (begin, end)
    )
    if not self.in_chunks or len(values) <= self.room:
      return np.concatenate([first, values[: self.room], last, values[self.room :]])
    parts = []
    for start in range(0, len(values), self.room):
      parts += [first, values[start : start + self.room], last]
    return np.concatenate(parts)


def of_vocabulary(config: SubtreeConfig, tokenizer: Tokenizer) -> SequenceEnds | None:
  """Returns what is put around comments; None if nothing is.

  Raises:
    UserError: if the vocabulary has no such tokens.
  """
  if not config.sequence_ends:
    return None
  if tokenizer.bos_id is None or tokenizer.eos_id is None:
    missing = "beginning (as <s>, [CLS])" if tokenizer.bos_id is None else "end"
    raise UserError(
      f"SubtreeConfig.sequence_ends = True: {tokenizer.path} has no token for the"
      f" {missing} of a sequence; set it to False"
    )
  return SequenceEnds(
    tokenizer.bos_id,
    tokenizer.eos_id,
    config.room,
    in_chunks=config.long_comments == "chunk",
  )
