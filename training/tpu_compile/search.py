"""Which settings are fastest on a slice: many compiled, the best that fits told.

Settings that cannot fit, or cannot be faster, are left out: a larger batch than one
that did not fit, or than one that was no faster than a smaller.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.table import Table

from commentree.errors import UserError
from commentree.models.config import RematPolicy
from commentree.training.tpu_compile import ahead_of_time
from commentree.training.tpu_compile.ahead_of_time import CompilePlan
from commentree.training.tpu_compile.compiled_report import CompiledReport
from commentree.training.tpu_compile.tpu_chips import GIB

# A larger batch must be so much faster for still larger ones to be tried.
_WORTH = 1.01


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings to try.

  Attributes:
    preset: of `config.PRESETS`.
    model_parallel: devices that share the work on an example.
    remat_policy: what is computed again for gradients.
    forests_per_device: the global batch over all devices.
  """

  preset: str
  model_parallel: int
  remat_policy: RematPolicy
  forests_per_device: int

  def __str__(self) -> str:
    shared = f" of {self.model_parallel}" if self.model_parallel > 1 else ""
    return (
      f"{self.preset}{shared}, remat {self.remat_policy},"
      f" {self.forests_per_device} forests a device"
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a candidate.

  Attributes:
    candidate: the settings.
    report: of the compiled train step, None if it was not compiled.
    why: why there is no report; empty if there is.
  """

  candidate: Candidate
  report: CompiledReport | None
  why: str = ""

  @property
  def rate(self) -> float:
    """Comments a second and chip, 0 for what does not fit."""
    if self.report is None or not self.report.fits:
      return 0.0
    return self.report.comments_per_second_per_chip or 0.0

  def describe(self) -> str:
    """Returns the outcome in some words."""
    if self.report is None:
      return self.why
    if not self.report.fits:
      return self.report.verdict()
    return (
      f"{self.rate:,.0f} comments/s/chip, {(self.report.memory.needed or 0) / GIB:.1f}"
      " GiB"
    )

  def to_json(self) -> dict[str, Any]:
    """Returns the outcome as JSON has it."""
    return {
      "candidate": dataclasses.asdict(self.candidate),
      "report": self.report.to_json() if self.report else None,
      "why": self.why,
    }


def series(
  presets: Sequence[tuple[str, int]],
  remat_policies: Sequence[RematPolicy],
  forests_per_device: Sequence[int],
) -> list[list[Candidate]]:
  """Returns the candidates, those that differ in the batch alone together, by size.

  Args:
    presets: name and model-parallel devices.
    remat_policies: names.
    forests_per_device: batch sizes.
  """
  return [
    [
      Candidate(preset, parallel, remat, forests)
      for forests in sorted(set(forests_per_device))
    ]
    for (preset, parallel), remat in itertools.product(presets, remat_policies)
  ]


def search(
  groups: Sequence[Sequence[Candidate]],
  plan_for: Callable[[Candidate], CompilePlan],
  say: Callable[[str], None],
  effort: ahead_of_time.Effort | None = None,
) -> list[Outcome]:
  """Compiles the candidates; none of them ends the search by failing.

  Args:
    groups: what `series` returned.
    plan_for: makes the plan of a candidate; a UserError counts as its outcome.
    say: told of each outcome, and of the time left at most.
    effort: of the compiler; see `ahead_of_time.compile_program`.
  """
  outcomes: list[Outcome] = []
  started = time.monotonic()
  compiled = 0
  for number, group in enumerate(groups):
    later = sum(map(len, groups[number + 1 :]))
    for place, outcome in enumerate(_try_in_turn(group, plan_for, effort)):
      outcomes.append(outcome)
      compiled += outcome.report is not None
      pace = (time.monotonic() - started) / max(1, compiled)
      left = _left(later + len(group) - place - 1, pace)
      say(f"{outcome.candidate}: {outcome.describe()}{left}")
  return outcomes


def _left(candidates: int, seconds_each: float) -> str:
  if not candidates:
    return ""
  minutes = candidates * seconds_each / 60
  return f" ({candidates} left, {minutes:,.0f} min at most)"


def _try_in_turn(
  group: Sequence[Candidate],
  plan_for: Callable[[Candidate], CompilePlan],
  effort: ahead_of_time.Effort | None,
) -> Iterator[Outcome]:
  """Tries larger and larger batches until that is of no use."""
  best = 0.0
  for candidate in group:
    outcome = _try(candidate, plan_for, effort)
    yield outcome
    if outcome.rate < best * _WORTH or not outcome.rate:
      return
    best = outcome.rate


def _try(
  candidate: Candidate,
  plan_for: Callable[[Candidate], CompilePlan],
  effort: ahead_of_time.Effort | None,
) -> Outcome:
  try:
    plan = plan_for(candidate)
    needed, limit = plan.argument_bytes("train"), plan.topology.chip.hbm_bytes
    if needed > limit:
      return Outcome(
        candidate,
        None,
        f"does not fit: parameters, optimizer state and batch alone are"
        f" {needed / GIB:.2f} of {limit / GIB:.2f} GiB",
      )
    return Outcome(candidate, ahead_of_time.compile_program(plan, effort=effort))
  except UserError as error:
    return Outcome(candidate, None, str(error))
  except Exception as error:  # of the compiler: one row, not the end
    reason = " ".join(str(error).split())[:200]
    return Outcome(candidate, None, f"does not compile: {reason}")


def fastest(outcomes: Sequence[Outcome]) -> Outcome | None:
  """Returns the fastest that fits, None if nothing does."""
  best = max(outcomes, key=lambda outcome: outcome.rate, default=None)
  return best if best is not None and best.rate else None


def table(outcomes: Sequence[Outcome]) -> Table:
  """Returns the outcomes, the fastest first."""
  rendered = Table(title="settings tried, fastest first", title_justify="left")
  for heading in ("partitioning", "remat"):
    rendered.add_column(heading)
  for heading in ("forests/device", "GiB", "step ms", "comments/s/chip", "MFU"):
    rendered.add_column(heading, justify="right")
  for outcome in sorted(outcomes, key=lambda outcome: -outcome.rate):
    tried, report = outcome.candidate, outcome.report
    name = tried.preset
    if tried.model_parallel > 1:
      name += f" of {tried.model_parallel}"
    cells = [name, tried.remat_policy, str(tried.forests_per_device)]
    needed = report.memory.needed if report else None
    cells.append(f"{needed / GIB:.1f}" if needed else "-")
    if outcome.rate and report:
      cells += [
        f"{1e3 * (report.step_seconds or 0):,.1f}",
        f"{outcome.rate:,.0f}",
        f"{report.utilization or 0:.1%}",
      ]
    else:
      cells += ["does not fit" if report else "not compiled", "-", "-"]
    rendered.add_row(*cells)
  return rendered
