from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
import textwrap
import tracemalloc

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tests.support.training.warm_starts import written_by_t5x
from commentree.training.checkpointing import storage
from commentree.training.warm_starts import sources
from commentree.training.warm_starts.formats import (
  array_source,
  flax_msgpack,
  t5x_native,
)

KERNEL = "target.encoder.layers_0.mlp.wi_0.kernel"


def example_arrays() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(1)
  return {
    KERNEL: rng.normal(size=(37, 22)).astype(np.float32),
    "target.token_embedder.embedding": rng.normal(size=(50, 8)).astype(
      ml_dtypes.bfloat16
    ),
    "target.encoder.encoder_norm.scale": rng.normal(size=8).astype(np.float32),
    "target.decoder.stack": rng.normal(size=(3, 4, 5)).astype(np.float32),
    "state.step": np.array(7, np.int32),
    "state.param_states.0.v": np.zeros((50, 8), np.float32),
  }


INSIDE = ("state.step", "target.encoder.encoder_norm.scale")


def in_pieces(shape):
  return [max(1, -(-size // 3)) for size in shape]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp("t5x") / "checkpoint_7"
  return written_by_t5x.write(folder, example_arrays(), INSIDE, in_pieces)


def test_every_array_is_there_with_its_shape_type_and_values(checkpoint):
  source = sources.open_source(checkpoint)
  assert source.kind == "T5X native checkpoint"
  written = example_arrays()
  assert set(source.arrays) == set(written)
  for name, array in written.items():
    spec = source.arrays[name]
    assert (spec.shape, spec.dtype) == (array.shape, array.dtype)
    read = source.read(name, array_source.whole(array.shape))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
  assert source.check() == []


def test_the_file_itself_may_be_named_as_well(checkpoint):
  assert set(sources.open_source(checkpoint / "checkpoint").arrays) == set(
    example_arrays()
  )


@settings(max_examples=25)
@given(st.data())
def test_any_part_is_what_numpy_would_cut_out(checkpoint, data):
  source = sources.open_source(checkpoint)
  name = data.draw(st.sampled_from(sorted(example_arrays())))
  array = example_arrays()[name]
  bounds = [sorted(data.draw(st.tuples(*2 * [st.integers(0, n)]))) for n in array.shape]
  index = tuple(slice(*bound) for bound in bounds)
  np.testing.assert_array_equal(source.read(name, index), array[index])


def test_a_part_is_read_from_the_files_that_hold_it_and_no_others(tmp_path):
  arrays = {KERNEL: example_arrays()[KERNEL]}
  folder = written_by_t5x.write(tmp_path / "c", arrays, (), in_pieces)
  for file in (folder / KERNEL).iterdir():
    # Chunks are 13 by 8.
    if file.name[0] in "012" and file.name != "1.2":
      file.write_bytes(b"no gzip")
  source = sources.open_source(folder)
  index = (slice(13, 26), slice(16, 22))
  np.testing.assert_array_equal(source.read(KERNEL, index), arrays[KERNEL][index])
  with pytest.raises(UserError, match=f"{KERNEL} cannot be read.*damaged"):
    source.read(KERNEL, (slice(0, 37), slice(16, 22)))


@pytest.mark.parametrize(
  "change",
  [
    # As written to a bucket, whose name is left to be filled in.
    lambda name, spec: {
      **spec,
      "kvstore": {"driver": "gcs", "bucket": "dummy", "path": f"{name}/"},
    },
    # As TensorStore had it before 0.1.14.
    lambda name, spec: {**spec, "kvstore": {"driver": "gfile"}, "path": name},
    # As TensorStore's newer versions put it.
    lambda name, spec: {
      **spec,
      "transform": {
        "input_inclusive_min": [0] * len(spec["metadata"]["shape"]),
        "input_exclusive_max": [[n] for n in spec["metadata"]["shape"]],
      },
    },
  ],
)
def test_arrays_are_found_however_t5x_noted_where(tmp_path, change):
  written = example_arrays()
  folder = written_by_t5x.write(tmp_path / "c", written, INSIDE, change=change)
  source = sources.open_source(folder)
  for name, array in written.items():
    np.testing.assert_array_equal(
      source.read(name, array_source.whole(array.shape)), array
    )


def noted(**changes):
  return lambda name, spec: {**spec, **changes}


def at(path):
  return noted(kvstore={"driver": "file", "path": path})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (at("../outside/"), r"claims to lie at '\.\./outside/'"),
    (at("a/../../outside"), "claims to lie at"),
    (at("/etc/"), "claims to lie at '/etc/'"),
    (at("file:///etc/"), "claims to lie at"),
    (at(""), "claims to lie at ''"),
    (at("."), "claims to lie at"),
    (at("a\0b"), "claims to lie at"),
    (at(5), "claims to lie at 5"),
    (
      noted(kvstore={"driver": "http", "base_url": "http://10.0.0.1", "path": "x"}),
      "asks for the driver 'http'",
    ),
    (
      noted(kvstore={"driver": "s3", "bucket": "elsewhere", "path": "x"}),
      "asks for the driver 's3'",
    ),
    (noted(kvstore="http://10.0.0.1/x"), "asks for the driver 'http://10.0.0.1/x'"),
    (
      noted(kvstore={"driver": "ocdbt", "base": "file:///etc"}),
      "asks for the driver 'ocdbt'",
    ),
    (noted(driver="n5"), "asks for the driver 'n5'"),
    (noted(create=True, delete_existing=True), "create, delete_existing"),
    (
      noted(transform={"input_inclusive_min": [3], "input_exclusive_max": [4]}),
      "a transform",
    ),
    (noted(metadata={"shape": [-1, 5]}), r"claims shape \[-1, 5\]"),
    (noted(metadata={"shape": [36, 22]}), r"has shape \(37, 22\), but the .* \(36, 22"),
    (at("nothing"), "cannot be opened"),
  ],
)
def test_what_an_array_may_not_ask_for_is_refused_by_name(tmp_path, change, message):
  outside = {KERNEL: example_arrays()[KERNEL]}
  folder = written_by_t5x.write(tmp_path / "c", outside, (), change=change)
  # It would be found, if it were sought.
  shutil.copytree(folder / KERNEL, tmp_path / "outside")
  before = sorted(tmp_path.rglob("*"))

  def read():
    return sources.open_source(folder).read(KERNEL, array_source.whole((37, 22)))

  with pytest.raises(UserError, match=message) as raised:
    read()
  assert KERNEL in str(raised.value)
  assert "\n" not in str(raised.value)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_chunk_that_would_fill_the_memory_is_refused(tmp_path):
  folder = written_by_t5x.write(tmp_path / "c", {KERNEL: example_arrays()[KERNEL]}, ())
  table = folder / KERNEL / ".zarray"
  table.write_text(
    table.read_text().replace('"chunks":[37,22]', '"chunks":[3700000,2200000]')
  )
  with pytest.raises(UserError, match=r"claims chunks of \(3700000, 2200000\)"):
    sources.open_source(folder)


def test_files_that_were_lost_are_told_as_they_are_read_as_zeros(tmp_path):
  arrays = {KERNEL: example_arrays()[KERNEL]}
  folder = written_by_t5x.write(tmp_path / "c", arrays, (), in_pieces)
  (folder / KERNEL / "1.1").unlink()
  (odd,) = sources.open_source(folder).check()
  assert f"{KERNEL} lacks 1 of 9 files" in odd


def packed(tree) -> bytes:
  return msgpack.packb(tree)


def array_in_msgpack(shape, dtype="float32", length=12):
  data = msgpack.packb((shape, dtype, b"\0" * length))
  return packed({"optimizer": {"target": {"x": msgpack.ExtType(1, data)}}})


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "cannot be read"),
    (b"\x93NUMPY garbage", "cannot be read"),
    (b"\xdf\xff\xff\xff\xff", "cannot be read"),
    (b"\xdd\xff\xff\xff\xff" * 400, "cannot be read"),
    (b"\xdb\xff\xff\xff\xffabc", "cannot be read"),
    (b"\xc9\xff\xff\xff\xff\x01", "cannot be read"),
    (b"\x81\xa1a" * 100_000, "cannot be read"),
    (b"\x81\xa1a" * 200 + b"\x01", "nested more than 64 deep"),
    (packed([1, 2]), "holds no parameters under 'optimizer'"),
    (packed({"optimizer": {"state": {}}}), "holds no parameters under 'optimizer'"),
    (packed({"optimizer": {"target": {"x": "text"}}}), r"target\.x is str"),
    (
      packed({"optimizer": {"target": {"a.b": 1.0, "a": {"b": 2.0}}}}),
      "two arrays of one name",
    ),
    (array_in_msgpack([3, 4]), r"shape \(3, 4\) float32 in 12 bytes"),
    (array_in_msgpack([2**40, 2**40], length=0), "in 0 bytes"),
    (array_in_msgpack([-3, -1]), "an array of shape"),
    (array_in_msgpack([3], "object"), "an array of type b'object'"),
    (array_in_msgpack([3], "O"), "an array of type b'O'"),
    (
      packed({"optimizer": {"target": {"x": msgpack.ExtType(5, b"os.system")}}}),
      "an extension 5",
    ),
    (
      packed({"optimizer": {"target": {"x": {"__msgpack_chunked_array__": True}}}}),
      "in pieces that do not fit",
    ),
  ],
)
def test_a_malformed_msgpack_is_one_clear_line(tmp_path, content, message):
  (tmp_path / "checkpoint").write_bytes(content)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match=message) as raised:
    sources.open_source(tmp_path)
  grown_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown_kilobytes < 100_000
  assert "\n" not in str(raised.value)
  assert sorted(tmp_path.iterdir()) == [tmp_path / "checkpoint"]


def test_lists_that_claim_to_be_long_within_each_other_take_no_memory(tmp_path):
  long = b"\xdd" + (900_000).to_bytes(4, "big")
  (tmp_path / "checkpoint").write_bytes(long * 400 + b"\0" * 1_000_000)
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match="cannot be read"):
      sources.open_source(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
  finally:
    tracemalloc.stop()


def test_a_file_cut_short_anywhere_is_one_clear_line(checkpoint, tmp_path):
  content = (checkpoint / "checkpoint").read_bytes()
  file = tmp_path / "checkpoint"
  for length in range(0, len(content), 29):
    file.write_bytes(content[:length])
    with pytest.raises(UserError, match="cannot be read"):
      sources.open_source(tmp_path)


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_byte_raises_anything_but_a_user_error(
  checkpoint, tmp_path_factory, data
):
  content = bytearray((checkpoint / "checkpoint").read_bytes())
  for _ in range(data.draw(st.integers(1, 3))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
      st.integers(0, 255)
    )
  folder = tmp_path_factory.mktemp("flipped")
  (folder / "checkpoint").write_bytes(content)
  # Values may be other ones; anything else that it raises is a defect.
  with contextlib.suppress(UserError):
    t5x_native.T5xNative(storage.as_path(folder))


def test_flax_reads_what_we_pack_and_we_what_it_packs(monkeypatch):
  from flax import serialization

  # Lets Flax cut arrays in slices, as it does beyond a gigabyte.
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
  tree = {"a": np.arange(40.0).reshape(8, 5), "b": {"c": np.float32(3), "n": 3}}
  for read in (
    flax_msgpack.unpack(serialization.msgpack_serialize(dict(tree))),
    serialization.msgpack_restore(flax_msgpack.pack(tree)),
  ):
    np.testing.assert_array_equal(read["a"], tree["a"])
    assert read["b"] == {"c": 3, "n": 3}


XL = """
import math, resource, sys
import jax, numpy as np
from jax.sharding import AbstractMesh
from commentree.models.batch import smallest
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.training import partitioning
from commentree.training.config import PartitioningConfig
from commentree.training.warm_starts import apply, assignments

folder, scan = sys.argv[1], sys.argv[2] == "scan"
model = CommentTreeModel(ModelConfig(
  vocab_size=32128, emb_dim=2048, num_heads=32, num_encoder_layers=24,
  num_decoder_layers=24, head_dim=64, mlp_dim=5120, scan_layers=scan,
))
batch = smallest()
variables = jax.eval_shape(lambda: model.get_initial_variables(
  jax.random.key(0), {n: x.shape for n, x in batch.items()}))
mesh = AbstractMesh((1, 1, 32, 2), ("slice", "data", "fsdp", "model"))
config = PartitioningConfig(fsdp_parallel=32, model_parallel=2)
shardings = partitioning.flatten_names(partitioning.parameter_shardings(
  variables["params"], variables["params_axes"], mesh, config))
source, plan = assignments.plan_for(folder, apply.specs_of(variables["params"]))
read, original = [], source.read

class Counting:
  path, kind, arrays = source.path, source.kind, source.arrays
  def read(self, name, index):
    part = original(name, index)
    read.append(part.nbytes)
    return part

held, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
largest = 0
for line in plan.of("loaded", "grown"):
  shape = line.spec.shape
  part = shardings[line.parameter].shard_shape(shape)
  # The last of the 64 devices: the one that offsets matter for.
  index = tuple(slice(n - p, n) for n, p in zip(shape, part))
  array = apply.read_part(line, Counting(), index)
  assert array.shape == part
  if line.parameter == "encoder.encoder_norm.scale":
    assert array[-1] == 7, array
  if line.parameter.endswith("token_embedder.embedding"):
    assert array[-1, -1] == 5, array
  held += array.nbytes
  largest = max(largest, array.nbytes)
peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
whole = sum(math.prod(l.spec.shape) for l in plan.of("loaded")) * 4
assert len(plan.of("fresh")) == 1, plan.summary()
print(whole, held, sum(read), peak, largest)
"""


@pytest.mark.parametrize(
  "layers", [pytest.param("unrolled", marks=pytest.mark.slow), "scan"]
)
def test_of_an_xl_checkpoint_a_device_reads_its_own_part(tmp_path, layers):
  """Shapes of T5 1.1 xl, of which a few chunks are on disk, the rest fill values."""
  folder = tmp_path / "checkpoint_1"
  shapes = written_by_t5x.t5_shapes(
    layers=24, width=2048, vocab=32128, heads=32, joined=2048, mlp=5120
  )
  written_by_t5x.write_sparse(
    folder,
    {f"target.{name}": shape for name, shape in shapes.items()},
    {
      "target.encoder.encoder_norm.scale": (slice(2040, 2048), 7),
      "target.token_embedder.embedding": (np.s_[32127:, 2000:], 5),
    },
  )
  on_disk = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
  assert on_disk < 2_000_000
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(XL), str(folder), layers],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  whole, held, read, peak, largest = map(int, done.stdout.split())
  assert whole > 11e9
  # Norms are whole on every device; the rest is cut in 64.
  assert held < 1.02 * whole / 64
  assert read == held
  # A few chunks in the making, and what reading needs of its own.
  assert peak < 4 * largest + 2**28
