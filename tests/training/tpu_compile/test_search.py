"""The search's order and pruning, with reports that are made up."""

from __future__ import annotations

import types

import pytest

from commentree.errors import UserError
from commentree.training.tpu_compile import ahead_of_time, search
from commentree.training.tpu_compile.compiled_report import CompiledReport, Memory
from commentree.training.tpu_compile.search import Candidate

GIB = 2**30
LIMIT = 16 * GIB


def report(needed: int, rate: float) -> CompiledReport:
  fits = needed <= LIMIT
  return CompiledReport(
    program="train",
    topology="v5e:2x2",
    num_slices=1,
    chips=4,
    devices=4,
    mesh={"data": 4},
    parameters=1,
    batch_size=4,
    comments=100,
    fits=fits,
    memory=Memory(arguments=1, needed=needed, limit=LIMIT),
    model_flops=1.0,
    compile_seconds=1.0,
    step_seconds=1.0 if fits else None,
    comments_per_second_per_chip=rate if fits else None,
    utilization=0.3,
  )


@pytest.fixture
def compiler(monkeypatch):
  """A compiler: memory grows with the batch, the rate up to 4 forests; what it saw."""
  seen: list[Candidate] = []

  def plan_for(candidate: Candidate):
    if candidate.preset == "tp":
      raise UserError("model_parallel = 3: must divide")
    arguments = 20 * GIB if candidate.preset == "fsdp_tp" else GIB
    return types.SimpleNamespace(
      candidate=candidate,
      argument_bytes=lambda program: arguments,
      topology=types.SimpleNamespace(chip=types.SimpleNamespace(hbm_bytes=LIMIT)),
    )

  def compile_program(plan, effort=None):
    candidate = plan.candidate
    seen.append(candidate)
    if candidate.preset == "fsdp":
      raise RuntimeError("INTERNAL: of the compiler's\nown")
    forests = candidate.forests_per_device
    each = {"none": 6, "full": 1}[candidate.remat_policy]
    speed = {"none": 100, "full": 70}[candidate.remat_policy]
    return report(each * forests * GIB, speed * min(forests, 4))

  monkeypatch.setattr(ahead_of_time, "compile_program", compile_program)
  return plan_for, seen


def run(compiler, presets, remats=("none", "full"), forests=(1, 2, 4, 8, 16)):
  lines: list[str] = []
  groups = search.series([(name, 1) for name in presets], remats, forests)
  return search.search(groups, compiler[0], lines.append), lines


def test_the_fastest_that_fits_is_recommended(compiler):
  outcomes, _ = run(compiler, ["dp"])
  best = search.fastest(outcomes)
  # Without remat two forests fit, at 200; with it four, at 280.
  assert best.candidate == Candidate("dp", 1, "full", 4)


def test_batches_larger_than_one_that_does_not_fit_are_not_tried(compiler):
  run(compiler, ["dp"], remats=("none",))
  assert [c.forests_per_device for c in compiler[1]] == [1, 2, 4]


def test_batches_larger_than_one_no_faster_are_not_tried(compiler):
  run(compiler, ["dp"], remats=("full",))
  assert [c.forests_per_device for c in compiler[1]] == [1, 2, 4, 8]


def test_what_cannot_fit_for_its_arguments_is_not_compiled(compiler):
  outcomes, _ = run(compiler, ["fsdp_tp"])
  assert not compiler[1]
  assert all("alone" in outcome.why for outcome in outcomes)


def test_a_candidate_that_fails_is_a_row_not_the_end(compiler):
  outcomes, _ = run(compiler, ["tp", "fsdp", "dp"], remats=("full",))
  whys = {outcome.candidate.preset: outcome.why for outcome in outcomes}
  assert "must divide" in whys["tp"]
  assert whys["fsdp"].startswith("does not compile: INTERNAL")
  assert "\n" not in whys["fsdp"]
  assert search.fastest(outcomes).candidate.preset == "dp"


def test_nothing_is_recommended_where_nothing_fits(compiler):
  outcomes, _ = run(compiler, ["fsdp_tp", "tp"])
  assert search.fastest(outcomes) is None


def test_each_outcome_is_told_with_what_is_left_at_most(compiler):
  outcomes, lines = run(compiler, ["dp"], remats=("none", "full"), forests=(1, 2))
  assert len(lines) == len(outcomes) == 4
  assert "3 left" in lines[0]
  assert "left" not in lines[-1]


def test_the_table_shows_the_fastest_first(compiler):
  outcomes, _ = run(compiler, ["tp", "dp"])
  first = search.table(outcomes).columns
  assert [next(iter(column.cells)) for column in first[:3]] == ["dp", "full", "4"]


@pytest.mark.parametrize(
  ("needed", "suffices"), [(LIMIT, True), (LIMIT + 1, False), (None, False)]
)
def test_a_program_that_compiles_but_needs_more_than_there_is_does_not_fit(
  needed, suffices
):
  assert Memory(arguments=1, needed=needed, limit=LIMIT).suffices is suffices
