"""The real MLflow, with its store of files."""

from __future__ import annotations

import pytest
from etils import epath

from commentree.training.trackers import background
from commentree.training.trackers.tracker import TrackedRun

mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
  for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID"):
    monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  before = mlflow.get_tracking_uri()
  mlflow.set_tracking_uri((tmp_path / "store").as_uri())
  yield mlflow.MlflowClient()
  mlflow.set_tracking_uri(before)


def log(make_config, folder, steps, exit_code=0):
  """Reports steps; returns the lines told to the user."""
  lines = []
  (tracker,) = background.open_trackers(
    make_config(trackers=("mlflow",)),
    TrackedRun(epath.Path(folder), "trees"),
    {"TrainConfig.batch_size": 8, "axis_rules": "x" * 6000},
    lines.append,
  )
  for step in steps:
    tracker.log_scalars(step, {"train/loss": step / 4})
    tracker.log_scalars(step, {"eval/held_out/by_depth/10+/loss": step / 8}, "none")
  tracker.finish(exit_code)
  return lines


def test_a_run_is_logged_and_goes_on_in_the_same_one_after_a_restart(
  make_config, tmp_path, store
):
  folder = tmp_path / "mine"
  assert log(make_config, folder, (1, 2), exit_code=143) == []
  (experiment,) = [e for e in store.search_experiments() if e.name == "trees"]
  (run,) = store.search_runs([experiment.experiment_id])
  assert run.info.status == "KILLED"
  assert log(make_config, folder, (3,)) == []
  (run,) = store.search_runs([experiment.experiment_id])
  assert run.info.status == "FINISHED"
  assert run.info.run_name == "mine"
  assert run.data.params["TrainConfig.batch_size"] == "8"
  losses = store.get_metric_history(run.info.run_id, "train/loss")
  assert [(m.step, m.value) for m in losses] == [(s, s / 4) for s in (1, 2, 3)]
  name = "eval/held_out/by_depth/10_/loss/none"
  assert store.get_metric_history(run.info.run_id, name)[-1].value == 3 / 8


def test_two_folders_are_two_runs(make_config, tmp_path, store):
  for name in ("one", "two"):
    assert log(make_config, tmp_path / name, (1,)) == []
  (experiment,) = [e for e in store.search_experiments() if e.name == "trees"]
  names = {run.info.run_name for run in store.search_runs([experiment.experiment_id])}
  assert names == {"one", "two"}


def test_a_run_that_is_gone_is_one_line(make_config, tmp_path):
  (tmp_path / "trackers").mkdir()
  (tmp_path / "trackers" / "mlflow.txt").write_text("0" * 32)
  (line,) = log(make_config, tmp_path, (1,))
  assert line.startswith("tracker 'mlflow' (")
  assert "training continues without it" in line
