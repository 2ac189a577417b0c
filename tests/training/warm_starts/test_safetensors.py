"""Safetensors are read in parts, and what a damaged or hostile one does is an error."""

from __future__ import annotations

import json
import pathlib
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tests.support.training.warm_starts import (
  written_by_hugging_face as written,
)
from commentree.training.warm_starts import sources
from commentree.training.warm_starts.formats import array_source, safetensors

ARRAYS = {
  "a": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
  "b": np.arange(6, dtype=np.float64).astype(ml_dtypes.bfloat16).reshape(2, 3),
  "none": np.zeros((0, 3), np.float32),
  "scalar": np.array(7, np.int64),
  "c": np.linspace(0, 1, 50, dtype=np.float32).reshape(10, 5),
}


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(written.packed(ARRAYS, {"format": "pt"}))
  return path


def opened(path):
  return sources.open_source(str(path))


def refused(path, message):
  with pytest.raises(UserError, match=message) as raised:
    opened(path)
  assert "\n" not in str(raised.value)
  assert len(str(raised.value)) < 600


def with_header(path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(struct.pack("<Q", length) + text + data)
  return path


def entry(begin, end, shape=None, dtype="F32"):
  shape = [(end - begin) // 4] if shape is None else shape
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_arrays_are_what_was_written(file):
  source = opened(file)
  assert source.check() == []
  assert list(source.arrays) == list(ARRAYS)
  for name, array in ARRAYS.items():
    spec = source.arrays[name]
    assert (spec.shape, spec.dtype) == (array.shape, array.dtype)
    read = source.read(name, array_source.whole(array.shape))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), block=st.sampled_from([1, 8, 40, 2**24]))
def test_any_part_is_that_of_the_whole(tmp_path_factory, data, block):
  folder = tmp_path_factory.getbasetemp() / "parts.safetensors"
  if not folder.exists():
    folder.write_bytes(written.packed(ARRAYS))
  name = data.draw(st.sampled_from(list(ARRAYS)))
  index = tuple(
    slice(start := data.draw(st.integers(0, n)), data.draw(st.integers(start, n)))
    for n in ARRAYS[name].shape
  )
  source = opened(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(safetensors, "_BLOCK_BYTES", block)
    np.testing.assert_array_equal(source.read(name, index), ARRAYS[name][index])


def test_a_part_of_a_large_array_takes_its_own_memory_and_a_block(tmp_path):
  path = tmp_path / "large.safetensors"
  rows, columns = 2**15, 2**10
  size = 4 * rows * columns
  with_header(path, {"table": entry(0, size, [rows, columns])})
  with path.open("r+b") as stream:
    stream.truncate(path.stat().st_size + size)
  source = opened(path)
  for index in (
    (slice(8, 1032), slice(0, columns)),
    (slice(0, rows), slice(0, 32)),
  ):
    tracemalloc.start()
    part = source.read("table", index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.nbytes == 2**22
    assert peak < part.nbytes + 2 * 2**24 + 2**20


def test_a_model_in_parts_is_one_source(tmp_path):
  arrays = written.bert_arrays(written.BERT)
  source = opened(written.write_in_parts(tmp_path / "m", arrays, written.BERT))
  assert set(source.arrays) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(
      source.read(name, array_source.whole(array.shape)), array
    )


def test_every_file_cut_short_is_refused(tmp_path, file):
  whole = file.read_bytes()
  cut = tmp_path / "cut.safetensors"
  for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
    cut.write_bytes(whole[:length])
    refused(cut, "no safetensors, or damaged")
  cut.write_bytes(whole + b"\0")
  refused(cut, "holds more than its arrays")


def test_a_file_that_shrinks_after_opening_is_an_error(file):
  source = opened(file)
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(UserError, match="ends within c"):
    source.read("c", (slice(0, 10), slice(0, 5)))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 10**9, 3])
def test_a_header_of_any_claimed_length_takes_no_memory(tmp_path, length):
  path = with_header(tmp_path / "x.safetensors", {"a": entry(0, 4)}, b"1234", length)
  tracemalloc.start()
  refused(path, "claims a header|header cannot be read")
  assert tracemalloc.get_traced_memory()[1] < 2**22
  tracemalloc.stop()


def test_a_header_too_long_for_any_model_is_not_read(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(struct.pack("<Q", 2**26))
  with path.open("r+b") as stream:
    stream.truncate(2**27)
  refused(path, "claims a header of 67,108,864 bytes, of at most")


@pytest.mark.parametrize(
  "header",
  [
    b"",
    b"[]",
    b"{",
    b"\xff\xfe{}",
    b"[" * 10**6,
    b'{"a":' * 10**5,
    b'{"a": [' + b"0," * 10**6 + b"0]}",
    b'{"a": {"dtype": "F32", "shape": [1]}}',
    b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
    b'{"__metadata__": {"a": {"b": "c"}}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
    b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4]}}',
  ],
)
def test_a_header_that_is_none_is_one_line(tmp_path, header):
  path = with_header(tmp_path / "x.safetensors", header, b"1234")
  refused(path, "no safetensors, or damaged")


@pytest.mark.parametrize(
  ("header", "message"),
  [
    ({"a": entry(0, 4), "b": entry(0, 4)}, "overlap"),
    ({"a": entry(0, 6, [1]), "b": entry(2, 8)}, "takes 4 bytes"),
    ({"a": entry(0, 4), "b": entry(2, 6)}, "overlap: b begins at byte 2"),
    ({"a": entry(0, 12), "b": entry(8, 12)}, "overlap"),
    ({"a": entry(0, 4), "b": entry(6, 8, [1], "BF16")}, "leave a gap"),
    ({"a": entry(4, 8)}, "leave a gap"),
    ({"a": entry(0, 400)}, "is cut short"),
    ({"a": entry(-4, 4)}, "begins at byte -4"),
    ({"a": entry(8, 0, [2])}, "takes 8 bytes"),
    ({"a": entry(0, 8, [3])}, "takes 12 bytes"),
    ({"a": entry(0, 8, [2], "F64")}, "takes 16 bytes"),
    ({"a": entry(0, 8, [2**31, 2**31])}, "takes 18,446"),
    ({"a": entry(0, 0, [0, 2**62])}, "claims the shape"),
    ({"a": entry(0, 8, [1] * 33)}, "claims the shape"),
    ({"a": entry(0, 8, [2], "F4")}, "is of type 'F4'"),
    ({"a": entry(0, 8, [2], "float32")}, "is of type 'float32'"),
  ],
)
def test_arrays_that_do_not_lie_as_the_format_says_are_refused(
  tmp_path, header, message
):
  refused(with_header(tmp_path / "x.safetensors", header, b"12345678"), message)


@pytest.mark.parametrize(
  "name",
  [
    "../outside.safetensors",
    "/etc/outside.safetensors",
    "sub/outside.safetensors",
    "..\\outside.safetensors",
    "gs://bucket/outside.safetensors",
    "C:outside.safetensors",
    "out\0side.safetensors",
    "outside.bin",
    "..",
    "",
  ],
)
def test_an_index_names_files_beside_it_and_no_others(tmp_path, name):
  (tmp_path / "outside.safetensors").write_bytes(written.packed(ARRAYS))
  folder = tmp_path / "model"
  folder.mkdir()
  index = {"weight_map": {"a": name}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  refused(folder, "only .safetensors files beside it are read")


def test_an_index_that_does_not_fit_its_files_is_told(tmp_path):
  folder = tmp_path / "model"
  folder.mkdir()
  index = folder / "model.safetensors.index.json"
  index.write_text("{")
  refused(folder, "damaged")
  index.write_text('{"weight_map": {"a": "p.safetensors", "a": "p.safetensors"}}')
  refused(folder, "'a' is there twice")
  index.write_text('{"weight_map": {"a": "p.safetensors", "d": "p.safetensors"}}')
  refused(folder, "there is no such file")
  (folder / "p.safetensors").write_bytes(written.packed(ARRAYS))
  refused(folder, "lacks d, which")
  (folder / "q.safetensors").write_bytes(written.packed(ARRAYS))
  index.write_text('{"weight_map": {"a": "p.safetensors", "b": "q.safetensors"}}')
  refused(folder, "two arrays named a, in p.safetensors and q.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pkl"])
def test_a_pickle_is_refused_by_name_and_not_opened(tmp_path, monkeypatch, name):
  unread = tmp_path / name
  unread.write_bytes(b"cos\nsystem\n(S'false'\ntR.")

  def open_none(self, *args, **kwargs):
    raise AssertionError(f"opened {self}")

  for kind in (pathlib.Path, type(epath.Path(tmp_path))):
    monkeypatch.setattr(kind, "open", open_none)
    monkeypatch.setattr(kind, "read_bytes", open_none)
  refused(unread, f"{name} is a pickle.*save_pretrained")
  if name == "pytorch_model.bin":
    refused(tmp_path, f"{name} is a pickle")


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
  path = tmp_path / "model.safetensors"
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
  refused(tmp_path, "git lfs pull")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_raise_anything_but_one_line(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
  whole = bytearray(written.packed(ARRAYS, {"format": "pt"}))
  for _ in range(data.draw(st.integers(1, 4))):
    position = data.draw(st.integers(0, min(len(whole), 500) - 1))
    whole[position] = data.draw(st.integers(0, 255))
  path.write_bytes(bytes(whole))
  try:
    source = opened(path)
    for name, spec in source.arrays.items():
      source.read(name, array_source.whole(spec.shape))
  except UserError as error:
    message = str(error)
  else:
    message = ""
  assert "\n" not in message
