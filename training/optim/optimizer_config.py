"""Settings of the optimizer and its schedule: plain data, importable without JAX."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from commentree.errors import UserError
from commentree.settings import (
  NonNegative,
  NonNegativeInt,
  PositiveInt,
  Share,
  check_fields,
  check_range,
)

Schedule = Literal["constant", "rsqrt", "linear", "cosine", "wsd"]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """The learning rate by step: a linear warm-up to `learning_rate`, then a decay.

  Attributes:
    name: what follows the warm-up. `constant`; `rsqrt`, the inverse square root of
      the step (T5); `linear` or `cosine` down to `final_share`; `wsd`, constant and
      then linear over the last `decay_share` of the steps.
    learning_rate: the peak.
    warmup_steps: steps to reach it.
    decay_steps: step at which the decay ends; the run's last step if None.
    decay_share: share of `decay_steps` that `wsd` spends decaying.
    final_share: learning rate at the end, as a share of the peak.
  """

  name: Schedule = "rsqrt"
  learning_rate: NonNegative = 0.01
  warmup_steps: NonNegativeInt = 1000
  decay_steps: PositiveInt | None = None
  decay_share: Share = 0.2
  final_share: Share = 0.0

  def __post_init__(self):
    check_fields(self)

  def last_decay_step(self, train_steps: int) -> int:
    """Returns the step at which the decay ends."""
    return train_steps if self.decay_steps is None else self.decay_steps

  def check_steps(self, train_steps: int) -> None:
    """Raises UserError if no step is left to decay in."""
    end = self.last_decay_step(train_steps)
    if self.name in ("linear", "cosine", "wsd") and self.warmup_steps >= end:
      raise UserError(
        f"ScheduleConfig.warmup_steps = {self.warmup_steps}: must be less than the"
        f" {end} steps of the {self.name} schedule; set WARMUP_STEPS"
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """An optax optimizer with clipping and decoupled weight decay.

  Attributes:
    name: `adafactor` (with T5's settings, which are optax's defaults), `adamw`, or
      any other optimizer of optax or optax.contrib that takes a learning rate.
    schedule: the learning rate.
    clip_norm: gradients are scaled down to this global norm; None for no clipping.
      'auto' is None for `adafactor`, which bounds each update itself and has no such
      clipping in T5's recipes, and 1 for all others.
    weight_decay: share of a parameter taken off per step, times the learning rate.
      Norms, biases and other vectors are excluded.
    kwargs: further arguments of the optax function, by name.
    learning_rate_rules: pairs of a regular expression and a multiple of the learning
      rate; the first that matches a parameter's whole name counts, 0 freezes. See
      docs/finetuning.md.
    layer_decay: what the multiple of each layer is to that of the layer above it.
    fresh_multiple: multiple of the learning rate for parameters of a warm start that
      its files have no array for and no rule of `learning_rate_rules` names.
  """

  name: str = "adafactor"
  schedule: ScheduleConfig = ScheduleConfig()
  clip_norm: Annotated[float, Meta(ge=1e-12)] | Literal["auto"] | None = "auto"
  weight_decay: NonNegative = 0.0
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  learning_rate_rules: tuple[tuple[str, float], ...] = ()
  layer_decay: Annotated[float, Meta(ge=1e-3, le=1)] = 1.0
  fresh_multiple: Annotated[float, Meta(ge=1e-3)] = 5.0

  def __post_init__(self):
    check_fields(self)
    if self.clip_norm == "auto":
      clip_norm = None if self.name == "adafactor" else 1.0
      object.__setattr__(self, "clip_norm", clip_norm)
    if not isinstance(self.name, str):
      raise UserError(f"OptimizerConfig.name = {self.name!r}: must be a name in quotes")
    rules = tuple(map(self._rule, self.learning_rate_rules))
    object.__setattr__(self, "learning_rate_rules", rules)

  @staticmethod
  def _rule(rule: Any) -> tuple[str, float]:
    """Checks a rule; gin hands over lists, and a frozen configuration hashes."""
    owner, field = "OptimizerConfig", "learning_rate_rules"
    if not (isinstance(rule, (list, tuple)) and len(rule) == 2):
      raise UserError(
        f"{owner}.{field} has {rule!r}: each must be (regular expression, multiple of"
        " the learning rate)"
      )
    pattern, multiple = rule
    check_range(owner, f"{field}[{pattern!r}]", multiple, 0)
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise UserError(
        f"{owner}.{field} has {pattern!r}, which is no regular expression: {error}"
      ) from error
    return pattern, float(multiple)
