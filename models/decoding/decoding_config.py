"""Settings of how replies are written: plain data, importable without JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from commentree.errors import UserError
from commentree.setting_checks import check_choice, check_range

DecodingMethod = Literal["greedy", "sample", "beam"]

_OWNER = "DecodingConfig"


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
  """How the tokens of a reply are chosen, and which never are.

  The ids are those of the objective that the model was trained with (`clm`).
  """

  # What the decoder reads in front of a reply, and what it predicts at its end.
  start_id: int
  end_id: int

  # Most tokens of a reply, forced ones and the end included.
  max_length: int = 64
  method: DecodingMethod = "greedy"
  # Replies for each comment: different draws, or the best of the beam.
  num_replies: int = 1

  # Of the method "sample". Scores are divided by the temperature; then the `top_k`
  # top_k_top_p tokens are kept (0: all); of these the fewest that make up a share
  # `top_p` of their probability, the top_k_top_p first (Holtzman et al. 2020).
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  # Of the method "beam". A finished reply of n tokens is ranked by its log probability
  # over ((5 + n) / 6) ** length_penalty (Wu et al. 2016). At 0 short replies win, as
  # every token makes one less likely; at 1 it is close to the mean of the tokens.
  beam_width: int = 4
  length_penalty: float = 0.6

  # Ids that are never written: padding, `<mask>`, markers.
  never: tuple[int, ...] = ()

  def __post_init__(self):
    for field in ("start_id", "end_id", "top_k"):
      check_range(_OWNER, field, getattr(self, field), 0, whole=True)
    for field in ("max_length", "num_replies", "beam_width"):
      check_range(_OWNER, field, getattr(self, field), 1, whole=True)
    check_choice(_OWNER, "method", self.method, DecodingMethod)
    check_range(_OWNER, "temperature", self.temperature, 1e-4)
    check_range(_OWNER, "top_p", self.top_p, 1e-6, 1)
    check_range(_OWNER, "length_penalty", self.length_penalty, 0)
    # gin and JSON hand over lists; a frozen configuration must be hashable.
    object.__setattr__(self, "never", tuple(self.never))
    for token in self.never:
      check_range(_OWNER, "never", token, 0, whole=True)
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
