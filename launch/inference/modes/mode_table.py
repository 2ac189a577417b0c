"""Which modes there are, of which runs, and with which flags; light to import."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from commentree.errors import UserError

if TYPE_CHECKING:
  from commentree.launch.inference.modes.base import Mode
  from commentree.launch.inference.run_context import RunContext
  from commentree.launch.settings.configurables import RunConfig

_ALL = ("mlm", "tlm", "clm", "span_corruption", "classify", "tag", "regress")


@dataclasses.dataclass(frozen=True)
class ModeFacts:
  """What is known of a mode before anything heavy loads.

  Attributes:
    objectives: of the runs that can do it.
    options: its own flags.
    pools: whether runs must pool comments to vectors.
    exported: whether `commentree export` can write it.
  """

  objectives: tuple[str, ...]
  options: tuple[str, ...] = ()
  pools: bool = False
  exported: bool = True


MODES = {
  "fill": ModeFacts(("mlm", "tlm"), ("top_k", "mask")),
  "embed": ModeFacts(_ALL, ("contextual",), pools=True),
  # What is left to do behind the vectors, which `embed` has, is no computation of JAX.
  "rank": ModeFacts(_ALL, ("top_k", "candidates"), pools=True, exported=False),
  "score": ModeFacts(("mlm", "tlm", "clm"), ("attribution", "masks_apart")),
  "generate": ModeFacts(
    ("clm",),
    (
      "reply_to",
      "author",
      "mark",
      "seed",
      "max_tokens",
      "num_replies",
      "temperature",
      "top_k",
      "top_p",
      "beam_width",
      "length_penalty",
    ),
  ),
  "tag": ModeFacts(("tag",)),
  "classify": ModeFacts(("classify",)),
  "regress": ModeFacts(("regress",)),
}


def able(run: RunConfig) -> list[str]:
  """Returns the modes of a run."""
  objectives = set(run.data.objective_names)
  pools = run.model.context == "pooled"
  return [
    name
    for name, facts in MODES.items()
    if objectives & set(facts.objectives) and (pools or not facts.pools)
  ]


def check(mode: str, run: RunConfig, options: Mapping[str, Any]) -> None:
  """Makes sure that a run can do what is asked.

  Args:
    mode: what is asked.
    run: the run.
    options: flags that were given, by name.

  Raises:
    UserError: if not.
  """
  objectives, possible = run.data.objective_names, able(run)
  if mode not in possible:
    if MODES[mode].pools:
      raise UserError(
        f"--mode={mode}: is for runs that pool comments to vectors; this run's"
        f" ModelConfig.context is {run.model.context!r}, which can"
        f" {', '.join(possible)}"
      )
    raise UserError(
      f"--mode={mode}: is for runs of the objective"
      f" {' or '.join(MODES[mode].objectives)}; this run's is"
      f" {' and '.join(objectives)}, which can {', '.join(possible)}"
    )
  for option in options:
    if option not in MODES[mode].options:
      owners = [name for name, facts in MODES.items() if option in facts.options]
      raise UserError(
        f"--{option}: is of no use with --mode={mode}; it is for"
        f" --mode={' or '.join(owners)}"
      )


def make(
  mode: str, run: RunContext, ancestors: str = "true", options: Mapping[str, Any] = {}
) -> Mode:
  """Makes a mode that `check` has let pass.

  Args:
    mode: its name.
    run: the run.
    ancestors: which ancestors comments see.
    options: its own.

  Raises:
    UserError: if an option is out of range.
  """
  return _kind(mode, run)(run, ancestors, **options)


def with_defaults(
  mode: str, run: RunContext, options: Mapping[str, Any]
) -> dict[str, Any]:
  """A mode's own options, those that were not given too."""
  parameters = inspect.signature(_kind(mode, run)).parameters
  defaults = {name: parameters[name].default for name in MODES[mode].options}
  return {**defaults, **options}


def _kind(mode: str, run: RunContext) -> type[Any]:
  from commentree.launch.inference.modes import (
    classify,
    embed,
    fill,
    generate,
    rank,
    regress,
    score,
    tag,
  )

  kinds: dict[str, type[Any]] = {
    "fill": fill.Fill,
    "embed": embed.Embed,
    "rank": rank.Rank,
    "score": score.Likelihood if _is_causal(run) else score.PseudoLikelihood,
    "generate": generate.Generate,
    "tag": tag.Tag,
    "classify": classify.Classify,
    "regress": regress.Regress,
  }
  return kinds[mode]


def _is_causal(run: RunContext) -> bool:
  """Whether comments are scored in order: of a mixture, the first objective decides."""
  able = MODES["score"].objectives
  return next((n for n in run.objectives if n in able), None) == "clm"
