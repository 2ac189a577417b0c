"""The bench of `infer`'s modes times what a run can do, and nothing else."""

import json

import pytest

from commentree.launch.benchmarks import bench_modes
from commentree.tests.support.launch import made_runs

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.mark.long
def test_all_modes_of_a_run_are_timed_on_as_many_comments(tmp_path, capsys):
  run = made_runs.make(tmp_path, **{"ModelConfig.context": "none"})
  flags = [f"--model_dir={run}", "--comments=8", "--rounds=2", "--json"]
  assert bench_modes.main(flags) == 0
  rates = json.loads(capsys.readouterr().out)
  told = [(rate["mode"], rate["options"]) for rate in rates]
  assert told == [("fill", {}), ("score", {}), ("score", {"masks_apart": 8})]
  comments = {round(rate["comments_per_second"] * rate["seconds"]) for rate in rates}
  assert len(comments) == 1
  assert comments.pop() >= 8


@pytest.mark.parametrize(
  ("objective", "modes"),
  [
    ("mlm", ["embed", "embed", "fill", "score", "score"]),
    ("clm", ["embed", "embed", "score", "generate"]),
  ],
)
def test_modes_are_those_of_the_runs_objective(objective, modes):
  class Data:
    objective_names = (objective,)

  class Model:
    context = "pooled"

  class Config:
    data = Data
    model = Model

  class Run:
    config = Config

  class Loaded:
    run = Run

  assert [mode for mode, _ in bench_modes.possible(Loaded)] == modes
