"""A build as an Apache Beam pipeline: the same trees, and the same bytes in a shard.

    sources > rows > rows of a tree > records > records of a shard > files

Beam groups rows by tree, and records by shard; of either, a worker holds one group in
memory. Everything else is as without Beam: which rows, comments and trees are wanted,
how shards are written, and how they become a dataset. Whether two builds cut the same
number of shards is left open: the text is counted there, and estimated here.

Workers read sources and write below the dataset's folder by the same paths, so all must
have them: a disk that they share, if they run on more than one machine.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from commentree.errors import UserError
from commentree.tasks.building import (
  building,
  filters,
  grouping,
  label_file,
  parts,
  shards,
)
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.label_file import LabelFile
from commentree.tasks.building.order import shard_of, shuffle_key
from commentree.tasks.building.parts import Bundle, SourceFile
from commentree.tasks.building.tree_builder import TreeBuilder
from commentree.tasks.dataset_files import folder_commit, tree_record
from commentree.tasks.trees import assembly
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tasks.trees.row import Row

# Of a row: is it a comment, its file, its place there; then the row, without its spans'
# types. Rows of a tree are in the order of `grouping.ORDER` when sorted by the first.
_Placed = tuple[tuple[bool, int, int], tuple[Any, ...]]


_SORT_MEMORY_MB = 512  # of labels


@dataclasses.dataclass(frozen=True)
class _Made:
  """What became of a tree's rows: a record and its split, or none; and the counts."""

  tree_id: str
  split: str | None
  record: bytes | None
  read_counts: dict[str, dict[str, int]]


def build(
  sources: Sequence[SourceFile],
  out: pathlib.Path,
  config: BuildConfig,
  pipeline_options: Sequence[str],
  labels: LabelFile | None = None,
) -> building.Built:
  """Makes a dataset on a Beam runner.

  Args:
    sources: what to read.
    out: the dataset's folder, whose name becomes its own.
    config: what decides what it holds.
    pipeline_options: Beam's flags, the runner among them.
    labels: of comments and posts, in place of their own.

  Raises:
    UserError: as `building.build`; and for an option that Beam does not know.
  """
  options = options_of(pipeline_options)

  def make_shards(work: pathlib.Path) -> tuple[pathlib.Path, int]:
    # A folder of its own, since DuckDB may have begun with shards of other ranges; what
    # a pipeline that was stopped left is made again.
    folder = work / "beam"
    with folder_commit.storage_errors(work):
      shutil.rmtree(folder, ignore_errors=True)
      for name in ("parts", "shards"):
        (folder / name).mkdir(parents=True)
    labelled = building.with_labels(sources, labels, folder)
    if labels is not None:
      label_file.make_index(
        *(labels, folder / label_file.INDEX, config.trees, _SORT_MEMORY_MB),
        report=lambda rows, size: None,
      )
    ready, tasks = parts.with_prepared(labelled, folder)
    for task in tasks:
      parts.prepare_format(*task, config, report=lambda rows, size: None)
    number = building.shards_for(building.room_needed(sources), config)
    with beam.Pipeline(options=options) as pipeline:
      _assemble(pipeline, ready, folder, config, number)
    return folder, number

  return building.build_with(make_shards, sources, out, config, labels)


def options_of(flags: Sequence[str]) -> PipelineOptions:
  """Beam's options from flags.

  Raises:
    UserError: naming a flag that Beam does not know.
  """
  options = PipelineOptions(list(flags))
  everything = options.get_all_options(retain_unknown_options=True)
  for name in everything.keys() - options.get_all_options().keys():
    raise UserError(f"--{name}: Apache Beam knows no such option")
  return options


def _assemble(
  pipeline: beam.Pipeline,
  sources: Sequence[SourceFile],
  folder: pathlib.Path,
  config: BuildConfig,
  num_shards: int,
) -> None:
  """Adds all steps to a pipeline."""
  # Of a shard without trees, too, there is something to write.
  every_shard = pipeline | "shards" >> beam.Create(
    [(shard, None) for shard in range(num_shards)]
  )
  made = (
    pipeline
    | "sources" >> beam.Create(parts.bundles(sources))
    | "spread sources" >> beam.Reshuffle()
    | "read" >> beam.FlatMap(_read, folder / "parts", config)
    | "rows of a tree" >> beam.GroupByKey()
    | "trees" >> beam.Map(_make, config)
    | "by shard" >> beam.Map(functools.partial(_by_shard, config.seed, num_shards))
  )
  _ = (
    (every_shard, made)
    | "with empty shards" >> beam.Flatten()
    | "records of a shard" >> beam.GroupByKey()
    | "write" >> beam.Map(_write, folder / "shards", config.seed)
  )


def _read(
  bundle: Bundle, folder: pathlib.Path, config: BuildConfig
) -> Iterator[tuple[str, _Placed]]:
  """Yields the rows of files by tree; notes the read_counts of what is no row."""
  read_counts = ReadCounts()
  digests: dict[int, str] = {}
  labeller = parts.labeller_of(bundle)
  for source in bundle:
    rows = parts.wanted_rows(source, config, read_counts, labeller)
    for place, row in enumerate(rows):
      *values, spans = row
      place_of_row = (not row.is_post, source.number, place)
      yield row.tree_id, (place_of_row, (*values, parts.encode_spans(spans)))
    digests[source.number] = parts.digest(source)
  parts.write_facts(folder, bundle, read_counts, digests, labeller)


def _make(tree: tuple[str, Iterable[_Placed]], config: BuildConfig) -> _Made:
  """Builds a tree of its rows."""
  tree_id, placed = tree
  rows = [
    Row._make((*values, parts.decode_spans(spans)))
    for _, (*values, spans) in sorted(placed)
  ]
  limits = grouping.Limits.of(config)
  posts = sum(row.is_post and assembly.is_named(row) for row in rows)
  comments = sum(row.stub is None for row in rows) - posts
  too_large = (
    comments > limits.comments or sum(map(parts.row_bytes, rows)) > limits.text_bytes
  )
  builder = TreeBuilder(config)
  made, _ = builder.build(
    grouping.TooLarge(posts, comments) if too_large else iter(rows)
  )
  read_counts = builder.take_fates().as_dict()
  if made is None:
    return _Made(tree_id, None, None, read_counts)
  split = filters.split_of(tree_id, made, config)
  return _Made(tree_id, split, tree_record.encode(made), read_counts)


def _by_shard(seed: int, num_shards: int, made: _Made) -> tuple[int, _Made]:
  return shard_of(shuffle_key(seed, made.tree_id), num_shards), made


def _write(
  shard: tuple[int, Iterable[_Made | None]], folder: pathlib.Path, seed: int
) -> None:
  """Writes a shard, its records in order of the shuffle key."""
  number, found = shard
  writer = shards.ShardWriter(folder, number)
  read_counts = ReadCounts()
  for made in sorted(
    (made for made in found if made is not None),
    key=lambda made: (shuffle_key(seed, made.tree_id), made.tree_id),
  ):
    read_counts += ReadCounts(
      **{k: collections.Counter(v) for k, v in made.read_counts.items()}
    )
    if made.record is not None and made.split is not None:
      writer.write(made.split, tree_record.decode(made.record))
  writer.finish(read_counts)
