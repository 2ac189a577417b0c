"""Parameters as safetensors: what others read there, and what we read back."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from commentree.errors import UserError
from commentree.launch import main
from commentree.training.checkpointing import storage
from commentree.training.warm_starts import (
  assignments,
  safetensors_writing,
  sources,
  writing,
)
from commentree.training.warm_starts.formats import array_source, safetensors

RNG = np.random.default_rng(5)
ARRAYS: dict[str, Any] = {
  "ancestors.null_vector": np.float32(RNG.normal(size=4)),
  "encoder.layers.mlp.wi_0.kernel": np.float32(RNG.normal(size=(2, 3, 40))),
  "encoder.layers.mlp.wo.kernel": RNG.normal(size=(2, 4, 3)).astype(ml_dtypes.bfloat16),
  "none": np.zeros((0, 3), np.float32),
  "number": np.float32(7.5),
}


def of_files(folder):
  """Reads the files by the format's definition alone; returns bytes by name."""
  found = {}
  for file in sorted(folder.glob("*.safetensors")):
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert (8 + size) % 64 == 0
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    for name, entry in header.items():
      begin, end = entry["data_offsets"]
      content = data[8 + size + begin : 8 + size + end]
      found[name] = (entry["dtype"], entry["shape"], content)
  return found


def checkpoint():
  """Returns what stands for a checkpoint: parameters, and more than those."""
  tree = {f"target.{name}": values for name, values in ARRAYS.items()}
  source = writing.TreeArrays({})
  source._leaves = {**tree, "state.step": np.int64(3)}
  source.arrays = {
    name: array_source.ArraySpec(values.shape, values.dtype)
    for name, values in source._leaves.items()
  }
  return source


@pytest.mark.parametrize("max_file_bytes", [10**9, 500, 1])
@pytest.mark.parametrize("chunk_bytes", [2**26, 48])
def test_parameters_are_written_bit_by_bit_in_files_of_a_size(
  tmp_path, monkeypatch, max_file_bytes, chunk_bytes
):
  monkeypatch.setattr(writing, "_CHUNK_BYTES", chunk_bytes)
  source = checkpoint()
  largest = []

  def read(name, index):
    largest.append(source._leaves[name][index].nbytes)
    return source._leaves[name][index]

  monkeypatch.setattr(source, "read", read)
  folder = epath.Path(tmp_path / "out")
  parameters = safetensors_writing.parameters_of(source)
  safetensors_writing.write_parameters(parameters, folder, max_file_bytes)
  assert max(largest) <= max(chunk_bytes, 4 * 40)

  found = of_files(tmp_path / "out")
  assert set(found) == set(ARRAYS)
  for name, (dtype, shape, content) in found.items():
    assert content == ARRAYS[name].tobytes(), name
    assert tuple(shape) == ARRAYS[name].shape
    assert dtype == {"float32": "F32", "bfloat16": "BF16"}[ARRAYS[name].dtype.name]
  files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
  assert len(files) == {10**9: 1, 500: 3, 1: 5}[max_file_bytes]
  assert (len(files) == 1) == (files == ["model.safetensors"])

  again = sources.open_source(folder)
  for name, values in ARRAYS.items():
    np.testing.assert_array_equal(
      again.read(name, array_source.whole(values.shape)), values
    )
  names = json.loads((folder / "parameters.json").read_text())["parameters"]
  assert {name: tuple(p["shape"]) for name, p in names.items()} == {
    name: values.shape for name, values in ARRAYS.items()
  }


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def refuse(file, text):
    raise OSError(28, "no space left on device")

  monkeypatch.setattr(storage, "write_text", refuse)
  parameters = safetensors_writing.parameters_of(checkpoint())
  with pytest.raises(UserError, match="cannot be written"):
    safetensors_writing.write_parameters(parameters, epath.Path(tmp_path / "out"))
  assert list(tmp_path.iterdir()) == []


def test_the_command_writes_what_a_run_of_ours_starts_from(tmp_path, capsys):
  native = str(tmp_path / "checkpoint_3")
  writing.write(checkpoint(), epath.Path(native), "t5x_native")
  target = str(tmp_path / "out")
  command = ["convert", "--to=safetensors", native, target]
  assert main.main([*command, "--dry_run"]) == 0
  assert not (tmp_path / "out").exists()
  assert main.main(command) == 0
  assert f"wrote {target} (safetensors): 5 arrays" in capsys.readouterr().out

  # By its names, layers one by one; no config.json of Hugging Face's is asked for.
  source = safetensors.open_safetensors(epath.Path(target))
  own, rules = assignments.rules_for(source)
  assert "encoder.layers_1.mlp.wo.kernel" in own.arrays
  assert any(rule.source == "\\g<0>" for rule in rules)

  assert main.main(command) == 2
  assert "is there already" in capsys.readouterr().err
  assert main.main(["convert", "--to=safetensors", target, target + "2"]) == 2
  assert "no arrays under 'target'" in capsys.readouterr().err


@pytest.mark.parametrize("max_file_bytes", [10**9, 1])
def test_the_library_of_the_format_reads_what_is_written(tmp_path, max_file_bytes):
  library = pytest.importorskip("safetensors", reason="the extra `test` brings it")
  folder = epath.Path(tmp_path / "out")
  parameters = safetensors_writing.parameters_of(checkpoint())
  safetensors_writing.write_parameters(parameters, folder, max_file_bytes)
  found = {}
  for file in folder.glob("*.safetensors"):
    with library.safe_open(file, "np") as opened:
      assert opened.metadata() == {"format": "commentree"}
      found.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
  assert set(found) == set(ARRAYS)
  for name, values in ARRAYS.items():
    assert found[name].dtype == values.dtype
    np.testing.assert_array_equal(found[name], values)


def test_what_the_library_of_the_format_writes_is_read(tmp_path):
  pytest.importorskip("safetensors", reason="the extra `test` brings it")
  from safetensors.numpy import save_file

  arrays = {
    **{name: np.asarray(values) for name, values in ARRAYS.items()},
    **{
      str(dtype): np.arange(6).astype(dtype).reshape(2, 3)
      for dtype in safetensors.DTYPES.values()
    },
  }
  file = tmp_path / "model.safetensors"
  save_file(arrays, file, {"format": "np"})
  source = sources.open_source(file)
  assert set(source.arrays) == set(arrays)
  for name, values in arrays.items():
    read = source.read(name, array_source.whole(values.shape))
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)
