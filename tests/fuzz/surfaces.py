"""What reads files of others: for each, inputs to start from and a check."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import io
import itertools
import json
import lzma
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

import zstandard

from commentree.errors import UserError
from commentree.launch.settings import config_data
from commentree.tasks import readers
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  MarkersConfig,
  TreeConfig,
)
from commentree.tasks.dataset_files import built_dataset, tfrecord
from commentree.tasks.readers.parsing import files
from commentree.tasks.trees import cleaning
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.markers import all_markers
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.vocabularies import Tokenizer, VocabularyConfig
from commentree.tests.support.tasks import building_fixture, written_threads
from commentree.training.cluster.coordination import host_messages
from commentree.training.warm_starts.formats import flax_msgpack, safetensors

Check = Callable[[bytes], None]


@dataclasses.dataclass(frozen=True)
class Surface:
  """Something that reads what others wrote.

  Attributes:
    name: how it is called on the command line.
    seeds: makes the inputs to start from, in a folder of its own.
    check: makes a check in a folder of its own: it raises if an input is not handled.
    packages: prefixes of the modules whose branches guide the search.
  """

  name: str
  seeds: Callable[[pathlib.Path], list[bytes]]
  check: Callable[[pathlib.Path], Check]
  packages: tuple[str, ...]


def _read_trees(name: str | None, path: pathlib.Path, of_files: int = 1) -> None:
  read_counts = ReadCounts()
  found = list(readers.iter_trees(str(path), TreeConfig(), read_counts, name))
  assert 1 <= sum(read_counts.files.values()) <= of_files, read_counts
  # A kept tree is counted as one; whatever else there was has a reason.
  kept = sum(n for fate, n in read_counts.trees.items() if fate.startswith("kept"))
  assert kept == len(found), read_counts
  in_trees = sum(len(tree.comments) - 1 for tree in found)
  kept = sum(n for fate, n in read_counts.comments.items() if fate.startswith("kept"))
  assert kept == in_trees, read_counts


def _reader(name: str | None, folder: pathlib.Path) -> Check:
  path = folder / "input"

  def check(data: bytes) -> None:
    path.write_bytes(data)
    _read_trees(name, path)

  return check


def _written(name: str, folder: pathlib.Path) -> list[bytes]:
  seeds = []
  for count in (1, 4):
    made = folder / str(count)
    made.mkdir()
    for path in written_threads.write(name, made, 7, count=count):
      seeds.append(pathlib.Path(path).read_bytes())
  return [seed for seed in seeds if len(seed) < 20_000]


def _any_written(folder: pathlib.Path) -> list[bytes]:
  seeds = []
  for name in written_threads.WRITERS:
    made = folder / name
    made.mkdir()
    seeds += _written(name, made)[:2]
  return seeds


def _layouts(folder: pathlib.Path) -> list[bytes]:
  """Records as arrays, as an API's answer, and over many lines."""
  seeds = []
  for name in ("tree_jsonl", "pushshift", "convokit", "oasst"):
    made = folder / name
    made.mkdir()
    records = [json.loads(line) for line in _written(name, made)[0].splitlines()]
    seeds += [json.dumps(records), json.dumps({"data": records, "after": None})]
    seeds += [json.dumps(records, indent=1), json.dumps(records[:2], indent="\t")]
    seeds.append("\n".join(json.dumps(record, indent=2) for record in records))
  return [seed.encode(encoding) for seed in seeds for encoding in ("utf-8", "utf-16")]


def _conversations(folder: pathlib.Path) -> list[bytes]:
  return [
    (pathlib.Path(path).parent / "conversations.json").read_bytes()
    for path in written_threads.write("convokit", folder, 7)
  ]


def _titles(folder: pathlib.Path) -> Check:
  """A corpus whose `conversations.json` holds the input."""
  [path] = written_threads.write("convokit", folder, 7)

  def check(data: bytes) -> None:
    (folder / "conversations.json").write_bytes(data)
    _read_trees("convokit", pathlib.Path(path), of_files=2)

  return check


def _compressed(folder: pathlib.Path) -> list[bytes]:
  seeds = []
  for seed in _written("pushshift", folder):
    seeds += [gzip.compress(seed), bz2.compress(seed), lzma.compress(seed)]
    seeds.append(zstandard.ZstdCompressor(write_checksum=True).compress(seed))
  return [*seeds, *(a + b for a, b in itertools.pairwise(seeds))]


def _long(name: str | None, folder: pathlib.Path) -> Check:
  """As `_reader`, of an input repeated until it is long: growth shows as time."""
  check = _reader(name, folder)
  return lambda data: check(data[:16] + data[16:] * (200_000 // max(len(data), 1)))


def _clean(folder: pathlib.Path) -> Check:
  del folder
  config = CleaningConfig()

  def check(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for written in (text, text * (50_000 // max(len(text), 1))):
      clean = cleaning.clean_text(written, config)
      assert clean == " ".join(clean.split())

  return check


def _texts(folder: pathlib.Path) -> list[bytes]:
  del folder
  return [
    b"see [this](http://a.b/c_(d)) & www.e.com/f^2 [1] &amp;gt; &#x27; &#9999999999",
    b"> quoted\n> more\n\n>! spoiler\n_____\n^(A footnote from your moderators)",
    "\ufeff\u200b word\u00ad \U0001f600 <mask> <user_1> \uff1cmask>".encode(),
  ]


@functools.lru_cache(1)
def _dataset() -> pathlib.Path:
  folder = pathlib.Path(tempfile.mkdtemp())
  paths = written_threads.write("tree_jsonl", folder, 7, count=6)
  made = building_fixture.build(paths, folder / "made", BuildConfig())
  return pathlib.Path(made.folder)


def _dataset_file(pattern: str) -> Callable[[pathlib.Path], list[bytes]]:
  def seeds(folder: pathlib.Path) -> list[bytes]:
    del folder
    return [path.read_bytes() for path in sorted(_dataset().glob(pattern))]

  return seeds


def _dataset_with(pattern: str) -> Callable[[pathlib.Path], Check]:
  """A built dataset of which one file holds the input."""

  def make(folder: pathlib.Path) -> Check:
    copy = folder / "copy"
    shutil.copytree(_dataset(), copy)
    [path, *_] = sorted(copy.glob(pattern))

    def check(data: bytes) -> None:
      path.write_bytes(data)
      dataset = built_dataset.BuiltDataset(copy)
      for split in dataset.splits:
        list(dataset.trees(split))

    return check

  return make


def _records(folder: pathlib.Path) -> Check:
  """A shard of the input, regardless of the sizes noted elsewhere."""
  copy = folder / "copy"
  shutil.copytree(_dataset(), copy)
  (copy / "CHECKSUMS.json").unlink()
  [path, *_] = sorted(copy.glob("*-train.tfrecord-*"))

  def check(data: bytes) -> None:
    path.write_bytes(data)
    list(built_dataset.BuiltDataset(copy).trees("train"))

  return check


def _record_seeds(folder: pathlib.Path) -> list[bytes]:
  seeds = []
  for content in _dataset_file("*-train.*")(folder):
    seeds += list(tfrecord.read(io.BytesIO(content)))
  return seeds


def _one_record(folder: pathlib.Path) -> Check:
  """A shard of records that each hold the input, with checksums that fit."""
  check = _records(folder)
  [shard, *_] = sorted(_dataset().glob("*-train.tfrecord-*"))
  with shard.open("rb") as file:
    count = sum(1 for _ in tfrecord.read(file))
  return lambda data: check(tfrecord.frame(data) * count)


def _vocabulary(kind: str, size: int) -> Callable[[pathlib.Path], list[bytes]]:
  def seeds(folder: pathlib.Path) -> list[bytes]:
    syllables = ["ba", "co", "di", "fu", "gal", "hem", "ji", "kol", "mu", "nest"]
    texts = [" ".join(pair) for pair in itertools.product(syllables, repeat=2)]
    texts += ["".join(pair) for pair in itertools.product(syllables, repeat=2)]
    config = VocabularyConfig(size, kind)  # type: ignore[arg-type]
    path = vocabularies.train_vocabulary(
      texts * 3, folder / "made", config, all_markers(MarkersConfig(max_users=2))
    )
    return [path.read_bytes()]

  return seeds


def _open_vocabulary(ending: str) -> Callable[[pathlib.Path], Check]:
  def make(folder: pathlib.Path) -> Check:
    path = folder / f"input{ending}"

    def check(data: bytes) -> None:
      path.write_bytes(data)
      tokenizer = Tokenizer(
        lambda: str(path),
        all_markers(MarkersConfig(max_users=2)),
      )
      tokenizer.check()
      [ids] = tokenizer.encode_batch(["the quick fox <mask> \u00e9"])
      tokenizer.decode(ids.tolist())

    return check

  return make


def _safetensors_seeds(folder: pathlib.Path) -> list[bytes]:
  del folder
  seeds = []
  for header, size in (
    ({}, 0),
    ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, 24),
    (
      {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
      },
      16,
    ),
  ):
    text = json.dumps(header).encode()
    seeds.append(len(text).to_bytes(8, "little") + text + bytes(range(size)))
  return seeds


def _safetensors(folder: pathlib.Path) -> Check:
  from etils import epath

  path = folder / "model.safetensors"

  def check(data: bytes) -> None:
    path.write_bytes(data)
    source = safetensors.open_safetensors(epath.Path(folder))
    for name, spec in source.arrays.items():
      source.read(name, tuple(slice(0, n) for n in spec.shape))

  return check


def _msgpack_seeds(folder: pathlib.Path) -> list[bytes]:
  import numpy as np

  del folder
  tree = {"version": 3, "optimizer": {"target": {"a": np.arange(6.0)}, "state": {}}}
  return [flax_msgpack.pack(tree), flax_msgpack.pack({"a": {"b": np.int32(1)}})]


def _msgpack(folder: pathlib.Path) -> Check:
  del folder

  def check(data: bytes) -> None:
    try:
      flax_msgpack.unpack(data)
    except ValueError as error:  # what its callers make a line of
      raise UserError(str(error)) from error

  return check


def _gin_seeds(folder: pathlib.Path) -> list[bytes]:
  del folder
  return [
    b"ModelConfig.emb_dim = 128\nSTEPS = 10\nTrainConfig.train_steps = %STEPS",
    b"# a comment\nmodel/SubtreeConfig.long_comments = 'cut'\nLENGTHS = {'a': 8}\n",
    b"ModelConfig.mlp_activations = ('gelu', 'linear')\nFILES = ['a', \"b\"]",
    b"TrainConfig.optimizer = @OptimizerConfig()\nSHARE = -1.5e-3\nNAME = None\n",
  ]


def _gin(folder: pathlib.Path) -> Check:
  del folder
  return lambda data: config_data.check(data.decode("utf-8", "replace"), "config.gin")


def _run_json_seeds(folder: pathlib.Path) -> list[bytes]:
  from commentree.training.checkpointing import run_record

  facts = {"ModelConfig.emb_dim": 128}
  run_record.write(folder, run_record.RunRecord(facts), facts, 0)
  return [(folder / "run.json").read_bytes()]


def _run_json(folder: pathlib.Path) -> Check:
  from commentree.training.checkpointing import run_record

  (folder / "checkpoint_1").mkdir()

  def check(data: bytes) -> None:
    (folder / "run.json").write_bytes(data)
    run_record.check(folder, {"ModelConfig.emb_dim": 128}, lambda line: None)

  return check


def _message_seeds(folder: pathlib.Path) -> list[bytes]:
  del folder
  hello = host_messages.Hello(
    protocol=host_messages.PROTOCOL,
    purpose="host",
    index=1,
    count=2,
    name="a host",
    process=7,
    nonce="0" * 64,
  )
  said = [hello, host_messages.Beat(3, "step", 0.5), host_messages.Done()]
  return [host_messages.encode(message) for message in said]


def _messages(folder: pathlib.Path) -> Check:
  del folder

  def check(data: bytes) -> None:
    try:
      for line in host_messages.Lines(1000).add(data):
        host_messages.from_host(line)
    except host_messages.MessageError as error:
      raise UserError(str(error).replace("\n", " ")) from error

  return check


_READERS = ("commentree.tasks.readers", "commentree.tasks.trees.comment_tree")


def _all() -> Iterator[Surface]:
  for name in written_threads.WRITERS:
    seeds = functools.partial(_written, name)
    yield Surface(f"reader {name}", seeds, functools.partial(_reader, name), _READERS)
    yield Surface(
      f"reader {name}, long", seeds, functools.partial(_long, name), _READERS
    )
  told = functools.partial(_reader, None)
  yield Surface("any format", _any_written, told, _READERS)
  yield Surface("JSON of any layout", _layouts, told, _READERS)
  yield Surface("ConvoKit's titles", _conversations, _titles, _READERS)
  yield Surface("compression", _compressed, told, (*_READERS, files.__name__))
  yield Surface("cleaning", _texts, _clean, ("commentree.tasks",))
  built = ("commentree.tasks.dataset_files.built_dataset", "commentree.tasks.building")
  for name in ("dataset_info.json", "features.json", "CHECKSUMS.json"):
    yield Surface(
      f"built dataset, {name}", _dataset_file(name), _dataset_with(name), built
    )
  yield Surface("built dataset, records", _dataset_file("*-train.*"), _records, built)
  yield Surface("built dataset, one record", _record_seeds, _one_record, built)
  vocabulary = ("commentree.tasks",)
  yield Surface(
    "SentencePiece model",
    _vocabulary("unigram", 120),
    _open_vocabulary(".model"),
    vocabulary,
  )
  for kind, size in (("byte_bpe", 350), ("wordpiece", 200)):
    yield Surface(
      f"tokenizer.json, {kind}",
      _vocabulary(kind, size),
      _open_vocabulary(".json"),
      vocabulary,
    )
  yield Surface("config.gin of a run", _gin_seeds, _gin, ("commentree.launch",))
  run = ("commentree.training",)
  yield Surface("run.json", _run_json_seeds, _run_json, run)
  yield Surface("messages of hosts", _message_seeds, _messages, run)
  warm = ("commentree.training.warm_starts",)
  yield Surface("safetensors", _safetensors_seeds, _safetensors, warm)
  yield Surface("T5X msgpack", _msgpack_seeds, _msgpack, warm)


SURFACES = {re.sub(r"\W+", "_", surface.name): surface for surface in _all()}
