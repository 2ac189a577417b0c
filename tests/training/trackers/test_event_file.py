"""TensorBoard reads the event files, which are written without TensorFlow."""

from __future__ import annotations

import subprocess
import sys

import pytest
from etils import epath
from tensorboard.backend.event_processing import event_accumulator, event_multiplexer
from tensorboard.util import tensor_util

from commentree.training.checkpointing import storage
from commentree.training.trackers import event_file, tensorboard
from commentree.training.trackers.tracker import TrackedRun


@pytest.fixture
def in_bucket(monkeypatch):
  """Lets local folders pass for those of a bucket; returns the files written whole."""
  written = []
  write_bytes = type(epath.Path()).write_bytes

  def note(file, data):
    written.append((file.name, len(data)))
    return write_bytes(file, data)

  monkeypatch.setattr(storage, "is_remote", lambda path: True)
  monkeypatch.setattr(type(epath.Path()), "write_bytes", note)
  return written


def curve(folder, name):
  """Returns (step, value) of a scalar as TensorBoard reads them."""
  # 0 keeps all values, which it otherwise samples.
  events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0}).Reload()
  content = events.SummaryMetadata(name).plugin_data.plugin_name
  assert content == "scalars"
  assert events.file_version == 2.0
  return [
    (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
    for event in events.Tensors(name)
  ]


@pytest.mark.long
def test_tensorboard_draws_the_conditions_of_a_scalar_in_one_chart(tmp_path):
  tracker = tensorboard.TensorBoard(storage.as_path(tmp_path))
  tracker.log_scalars(3, {"train/loss": 1.5})
  for condition in ("true", "none"):
    tracker.log_scalars(3, {"eval/held_out/loss": 2.5}, condition)
  tracker.finish(0)
  runs = event_multiplexer.EventMultiplexer()
  runs.AddRunsFromDirectory(str(tmp_path)).Reload()
  # Equal names of several runs are drawn in one chart.
  assert {run: found["tensors"] for run, found in runs.Runs().items()} == {
    ".": ["train/loss"],
    "true": ["eval/held_out/loss"],
    "none": ["eval/held_out/loss"],
  }


def test_scalars_are_in_a_local_file_at_once(tmp_path):
  file = event_file.EventFile(epath.Path(tmp_path))
  for step in (1, 2):
    file.write(step, {"loss": step / 4, "accuracy": 0.5})
    assert curve(tmp_path, "loss") == [(s, s / 4) for s in range(1, step + 1)]
  file.close()
  assert curve(tmp_path, "accuracy") == [(1, 0.5), (2, 0.5)]


def test_a_restart_goes_on_in_a_file_of_its_own(tmp_path):
  for steps in (range(3), range(3, 5)):
    file = event_file.EventFile(epath.Path(tmp_path))
    for step in steps:
      file.write(step, {"loss": float(step)})
    # As if killed.
    file._stream.flush()
  assert len(list(tmp_path.iterdir())) == 2
  assert curve(tmp_path, "loss") == [(step, float(step)) for step in range(5)]


def test_in_a_bucket_a_file_is_written_now_and_then_and_at_the_end(tmp_path, in_bucket):
  file = event_file.EventFile(epath.Path(tmp_path))
  file.write(1, {"loss": 0.25})
  assert in_bucket == []
  file._uploaded_at -= event_file._UPLOAD_SECONDS
  file.write(2, {"loss": 0.5})
  assert curve(tmp_path, "loss") == [(1, 0.25), (2, 0.5)]
  file.write(3, {"loss": 0.75})
  file.close()
  assert len(in_bucket) == 2
  assert curve(tmp_path, "loss") == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_in_a_bucket_no_file_grows_without_end(tmp_path, in_bucket, monkeypatch):
  monkeypatch.setattr(event_file, "_UPLOAD_SECONDS", 0.0)
  monkeypatch.setattr(event_file, "_UPLOAD_BYTES", 400)
  file = event_file.EventFile(epath.Path(tmp_path))
  for step in range(40):
    file.write(step, {"loss": float(step)})
  file.close()
  assert len(list(tmp_path.iterdir())) > 4
  assert max(size for _, size in in_bucket) < 600
  assert curve(tmp_path, "loss") == [(step, float(step)) for step in range(40)]


def test_the_settings_are_a_text_of_tensorboard(tmp_path):
  tracker = tensorboard.open_tracker(TrackedRun(epath.Path(tmp_path)))
  tracker.log_settings({"TrainConfig.batch_size": 8, "ModelConfig.pooling": "mean"})
  tracker.finish(0)
  events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  assert events.SummaryMetadata("settings").plugin_data.plugin_name == "text"
  (event,) = events.Tensors("settings")
  (table,) = event.tensor_proto.string_val
  assert table.decode().splitlines()[2:] == [
    "| ModelConfig.pooling | `'mean'` |",
    "| TrainConfig.batch_size | `8` |",
  ]


@pytest.mark.long
def test_no_tensorflow_is_loaded_to_write_metrics(tmp_path):
  code = f"""
import sys
from etils import epath
from commentree.training.trackers import tensorboard
tracker = tensorboard.TensorBoard(epath.Path({str(tmp_path)!r}))
tracker.log_settings({{"TrainConfig.batch_size": 8}})
tracker.log_scalars(1, {{"loss": 1.0}}, "true")
tracker.finish(0)
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True)
  assert curve(tmp_path / "true", "loss") == [(1, 1.0)]
