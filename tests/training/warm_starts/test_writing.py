"""Checkpoints for T5X and back, read by msgpack, TensorStore and Orbax alone."""

from __future__ import annotations

import json

import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from commentree.errors import StorageError, UserError
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.tests.support.training.warm_starts import written_by_t5x
from commentree.training import train as trainer
from commentree.training.checkpointing import checkpoints, storage
from commentree.training.config import CheckpointConfig
from commentree.training.warm_starts import sources, writing
from commentree.training.warm_starts.formats import array_source


def converted(source, target, form):
  opened = sources.open_source(source)
  writing.write(opened, epath.Path(target), form, writing.data_state(opened.path))
  return target


def flat(tree, prefix=""):
  found = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
  return found


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name, values in expected.items():
    assert np.asarray(found[name]).dtype == np.asarray(values).dtype, name
    np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture
def trained(make_config, model, console, tmp_path):
  """Returns the folder of a checkpoint that a run of ours wrote."""
  config = make_config(train_steps=3)
  trainer.train(config, model, lambda share: stub.Batches(share), {}, console=console)
  return tmp_path / "run" / "checkpoint_3"


def test_t5xs_form_to_orbax_and_back_changes_no_number(tmp_path):
  arrays = written_by_t5x.t5_arrays()
  native = written_by_t5x.write(tmp_path / "checkpoint_1000", arrays)
  orbax = converted(native, tmp_path / "orbax" / "checkpoint_1000", "orbax")
  with ocp.PyTreeCheckpointer() as plain:
    assert_same(flat(plain.restore(orbax / "state")), arrays)
  back = converted(orbax, tmp_path / "back" / "checkpoint_1000", "t5x_native")
  assert_same(written_by_t5x.read(back), arrays)
  assert_same(written_by_t5x.read(back), written_by_t5x.read(native))


def test_a_checkpoint_of_ours_in_t5xs_form_is_as_t5x_wants_it(trained, tmp_path):
  native = converted(trained, tmp_path / "t5x" / "checkpoint_3", "t5x_native")
  with ocp.PyTreeCheckpointer() as plain:
    assert_same(written_by_t5x.read(native), flat(plain.restore(trained / "state")))
  tree = msgpack.unpackb((native / "checkpoint").read_bytes())
  assert set(tree) == {"version", "optimizer"}
  assert set(tree["optimizer"]) == {"target", "state"}
  assert set(tree["optimizer"]["state"]) == {"step", "param_states"}
  # T5X looks for it there, as for all that it does not share out.
  assert isinstance(tree["optimizer"]["state"]["step"], msgpack.ExtType)
  spec = tree["optimizer"]["target"]["kernel"]
  assert spec["driver"] == "zarr"
  assert spec["kvstore"] == {"driver": "file", "path": "target.kernel/"}
  assert spec["dtype"] == "float32"
  assert spec["metadata"] == {
    "chunks": [8, 32],
    "compressor": {"id": "gzip", "level": 1},
    "shape": [8, 32],
  }


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_by_way_of_t5xs_form(
  trained, make_config, model, console, tmp_path
):
  native = converted(trained, tmp_path / "t5x" / "checkpoint_3", "t5x_native")
  back = converted(native, tmp_path / "other" / "checkpoint_3", "orbax")

  def losses(model_dir):
    config = make_config(train_steps=5, model_dir=str(model_dir))
    outcome = trainer.train(
      config, model, lambda share: stub.Batches(share), {}, console=console
    )
    return outcome["train"]["loss"]

  assert losses(back.parent) == losses(trained.parent)
  assert f"restored step 3 from {back}" in printed(console)


def test_from_t5xs_form_data_begin_at_their_beginning(tmp_path):
  arrays = {"target.w": np.ones((2, 3), np.float32), "state.step": np.int32(0)}
  native = written_by_t5x.write(tmp_path / "n" / "checkpoint_0", arrays)
  orbax = converted(native, tmp_path / "o" / "checkpoint_0", "orbax")
  assert json.loads((orbax / "dataset" / "metadata").read_text()) == {}


@pytest.mark.parametrize("form", writing.FORMS)
def test_what_is_there_stays_and_a_name_must_tell_a_step(tmp_path, form):
  arrays = {"target.w": np.ones((2, 3), np.float32)}
  source = written_by_t5x.write(tmp_path / "checkpoint_9", arrays)
  taken = tmp_path / "t" / "checkpoint_1"
  (taken / "mine").mkdir(parents=True)
  with pytest.raises(UserError, match="is there already"):
    converted(source, taken, form)
  assert [entry.name for entry in taken.iterdir()] == ["mine"]
  with pytest.raises(UserError, match="name it checkpoint_<step>"):
    converted(source, tmp_path / "t" / "mine", form)


class Breaking:
  """Arrays of which the last cannot be read."""

  path, kind = epath.Path("/breaking"), "arrays"

  def __init__(self, error):
    self.arrays = {
      f"target.{name}": array_source.ArraySpec((4, 4), np.dtype("f4")) for name in "abc"
    }
    self._error = error

  def check(self):
    return []

  def read(self, name, index):
    if name == "target.c":
      raise self._error
    return np.ones((4, 4), np.float32)[index]


@pytest.mark.parametrize("form", writing.FORMS)
@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (UserError("it is damaged"), UserError),
    (OSError(28, "No space left on device"), StorageError),
    (KeyboardInterrupt(), KeyboardInterrupt),
  ],
)
def test_broken_off_it_leaves_nothing(tmp_path, form, error, expected):
  with pytest.raises(expected):
    writing.write(Breaking(error), epath.Path(tmp_path / "checkpoint_1"), form)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", writing.FORMS)
def test_arrays_without_a_place_are_not_written(tmp_path, form):
  source = Breaking(AssertionError())
  source.arrays = {"bert.w": array_source.ArraySpec((1,), np.dtype("f4"))}
  with pytest.raises(UserError, match="no arrays under 'target': give --gin_file"):
    writing.write(source, epath.Path(tmp_path / "checkpoint_1"), form)


def test_large_arrays_go_by_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(writing, "_CHUNK_BYTES", 4096)
  values = np.random.default_rng(0).normal(size=(3, 70, 90)).astype(np.float32)
  native = written_by_t5x.write(tmp_path / "n" / "checkpoint_1", {"target.w": values})
  source = sources.open_source(native)
  parts, read = [], source.read

  def watched(name, index):
    parts.append(read(name, index))
    return parts[-1]

  source.read = watched
  path = epath.Path(tmp_path / "o" / "checkpoint_1")
  writing.write(source, path, "t5x_native")
  assert max(part.nbytes for part in parts) <= 4096
  assert sum(part.nbytes for part in parts) == values.nbytes
  np.testing.assert_array_equal(written_by_t5x.read(path)["target.w"], values)


@pytest.mark.parametrize(
  ("shape", "chunks"),
  [
    ((32128, 2048), [8192, 2048]),
    ((24, 2048, 5120), [1, 2048, 5120]),
    ((2, 8192, 8192), [1, 2048, 8192]),
    ((5,), [5]),
    ((0, 3), [1, 3]),
  ],
)
def test_chunks_are_rows_of_some_megabytes(shape, chunks):
  assert writing.chunk_shape(array_source.ArraySpec(shape, np.dtype("f4"))) == chunks


def test_zeros_are_written_so_that_lost_files_are_noticed(tmp_path):
  tree = {"target": {"w": np.zeros((4, 4), np.float32)}, "state": {"step": np.int32(0)}}
  native = epath.Path(tmp_path / "checkpoint_1")
  writing.write(writing.TreeArrays(tree), native, "t5x_native")
  assert sources.open_source(native).check() == []
  (native / "target.w" / "0.0").unlink()
  assert len(sources.open_source(native).check()) == 1


def test_a_run_starts_from_a_checkpoint_0_with_the_first_batch(
  trained, make_config, model, console, tmp_path
):
  with ocp.PyTreeCheckpointer() as plain:
    tree = plain.restore(trained / "state")
  tree["state"]["step"] = np.int32(0)
  path = epath.Path(tmp_path / "new" / "checkpoint_0")
  writing.write(writing.TreeArrays(tree), path, "orbax", writing.data_state(path))
  positions = []

  class Watched(stub.Batches):
    def __next__(self):
      positions.append(self.next)
      return super().__next__()

  config = make_config(train_steps=1, model_dir=str(tmp_path / "new"))
  trainer.train(config, model, Watched, {}, console=console)
  assert f"restored step 0 from {path} (rule 1" in printed(console)
  # One to know the shapes by, and then the first.
  assert positions[:2] == [0, 0]


def test_parts_of_an_optimizer_that_hold_nothing_stay(tmp_path):
  tree = {
    "target": {"w": np.ones((2, 2), np.float32)},
    "state": {"step": np.int32(4), "param_states": {"0": {}, "1": {"c": np.int32(4)}}},
  }
  source = writing.TreeArrays(tree)
  native = epath.Path(tmp_path / "n" / "checkpoint_4")
  writing.write(source, native, "t5x_native")
  orbax = converted(native, tmp_path / "o" / "checkpoint_4", "orbax")
  with ocp.PyTreeCheckpointer() as plain:
    restored = plain.restore(orbax / "state")
  assert restored["state"]["param_states"]["0"] == {}
  saved = checkpoints.Checkpoints(
    storage.as_path(orbax.parent), CheckpointConfig(), print
  )
  saved.close()
  assert checkpoints.steps_in(storage.as_path(orbax.parent)) == [4]
