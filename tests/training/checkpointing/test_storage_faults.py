"""What becomes of a run whose storage refuses, hangs, or hands out something else."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

from commentree import local_files
from commentree.errors import StorageError, UserError
from commentree.tests.support import training as support
from commentree.tests.support.folders import names
from commentree.training.checkpointing import (
  checkpoints,
  model_dir_lock,
  s3,
  saving,
  storage,
)
from commentree.training.config import CheckpointConfig
from commentree.training.reports import metrics_log
from commentree.training.reports.metrics_log import MetricsLog, read
from commentree.training.state import TrainState
from commentree.training.trackers import background, event_file
from commentree.training.trackers.tracker import TrackedRun


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
  monkeypatch.setattr(storage, "_PAUSES_SECONDS", (0.01,))


@pytest.fixture
def open_folder(tmp_path, lines):
  opened = []

  def make(**settings) -> checkpoints.Checkpoints:
    saved = checkpoints.Checkpoints(
      storage.as_path(tmp_path / "run"), CheckpointConfig(**settings), lines.append
    )
    opened.append(saved)
    return saved

  yield make
  for saved in opened:
    saved.close()


def state_of(step: int, rows: int = 64) -> TrainState:
  values = np.random.default_rng(step).normal(size=(rows, 256)).astype("f4")
  params = {"kernel": jnp.asarray(values), "bias": jnp.zeros(3)}
  return TrainState(jnp.int32(step), params, {"count": jnp.int32(step)})


def like(state: TrainState | None = None) -> TrainState:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state or state_of(0),
  )


def save(saved: checkpoints.Checkpoints, *steps: int) -> None:
  for step in steps:
    saved.save(state_of(step), step, {"next": step}, None)
  saved.wait()


class Failing:
  """Raises an error at the first calls of what it stands for."""

  def __init__(self, act, error: Exception, times: int):
    self.act, self.error, self.times, self.calls = act, error, times, 0

  def __get__(self, owner, kind=None):
    return lambda *args, **kwargs: self(owner, *args, **kwargs)

  def __call__(self, *args, **kwargs):
    self.calls += 1
    if self.calls <= self.times:
      raise self.error
    return self.act(*args, **kwargs)


def full() -> OSError:
  return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- Saving -----------------------------------------------------------------------


@contextlib.contextmanager
def no_large_files():
  """The system refuses to let any file grow over 16 KiB, this process's output too."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_no_more_can_be_written_the_run_stops_with_the_last_good_checkpoint(
  open_folder, lines, tmp_path
):
  saved = open_folder()
  save(saved, 1)
  with no_large_files():
    for step in (2, 3):
      saved.save(state_of(step), step, {}, None)
    with pytest.raises(StorageError) as raised:
      saved.wait()
  assert "checkpoint 3 cannot be saved in" in str(raised.value)
  assert "File too large" in str(raised.value)
  assert f"last good checkpoint is {tmp_path}/run/checkpoint_1" in str(raised.value)
  assert [line.partition(" (")[0] for line in lines] == [
    "checkpoint 2 was not saved",
    "checkpoint 3 was not saved",
  ]
  assert not any("\n" in line for line in [*lines, str(raised.value)])
  assert names(tmp_path / "run") == ["checkpoint_1"]


@pytest.mark.parametrize("part", ["_make_folder", "_write_part", "_commit"])
def test_a_save_that_fails_once_is_made_up_for(
  open_folder, lines, tmp_path, monkeypatch, part
):
  failing = Failing(getattr(saving.Writing, part), full(), 1)
  monkeypatch.setattr(saving.Writing, part, failing)
  saved = open_folder()
  save(saved, 1)
  assert failing.calls == 2
  assert names(tmp_path / "run") == ["checkpoint_1"]
  assert len(lines) == 1
  assert "No space left on device" in lines[0]
  assert open_folder().restore(like()).data_state == {"next": 1}


def test_a_folder_that_is_filled_while_it_is_removed_is_removed_again(
  open_folder, lines, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    saving.Writing, "_commit", Failing(saving.Writing._commit, full(), 1)
  )
  not_empty = OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
  kind = type(storage.as_path(tmp_path))
  failing = Failing(kind.rmtree, not_empty, 1)
  monkeypatch.setattr(kind, "rmtree", failing)
  save(open_folder(), 1)
  assert failing.calls == 2
  assert names(tmp_path / "run") == ["checkpoint_1"]
  assert "Directory not empty" not in lines[0]


def test_a_failed_save_is_due_again_at_once(open_folder, monkeypatch):
  monkeypatch.setattr(
    saving.Writing, "_commit", Failing(saving.Writing._commit, full(), 1)
  )
  saved = open_folder()
  saved.save(state_of(1), 1, {}, None)
  saved._writing.join()
  storage.time.sleep(0.05)
  assert saved.due_by_time()
  saved.save(state_of(2), 2, {}, None)
  assert saved.wait().name == "checkpoint_2"
  assert not saved.due_by_time()


def test_a_donated_state_is_not_saved_again(open_folder, monkeypatch):
  monkeypatch.setattr(
    saving.Writing, "_commit", Failing(saving.Writing._commit, full(), 1)
  )
  saved, state = open_folder(), state_of(1)
  saved.save(state, 1, {}, None)
  jax.tree.map(lambda leaf: leaf.delete(), state)
  assert checkpoints.is_deleted(state)
  assert saved.wait() is None


def test_an_old_checkpoint_that_cannot_be_removed_is_said(
  open_folder, lines, tmp_path, monkeypatch
):
  error = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
  monkeypatch.setattr(saving, "remove", Failing(saving.remove, error, 1))
  save(open_folder(keep=1), 1, 2, 3)
  assert names(tmp_path / "run") == ["checkpoint_1", "checkpoint_3"]
  assert lines == [
    "checkpoint 1 is not needed, but stays (Operation not permitted)",
  ]


def test_minutes_make_a_save_due(open_folder):
  assert not open_folder().due_by_time()
  assert not open_folder(period_minutes=1.0).due_by_time()
  saved = open_folder(period_minutes=1.0)
  saved._last_begun -= 61
  assert saved.due_by_time()
  save(saved, 1)
  assert not saved.due_by_time()


def test_saves_slower_than_their_period_are_said_once(open_folder, lines, monkeypatch):
  commit = saving.Writing._commit
  monkeypatch.setattr(checkpoints, "_SLOW_SECONDS", 0.05)
  monkeypatch.setattr(
    saving.Writing, "_commit", lambda self: (storage.time.sleep(0.2), commit(self))
  )
  save(open_folder(), 1, 2, 3)
  (line,) = lines
  assert "longer than the time to the next, 2" in line


@pytest.mark.long
@pytest.mark.parametrize("part", ["_write_part", "_commit"])
def test_a_process_whose_save_hangs_says_so_and_ends(tmp_path, part):
  script = pathlib.Path(support.__file__).with_name("run_stuck_save.py")
  result = subprocess.run(
    [sys.executable, str(script), str(tmp_path), part],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert result.returncode == 74, result.stderr
  assert f"checkpoint 2 is not in {tmp_path} after" in result.stdout
  assert f"last good checkpoint is {tmp_path}/checkpoint_1" in result.stdout
  assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_written_is_said_at_the_start():
  with pytest.raises(UserError, match="MODEL_DIR /sys/run cannot be written"):
    storage.check_shared(storage.as_path("/sys/run"))


# ---- Reading ----------------------------------------------------------------------


def an_array_file(checkpoint: pathlib.Path) -> pathlib.Path:
  files = (checkpoint / "state" / "ocdbt.process_0" / "d").iterdir()
  return max(files, key=lambda file: file.stat().st_size)


def flip_a_bit(file: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def cut(file: pathlib.Path) -> None:
  os.truncate(file, file.stat().st_size // 2)


def empty(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGES = {
  "truncated": (lambda c: cut(an_array_file(c)), "bytes of"),
  "missing": (lambda c: an_array_file(c).unlink(), "is missing"),
  "flipped": (lambda c: flip_a_bit(an_array_file(c)), "not hold the bytes"),
  "no metadata": (lambda c: (c / "state" / "_METADATA").unlink(), "_METADATA is"),
  "no data state": (lambda c: shutil.rmtree(c / "dataset"), "dataset/metadata is"),
  "empty": (empty, "_METADATA"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(
  open_folder, lines, tmp_path, damage
):
  save(open_folder(), 1, 2)
  act, message = DAMAGES[damage]
  act(tmp_path / "run" / "checkpoint_2")
  restored = open_folder().restore(like())
  np.testing.assert_array_equal(
    restored.state.params["kernel"], state_of(1).params["kernel"]
  )
  (line,) = lines
  assert line.startswith("checkpoint_2 cannot be read")
  assert line.endswith("now unreadable_checkpoint_2")
  assert message in line
  assert names(tmp_path / "run") == ["checkpoint_1", "unreadable_checkpoint_2"]


# Orbax leaves the reads of the other arrays to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_a_list_of_sums_damage_is_noticed_where_tensorstore_does(
  open_folder, tmp_path
):
  save(open_folder(), 1, 2)
  newest = tmp_path / "run" / "checkpoint_2"
  (newest / "checksums.json").unlink()
  an_array_file(newest).unlink()
  assert open_folder().restore(like()).path.name == "checkpoint_1"
  gc.collect()


def test_a_storage_that_refuses_for_a_moment_is_asked_again(
  open_folder, lines, tmp_path
):
  save(open_folder(), 1, 2)
  saved = open_folder()
  error = OSError(errno.EIO, os.strerror(errno.EIO))
  saved._handler.restore = Failing(saved._handler.restore, error, 2)
  assert saved.restore(like()).path.name == "checkpoint_2"
  assert len(lines) == 2
  saved = open_folder()
  saved._handler.restore = Failing(saved._handler.restore, error, 9)
  with pytest.raises(StorageError, match="checkpoint_2 cannot be read"):
    saved.restore(like())
  assert names(tmp_path / "run") == ["checkpoint_1", "checkpoint_2"]


def test_a_file_that_shows_late_is_no_damage(open_folder, tmp_path):
  save(open_folder(), 1, 2)
  saved = open_folder()
  saved._handler.metadata = Failing(saved._handler.metadata, FileNotFoundError("d"), 1)
  assert saved.restore(like()).path.name == "checkpoint_2"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda s: s.replace(params={**s.params, "kernel": jnp.zeros((32, 256))}),
      r"target\.kernel has shape \(64, 256\) there, \(32, 256\) here",
    ),
    (
      lambda s: s.replace(params={"kernel": s.params["kernel"]}, optimizer={}),
      r"state\.param_states\.count is only there, target\.bias is only there",
    ),
    (
      lambda s: s.replace(
        params={**s.params, "bias": jnp.zeros(3, jnp.bfloat16), "new": jnp.zeros(1)}
      ),
      r"target\.bias is float32 there, bfloat16 here, target\.new is not there",
    ),
  ],
)
def test_another_models_checkpoint_is_refused_and_left_as_it_is(
  open_folder, tmp_path, change, message
):
  save(open_folder(), 1, 2)
  with pytest.raises(UserError, match=message):
    open_folder().restore(like(change(state_of(0))))
  assert names(tmp_path / "run") == ["checkpoint_1", "checkpoint_2"]


# ---- Buckets ----------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder that is treated as one in a bucket: nothing is renamed or appended to."""
  monkeypatch.setattr(storage, "is_remote", lambda path: str(tmp_path) in str(path))
  (tmp_path / "run").mkdir()
  return tmp_path / "run"


def test_in_a_bucket_what_is_not_marked_as_whole_does_not_count(
  open_folder, lines, bucket
):
  save(open_folder(), 1, 2)
  (bucket / "checkpoint_2" / "commit_success.txt").unlink()
  assert open_folder().restore(like()).path.name == "checkpoint_1"
  assert names(bucket) == ["checkpoint_1"]
  assert "checkpoint 2 was still being written" in lines[0]


def test_in_a_bucket_a_damaged_checkpoint_is_marked_and_written_anew(
  open_folder, lines, bucket
):
  save(open_folder(), 1, 2)
  (bucket / "checkpoint_2" / "state" / "_METADATA").unlink()
  saved = open_folder()
  assert saved.restore(like()).path.name == "checkpoint_1"
  assert lines[0].endswith("no longer used, and marked by unreadable.txt")
  assert open_folder().restore(like()).path.name == "checkpoint_1"
  assert names(bucket) == ["checkpoint_1", "checkpoint_2"]
  save(saved, 2)
  assert open_folder().restore(like()).path.name == "checkpoint_2"


def test_in_a_bucket_metrics_are_written_whole_now_and_then(bucket, monkeypatch):
  file = bucket / "metrics.jsonl"
  log = MetricsLog(file, 0)
  log.write({"kind": "train", "step": 1})
  log.sync()
  assert not file.exists()
  log.sync(upload=True)
  assert [row["step"] for row in read(file)] == [1]
  monkeypatch.setattr(metrics_log, "_UPLOAD_SECONDS", 0.0)
  log.write({"kind": "train", "step": 2})
  log.sync()
  assert [row["step"] for row in read(file)] == [1, 2]
  log.write({"kind": "train", "step": 3})
  log.close()
  MetricsLog(file, 2).close()
  assert [row["step"] for row in read(file)] == [1, 2]


def test_orbax_writes_to_s3_as_the_environment_says(monkeypatch):
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here:1")
  monkeypatch.setenv("AWS_REGION", "eu-north-1")
  s3.teach_orbax()
  build = tensorstore_utils.build_kvstore_tspec
  assert build("s3://bucket/run/state")["base"] == {
    "driver": "s3",
    "bucket": "bucket",
    "path": "run/state",
    "endpoint": "http://here:1",
    "aws_region": "eu-north-1",
  }
  assert build("gs://bucket/run")["base"]["driver"] == "gcs"
  assert build("/run")["base"]["driver"] == "file"


# ---- What else is written ---------------------------------------------------------


def test_metrics_that_cannot_be_written_for_a_moment_are_written_once(
  tmp_path, lines, monkeypatch
):
  log = MetricsLog(tmp_path / "metrics.jsonl", 0, lines.append)
  log.write({"kind": "train", "step": 1})
  log.sync()
  failing = Failing(os.fsync, full(), 1)
  monkeypatch.setattr(os, "fsync", failing)
  log.write({"kind": "train", "step": 2})
  log.sync()
  assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2]
  assert "metrics.jsonl cannot be written (" in lines[0]
  failing.times = 99
  log.write({"kind": "train", "step": 3})
  with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written .*3 times"):
    log.sync()
  log.close()


def test_training_goes_on_without_tensorboard(
  tmp_path, lines, monkeypatch, make_config
):
  monkeypatch.setattr(event_file.EventFile, "write", Failing(None, full(), 9))
  (tracker,) = background.open_trackers(
    make_config(trackers=("tensorboard",)),
    TrackedRun(storage.as_path(tmp_path)),
    {},
    lines.append,
  )
  for step in range(3):
    tracker.log_scalars(step, {"loss": 1.0})
  tracker.finish(0)
  assert lines == [
    "tracker 'tensorboard' (No space left on device): training continues without it"
  ]


def test_where_there_are_no_locks_a_lease_keeps_others_out(tmp_path, monkeypatch):
  error = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
  monkeypatch.setattr(local_files.fcntl, "flock", Failing(None, error, 99))
  monkeypatch.setattr(model_dir_lock, "_RENEW_SECONDS", 0.05)
  monkeypatch.setattr(model_dir_lock, "_STALE_SECONDS", 0.5)
  folder = storage.as_path(tmp_path)
  with (
    model_dir_lock.exclusive(folder),
    pytest.raises(UserError, match="another process is training"),
    model_dir_lock.exclusive(folder),
  ):
    pass
  assert not (tmp_path / ".lease.json").exists()
  (tmp_path / ".lease.json").write_text('{"holder": "killed"}')
  with model_dir_lock.exclusive(folder):
    pass


def test_paths_that_cannot_be_used_are_refused_without_repeating_secrets(monkeypatch):
  with pytest.raises(UserError, match="azure:// is not supported"):
    storage.as_path("azure://bucket/run")
  with pytest.raises(UserError) as raised:
    storage.as_path("s3://me:secret@bucket/run")
  assert "secret" not in str(raised.value)
  monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="needs s3fs"):
    storage.as_path("s3://bucket/run")
