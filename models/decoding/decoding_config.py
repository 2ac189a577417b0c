"""Settings of how replies are written: plain data, importable without JAX."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from msgspec import Meta

from commentree.errors import UserError
from commentree.settings import (
  NonNegative,
  NonNegativeInt,
  PositiveInt,
  check_fields,
  check_range,
)

DecodingMethod = Literal["greedy", "sample", "beam"]

_OWNER = "DecodingConfig"


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
  """How the tokens of a reply are chosen, and which never are.

  The ids are those of the objective that the model was trained with (`clm`).

  Attributes:
    start_id: what the decoder reads in front of a reply.
    end_id: what it predicts at the end of a reply.
    max_length: most tokens of a reply, forced ones and the end included.
    method: 'greedy' takes the likeliest token each time; 'sample' draws one; 'beam'
      keeps the `beam_width` likeliest beginnings.
    num_replies: replies for each comment: different draws, or the best of the beam.
    temperature: of 'sample': scores are divided by it.
    top_k: of 'sample': after that the `top_k` likeliest tokens are kept; 0 for all.
    top_p: of 'sample': of these, the fewest that make up this share of their
      probability, the likeliest first (Holtzman et al. 2020).
    beam_width: of 'beam': how many beginnings are kept.
    length_penalty: of 'beam': a finished reply of n tokens is ranked by its log
      probability over ((5 + n) / 6) ** length_penalty (Wu et al. 2016). At 0 short
      replies win, as every token makes one less likely; at 1 it is close to the mean
      of the tokens.
    never: ids that are never written: padding, `<mask>`, markers.
  """

  start_id: NonNegativeInt
  end_id: NonNegativeInt
  max_length: PositiveInt = 64
  method: DecodingMethod = "greedy"
  num_replies: PositiveInt = 1
  temperature: Annotated[float, Meta(ge=1e-4)] = 1.0
  top_k: NonNegativeInt = 0
  top_p: Annotated[float, Meta(ge=1e-6, le=1)] = 1.0
  beam_width: PositiveInt = 4
  length_penalty: NonNegative = 0.6
  never: tuple[NonNegativeInt, ...] = ()

  def __post_init__(self):
    check_fields(self)
    if self.end_id in self.never:
      raise UserError(
        f"{_OWNER}.never has {self.end_id}, which is end_id: no reply would end"
      )
    if self.method == "greedy" and self.num_replies > 1:
      raise UserError(
        f"{_OWNER}.num_replies = {self.num_replies}: the method 'greedy' has one reply;"
        " set method = 'sample' or 'beam'"
      )
    if self.method == "beam" and self.num_replies > self.beam_width:
      raise UserError(
        f"{_OWNER}.num_replies = {self.num_replies}: must be at most beam_width ="
        f" {self.beam_width}"
      )
    if self.method != "sample":
      for field, neutral in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
        if getattr(self, field) != neutral:
          raise UserError(
            f"{_OWNER}.{field} = {getattr(self, field)}: has no effect with method ="
            f" {self.method!r}; set method = 'sample'"
          )

  @property
  def rows(self) -> int:
    """How many replies to one comment are written at the same time."""
    return self.beam_width if self.method == "beam" else self.num_replies

  def check_vocabulary(self, vocab_size: int) -> None:
    """Makes sure that all ids are of a vocabulary of that size.

    Raises:
      UserError: if one is not.
    """
    for field in ("start_id", "end_id"):
      check_range(_OWNER, field, getattr(self, field), 0, vocab_size - 1, whole=True)
    for token in self.never:
      check_range(_OWNER, "never", token, 0, vocab_size - 1, whole=True)
