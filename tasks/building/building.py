"""How a build goes: plan, parts, shards, dataset; and on again where it was stopped.

    DIR/.build/plan.json   settings and input; a build with others is refused
    DIR/.build/parts/      stage 1: each file's rows, sorted; see `parts`
    DIR/.build/shards/     stage 2: records; see `shards`
    DIR/.build/version/    stage 3: the dataset, before it is moved
    DIR/1.0.0/             the dataset; appears at once, when whole
    DIR/.sources.json      sizes and times of the files that it was made from

The same input, settings and seed give the same bytes, regardless of the workers, the
memory, the kills and the order of the paths. The input is the same if its files, in
order of name (then of path), have the same names and contents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from commentree import local_files
from commentree.errors import UserError
from commentree.tasks import readers
from commentree.tasks.building import filters, label_file, parts, plans, shards
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.building.label_file import LabelFile
from commentree.tasks.building.parts import RowPart, SourceFile
from commentree.tasks.building.statistics import Statistics
from commentree.tasks.building.workers import WINDOW_SHARE, Division
from commentree.tasks.dataset_files import folder_commit, manifest
from commentree.tasks.readers.parsing import compression

WORK = ".build"
LOCK = ".build.lock"

# One sort reads all row groups that its range of keys touches, of every part; with
# many more sorts than a part has row groups, each would read much in vain.
_LEAST_SORTS = 16
# Of a worker's share: the rows of a part, which are there twice, and as Parquet; and
# what DuckDB may take, beside a tree in memory and the records not written yet.
_PART_SHARE, _SORT_SHARE = 0.15, 0.6
_MAX_PART_BYTES = 2**29
# DuckDB was seen to sort 7 times as much text as it had memory, and to give up at 10.
_SORTED_PER_MEMORY = 4
# Room that parts and records take, as a multiple of the input.
_ROOM_FOR_PACKED, _ROOM_FOR_PLAIN = 4.0, 1.0


class _NoTreeLeftError(UserError):
  """Of all that was read, nothing is wanted; there is nothing to go on with."""


class Pool(Protocol):
  """What does work, as `workers.Workers`."""

  peak_bytes: int

  def run(
    self, work: Any, tasks: Iterable[tuple[Any, ...]], at_once: int | None = None
  ) -> None:
    """Has `work(*task, report=...)` done for each task, so many at once."""


class ProgressReporter(Protocol):
  """What receives how far a build is."""

  def stage(self, name: str, unit: str, total: int, done: int) -> None:
    """A stage begins: `done` of `total` are done already."""


@dataclasses.dataclass(frozen=True)
class Built:
  """A finished dataset.

  Attributes:
    folder: its files'.
    stats: what its `STATS.json` says.
    already: whether it was there before.
  """

  folder: pathlib.Path
  stats: dict[str, Any]
  already: bool


def list_sources(
  patterns: str | Sequence[str], config: BuildConfig, labels: LabelFile | None = None
) -> list[SourceFile]:
  """The files to read, numbered in their order; that of labels is none of them.

  Raises:
    UserError: if a pattern matches nothing, or there is no such format.
  """
  paths = {os.path.realpath(path): path for path in readers.expand(patterns)}
  if labels is not None:
    paths.pop(os.path.realpath(labels.path), None)
  ordered = sorted(paths.values(), key=lambda path: (os.path.basename(path), path))
  return [
    SourceFile(number, path, readers.format_of(path, config.format).name)
    for number, path in enumerate(ordered)
  ]


def remarks(
  sources: Sequence[SourceFile], config: BuildConfig, labels: LabelFile | None = None
) -> list[str]:
  """Says how sources and labels are read, where that is guessed.

  Raises:
    UserError: if one cannot be read as its format, labels are to come from corpora
      of ConvoKit and there are none, or from two places.
  """
  if labels is not None and config.trees.label_from is not None:
    raise UserError(
      f"--labels={labels.path}: labels are to come from --label_from, too; give one"
    )
  if config.trees.label_from is not None and all(
    source.format != "convokit" for source in sources
  ):
    raise UserError(
      f"--label_from={config.trees.label_from}: is for corpora of ConvoKit, and none of"
      " the files is one; leave it out (of tables, give --columns label=NAME)"
    )
  formats = {source.path: readers.check_name(source.format) for source in sources}
  lines = readers.remarks(formats, config.trees)
  if labels is not None:
    lines.append(
      f"{labels.path}: labels are read as {labels.columns}; others do not count"
    )
  return lines


def build(
  sources: Sequence[SourceFile],
  out: pathlib.Path,
  config: BuildConfig,
  pool: Pool,
  division: Division,
  progress: ProgressReporter,
  labels: LabelFile | None = None,
) -> Built:
  """Makes a dataset, or continues making it.

  Args:
    sources: what to read.
    out: the dataset's folder, whose name becomes its own.
    config: what decides what it holds.
    pool: does the work.
    division: of memory among the pool's workers.
    progress: receives the stages.
    labels: of comments and posts, in place of their own.

  Raises:
    UserError: if the folder holds or is becoming another dataset, another build is at
      work in it, the disk is full, or no tree is left.
  """

  def make_shards(work: pathlib.Path) -> tuple[pathlib.Path, int]:
    folder = work / "parts"
    ready, tasks = parts.with_prepared(with_labels(sources, labels, work), work)
    index = work / label_file.INDEX
    if labels is not None and not label_file.is_made(index):
      progress.stage("reading labels", "B", os.path.getsize(labels.path), 0)
      memory_mb = int(division.share_mb * _SORT_SHARE)
      pool.run(label_file.make_index, [(labels, index, config.trees, memory_mb)])
    if tasks:
      size = sum(os.path.getsize(path) for *_, paths in tasks for path in paths)
      progress.stage("finding posts", "B", size, 0)
      pool.run(parts.prepare_format, [(*task, config) for task in tasks])
    _make_parts(ready, folder, config, pool, division, progress)
    found = parts.list_parts(folder)
    number = shards_for(sum(map(parts.text_bytes, found)), config)
    _make_shards(found, number, work / "shards", config, pool, division, progress)
    return work, number

  return build_with(make_shards, sources, out, config, labels)


def with_labels(
  sources: Sequence[SourceFile], labels: LabelFile | None, folder: pathlib.Path
) -> list[SourceFile]:
  """Sources that know where the index of their labels will be, in a folder."""
  if labels is None:
    return list(sources)
  index, by_post = str(folder / label_file.INDEX), "post" in labels.columns.by_role
  return [
    dataclasses.replace(source, labels=index, labels_by_post=by_post)
    for source in sources
  ]


def build_with(
  make_shards: Callable[[pathlib.Path], tuple[pathlib.Path, int]],
  sources: Sequence[SourceFile],
  out: pathlib.Path,
  config: BuildConfig,
  labels: LabelFile | None = None,
) -> Built:
  """Makes a dataset, its shards by any engine; see `build`.

  Args:
    make_shards: given the folder to work in, returns the one, there or below, in whose
      `parts` each file's read_counts are and in whose `shards` all shards, beside the
      index of labels, and their number.
    sources: what to read.
    out: the dataset's folder.
    config: what decides what it holds.
    labels: of comments and posts, in place of their own.
  """
  name = manifest.check_name(out)
  with folder_commit.storage_errors(out):
    out.mkdir(parents=True, exist_ok=True)
  refusal = f"{out}: another build is at work in this folder; wait for it to end"
  with folder_commit.locked(out / LOCK, refusal):
    plan = plans.make_plan(sources, config, labels)
    version = out / manifest.VERSION
    if version.exists():
      return Built(version, plans.stats_if_same(version, sources, plan), already=True)
    work = out / WORK
    _begin(work, plan)
    try:
      made, num_shards = make_shards(work)
      draft = work / "version"
      stats = _make_dataset(draft, name, sources, made, num_shards, config, plan)
    except BaseException as error:
      if isinstance(error, _NoTreeLeftError) or not _is_begun(work):
        _forget(out)
      raise
    with folder_commit.storage_errors(out):
      draft.rename(version)
      local_files.sync(out)
      shutil.rmtree(work)
    folder_commit.write_json(out / plans.SOURCES, plan["input"])
  with contextlib.suppress(OSError):
    (out / LOCK).unlink()
  return Built(version, stats, already=False)


def room_needed(sources: Sequence[SourceFile]) -> int:
  """About how many bytes of disk a build takes at most."""
  needed = 0.0
  for source in sources:
    size = os.path.getsize(source.path)
    packed = not source.path.endswith((".jsonl", ".ndjson", ".json", ".xml"))
    needed += size * (_ROOM_FOR_PACKED if packed else _ROOM_FOR_PLAIN)
  return int(needed)


def _begin(work: pathlib.Path, plan: dict[str, Any]) -> None:
  """Makes the work folder, or checks that it is of the same build."""
  path = work / "plan.json"
  if path.exists() and _is_begun(work):
    try:
      difference = plans.difference(json.loads(path.read_text("utf-8")), plan)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{path}: is damaged; delete {work}") from error
    if difference:
      raise UserError(
        f"{work.parent}: a build begun here {difference}; give the same, or another"
        f" --out, or delete {work}"
      )
    return
  with folder_commit.storage_errors(work.parent):
    shutil.rmtree(work, ignore_errors=True)
    for folder in (work / "parts", work / "shards"):
      folder.mkdir(parents=True)
  folder_commit.write_json(path, plan)


def _is_begun(work: pathlib.Path) -> bool:
  """Whether a folder holds work that need not be done again."""
  return parts.is_begun(work / "parts") or any((work / "shards").glob("*.json"))


def _forget(out: pathlib.Path) -> None:
  """Takes away what a build that came to nothing made."""
  shutil.rmtree(out / WORK, ignore_errors=True)
  with contextlib.suppress(OSError):
    (out / LOCK).unlink()
    out.rmdir()  # if nothing else is in it


def _make_parts(
  sources: Sequence[SourceFile],
  folder: pathlib.Path,
  config: BuildConfig,
  pool: Pool,
  division: Division,
  progress: ProgressReporter,
) -> None:
  every = parts.bundles(sources)
  waiting = [bundle for bundle in every if not parts.is_done(folder, bundle)]
  sizes = {
    bundle: sum(os.path.getsize(source.path) for source in bundle) for bundle in every
  }
  total = sum(sizes.values())
  done = total - sum(sizes[bundle] for bundle in waiting)
  progress.stage("reading", "B", total, done)
  # The largest first, so that none is begun when all others are done.
  waiting.sort(key=lambda bundle: (-sizes[bundle], bundle[0].number))
  windows = [
    compression.window_bytes(source.path) for bundle in waiting for source in bundle
  ]
  at_once, share_mb = division.for_windows(max(windows, default=0))
  part_bytes = min(int(share_mb * _PART_SHARE * 2**20), _MAX_PART_BYTES)
  window_bytes = int(share_mb * WINDOW_SHARE * 2**20)
  pool.run(
    parts.write_parts,
    [(bundle, folder, config, part_bytes, window_bytes) for bundle in waiting],
    at_once,
  )


def shards_for(text_bytes: int, config: BuildConfig) -> int:
  """How many shards so much text takes: a power of two, so that hosts divide it."""
  wanted = -(-text_bytes // (config.shard_mb * 2**20))
  return 1 << max(0, wanted - 1).bit_length()


def _make_shards(
  found: Sequence[RowPart],
  num_shards: int,
  folder: pathlib.Path,
  config: BuildConfig,
  pool: Pool,
  division: Division,
  progress: ProgressReporter,
) -> None:
  rows = sum(part.end - part.first for part in found)
  waiting = [shard for shard in range(num_shards) if not shards.is_done(folder, shard)]
  done = rows * (num_shards - len(waiting)) // num_shards
  progress.stage("grouping", "rows", rows, done)
  share_mb = division.share_mb
  part_bytes = share_mb * _PART_SHARE * 2**20
  sorts = max(_LEAST_SORTS, int(part_bytes / parts.ROW_GROUP_BYTES))
  runs = _runs(waiting, -(-num_shards // sorts))
  memory_mb = int(share_mb * _SORT_SHARE)
  shard_bytes = sum(map(parts.text_bytes, found)) / num_shards
  slice_bytes = memory_mb * 2**20 * _SORTED_PER_MEMORY
  pool.run(
    shards.make_shards,
    [
      (
        *(run, num_shards, found, folder, config, memory_mb),
        math.ceil(len(run) * shard_bytes / slice_bytes) or 1,
      )
      for run in runs
    ],
  )


def _runs(numbers: Sequence[int], longest: int) -> list[range]:
  """Cuts ascending numbers into ranges without gaps, of a length at most."""
  runs: list[range] = []
  for number in numbers:
    if runs and runs[-1].stop == number and len(runs[-1]) < longest:
      runs[-1] = range(runs[-1].start, number + 1)
    else:
      runs.append(range(number, number + 1))
  return runs


def _make_dataset(
  draft: pathlib.Path,
  name: str,
  sources: Sequence[SourceFile],
  work: pathlib.Path,
  num_shards: int,
  config: BuildConfig,
  plan: dict[str, Any],
) -> dict[str, Any]:
  """Puts the dataset's files into a folder; returns its statistics."""
  with folder_commit.storage_errors(work):
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
  read_counts, digests = parts.read_facts(work / "parts")
  statistics = Statistics()
  by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in config.splits()}
  nothing = {"records": 0, "record_bytes": 0, "bytes": 0}
  for shard in range(num_shards):
    facts = shards.read_facts(work / "shards", shard)
    read_counts += facts["read_counts"]
    statistics += facts["statistics"]
    for split, of_split in by_split.items():
      of_split.append(facts["splits"].get(split, nothing))
  splits: dict[str, dict[str, Any]] = {}
  known: dict[str, dict[str, Any]] = {}
  for split, of_shards in by_split.items():
    if any(facts["records"] for facts in of_shards):
      splits[split], files = _place_split(
        draft, name, split, work / "shards", of_shards, config
      )
      known.update(files)
  if not splits:
    raise _NoTreeLeftError(
      f"no tree is left of {len(sources):,} files ({read_counts.told()}); see"
      " that format and filters are right, or look with `commentree inspect`"
    )
  stats = {
    "made_from": plans.made_from(plan, digests),
    "splits": {split: _split_facts(splits.get(split)) for split in by_split},
    "read_counts": {
      kind: dict(sorted(n.items())) for kind, n in read_counts.as_dict().items()
    },
    "comments": read_counts.comments.total(),
    "comments_kept": read_counts.kept,
    "posts": read_counts.trees.total() - filters.posts_missing(read_counts),
    "posts_missing": filters.posts_missing(read_counts),
    **statistics.summary(),
  }
  if plan["labels"] is not None:
    stats["label_file"] = label_file.summary(work / "parts", work / label_file.INDEX)
  manifest.write_metadata(draft, name, splits)
  folder_commit.write_json(draft / manifest.STATS, stats)
  manifest.write_checksums(draft, known)
  with folder_commit.storage_errors(draft):
    for path in draft.iterdir():
      local_files.sync(path)
    local_files.sync(draft)
  return stats


def _split_facts(split: dict[str, Any] | None) -> dict[str, int]:
  if split is None:
    return {"trees": 0, "shards": 0, "record_bytes": 0}
  return {
    "trees": sum(split["shard_lengths"]),
    "shards": len(split["shard_lengths"]),
    "record_bytes": split["record_bytes"],
  }


def _place_split(
  draft: pathlib.Path,
  name: str,
  split: str,
  folder: pathlib.Path,
  of_shards: Sequence[dict[str, Any]],
  config: BuildConfig,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
  """Puts a split's files of records into the dataset; small ones are joined.

  Returns:
    What TFDS records of the split; and by file, what `CHECKSUMS.json` says of it.
  """
  record_bytes = sum(facts["record_bytes"] for facts in of_shards)
  number = len(of_shards)
  while number > 1 and record_bytes / number < config.shard_mb * 2**20 / 8:
    number //= 2
  together = len(of_shards) // number
  lengths, files = [], {}
  for shard in range(number):
    members = range(shard * together, (shard + 1) * together)
    paths = [
      shards.records_path(folder, member, split)
      for member in members
      if of_shards[member]["records"]
    ]
    file_name = manifest.shard_name(name, split, shard, number)
    if together == 1 and paths:
      manifest.link_file(paths[0], draft / file_name)
      of_file = {key: of_shards[shard][key] for key in ("bytes", "sha256")}
    else:
      of_file = manifest.join_files(paths, draft / file_name)
    records = sum(of_shards[member]["records"] for member in members)
    files[file_name] = {**of_file, "records": records}
    lengths.append(records)
  return {"shard_lengths": lengths, "record_bytes": record_bytes}, files
