"""What a run learns to predict: plain settings, importable without NumPy."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, cast

from msgspec import Meta

from commentree.errors import UserError
from commentree.settings import check_fields, check_names

ObjectiveName = Literal[
  "mlm", "clm", "tlm", "span_corruption", "classify", "tag", "regress"
]

# Optional features of a batch (`models.batch.OPTIONAL_FEATURE_AXES`).
PREFIXES = "target_prefix_lengths"
LANGUAGE_FEATURES = ("encoder_languages", "decoder_languages")
TARGET_NUMBERS = "target_numbers"

# Those by which a target's tokens may see only what stands before them.
CAUSAL = ("clm", "span_corruption")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """What is predicted of a comment.

  Attributes:
    name: 'mlm' for masked tokens (`MaskingConfig` says which); 'clm' for each token
      from those before it; 'span_corruption' for spans taken out, T5's way; 'tlm' for
      masked tokens of a comment and its translation together; 'classify' for the
      comment's label, 'tag' for those of its tokens; 'regress' for the comment's
      number.
    noise_density: share of a comment's tokens in spans taken out.
    mean_span: mean tokens of such a span.
    predict_authors: whether 'clm' predicts the author's marker at a comment's front
      too; otherwise it is given.
    languages: what the data calls its languages; the k-th is language k + 1 of the
      model, which must have so many (`ModelConfig.num_languages`).
  """

  name: ObjectiveName = "mlm"
  noise_density: Annotated[float, Meta(ge=0.01, le=0.9)] = 0.15
  mean_span: Annotated[float, Meta(ge=1)] = 3.0
  predict_authors: bool = False
  languages: tuple[str, ...] = ()

  def __post_init__(self):
    check_fields(self)
    check_names("ObjectiveConfig", "languages", self.languages, "language")
    if self.name == "tlm" and not self.languages:
      raise UserError(
        "ObjectiveConfig.languages is missing: 'tlm' needs the languages of comments"
        " and translations, such as ('en', 'de')"
      )
    if self.languages and self.name in CAUSAL:
      raise UserError(
        f"ObjectiveConfig.languages = {self.languages!r}: {self.name!r} knows no"
        " languages; leave them out"
      )

  def named(self, name: str) -> ObjectiveConfig:
    """These settings for another objective, without what that one does not know."""
    languages = () if name in CAUSAL else self.languages
    known = cast(ObjectiveName, name)  # which the new object checks
    return dataclasses.replace(self, name=known, languages=languages)

  @property
  def optional_features(self) -> tuple[str, ...]:
    """Optional features that a batch of it has."""
    prefixes = (PREFIXES,) if self.name in CAUSAL else ()
    numbers = (TARGET_NUMBERS,) if self.name == "regress" else ()
    return prefixes + (LANGUAGE_FEATURES if self.languages else ()) + numbers

  def shares(self, masking_rate: float, length: int) -> tuple[float, int]:
    """Returns the share of decoder tokens predicted, and the most in one target.

    Args:
      masking_rate: `MaskingConfig.rate`.
      length: tokens of a decoder row.
    """
    if self.name in ("clm", "tag"):
      return 1.0, length
    if self.name in ("classify", "regress"):
      return 1 / length, 1
    if self.name == "span_corruption":
      shown = self.longest_corrupted(length)
      noise, spans = self.count_noise(shown)
      return (noise + spans + 1) / length, noise + spans + 1
    return masking_rate, max(1, round(masking_rate * length))

  def count_noise(self, length: int) -> tuple[int, int]:
    """Returns how many of so many tokens are taken out, and in how many spans."""
    if length < 2:
      return length, length
    noise = min(max(round(length * self.noise_density), 1), length - 1)
    spans = max(round(noise / self.mean_span), 1)
    return noise, min(spans, length - noise)

  def longest_corrupted(self, row: int) -> int:
    """Most tokens of a comment that fit a row with the spans taken out of it.

    A row holds what is left, a sentinel for each span, the start, and the spans with
    a sentinel in front of each.
    """
    length = row - 1
    while length > 0 and length + 2 * self.count_noise(length)[1] + 1 > row:
      length -= 1
    return length
