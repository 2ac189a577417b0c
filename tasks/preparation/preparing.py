"""A task's subtrees by index: prepared here, or from a cache that SeqIO wrote."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from commentree import differences
from commentree.console import Console
from commentree.errors import UserError
from commentree.paths import cache_root
from commentree.tasks import settings_tasks
from commentree.tasks.data_config import DataConfig
from commentree.tasks.preparation import cached_subtrees, records
from commentree.tasks.sources.tree_sources import BuiltTreesSource, TreeFilesSource
from commentree.tasks.subtrees import discourse
from commentree.tasks.subtrees.subtree_builder import Subtree
from commentree.tasks.subtrees.subtree_counts import SubtreeCounts
from commentree.tasks.tree_task import TreeTask
from commentree.tasks.trees.comment_tree import KEPT, ReadCounts

_PROGRESS_SECONDS = 10.0
# Standard deviations that numbers may lie from 0 before advice is given; how many times
# more or less than 1 theirs may be.
_FAR = 5
# Starting a process costs seconds of imports, which pay from so many bytes of records
# on.
_BYTES_PER_WORKER = 64 * 2**20
# Parts of `PreprocessingConfig` that are in the source's signature, or apply when
# subtrees are read; what of them shapes subtrees is named by `settings`.
_NOT_OF_SUBTREES = ("trees", "masking", "discourse", "objective")


def settings(task: TreeTask, split: str) -> dict[str, Any]:
  """All that shapes a split's subtrees, JSON-able."""
  builder = task.subtree_builder()
  config = builder.preprocessing
  shaping = dataclasses.asdict(config)
  for name in _NOT_OF_SUBTREES:
    del shaping[name]
  for name in ("mean", "standard_deviation"):  # apply when subtrees are read
    del shaping["comment_numbers"][name]
  return {
    **shaping,
    "source": task.tree_source.signature(split),
    "vocabulary": task.tokenizer.fingerprint,
    "target_post": config.trees.target_post,
    "phrases": discourse.fingerprint(builder.phrases),
    "languages": list(config.objective.languages),
    "translations": bool(config.objective.languages) and config.objective.name == "tlm",
  }


def prepare(
  task: TreeTask, split: str, config: DataConfig, console: Console
) -> records.SubtreeRecords:
  """Opens a split's subtrees, writing them first if this is their first use."""
  check_split(task, split)
  signature = settings(task, split)
  key = records.fingerprint(signature)
  # Tasks of a mixture that differ in nothing but their objective share their subtrees.
  source, _, _ = task.name.partition(":")
  folder = cache_root(config.cache_dir) / "subtrees" / f"{source}-{split}-{key}"
  meta: dict[str, Any] = {"key": key, "signature": signature}
  counts = SubtreeCounts()
  read_counts = ReadCounts()

  def fill(draft: pathlib.Path) -> list[records.Totals]:
    nonlocal read_counts
    shards = len(task.tree_source.list_shards(split))
    parts = []
    for part in _parts(task, split, config, draft, shards, console):
      parts.append(part.totals)
      counts.add(part.counts)
      read_counts += part.read_counts
    meta["counts"] = dataclasses.asdict(counts)
    if not counts.subtrees:
      raise _no_trees(task, split, read_counts)
    if task.preprocessing.comment_numbers.source != "none" and not counts.numbers:
      raise _no_numbers(task, split, counts)
    return parts

  # Processes of one machine need it at the same moment: one prepares, the others wait.
  with records.locked(folder):
    if folder.exists():
      found = records.SubtreeRecords(folder)
      counts = SubtreeCounts(**found.meta["counts"])
      if labels := counts.report_labels():
        console.print(f"{split}: {labels}")
      _advise_on_numbers(task, counts, console)
      return found
    written = records.write_parts(folder, fill, meta)
  console.print(f"prepared {split}: {counts.report()}")
  _advise_on_numbers(task, counts, console)
  if read_counts.total():
    read_counts.tell(console)
  return written


def _no_trees(task: TreeTask, split: str, read_counts: ReadCounts) -> UserError:
  """Says that a split has no trees, and how it gets some."""
  source = task.tree_source
  trees = sum(n for fate, n in read_counts.trees.items() if fate.startswith(KEPT))
  if not trees or not isinstance(source, TreeFilesSource):
    return UserError(
      f"no comment trees were found for the split {split!r} of {task.name!r}"
      f" ({read_counts.told()})"
    )
  share = f"HELD_OUT_SHARE = {source.held_out_share} holds out"
  if split == "train":
    return UserError(
      f"{share} all of the {trees:,} trees of FILES: lower it, or give more trees"
    )
  return UserError(
    f"{share} none of the {trees:,} trees of FILES: raise it, give more trees, or set"
    " HELD_OUT_SHARE = 0 to train without held-out trees"
  )


def _advise_on_numbers(task: TreeTask, counts: SubtreeCounts, console: Console) -> None:
  """Says if numbers are far from those that a model learns well."""
  config = task.preprocessing.comment_numbers
  mean, deviation = counts.number_moments()
  if config.source == "none" or not deviation:
    return
  distance = abs(mean - config.mean) / config.standard_deviation
  spread = deviation / config.standard_deviation
  if distance > _FAR or not 1 / _FAR < spread < _FAR:
    console.print(
      "numbers are learnt best near 0, with a standard deviation near 1:"
      f" --gin.CommentNumbersConfig.mean={mean:.3g}"
      f" --gin.CommentNumbersConfig.standard_deviation={deviation:.3g}"
    )


def _no_numbers(task: TreeTask, split: str, counts: SubtreeCounts) -> UserError:
  """Says that no comment of a split has a number, and what comments have."""
  source = task.preprocessing.comment_numbers.source
  total = counts.numbers_missing + counts.numbers_odd
  return UserError(
    f"{task.name}: CommentNumbersConfig.source = {source!r}: none of the {total:,}"
    f" comments to predict of {split!r} has a {source} that is a finite number"
    f" ({counts.with_score:,} have a score, {counts.with_label:,} a label): name the"
    " other, give --labels to `commentree build`, or more trees"
  )


def check_split(task: TreeTask, split: str) -> None:
  """Raises UserError if the task's source has no such split."""
  if split in task.splits:
    return
  if isinstance(task.tree_source, TreeFilesSource):
    raise UserError(
      f"HELD_OUT_SHARE = {task.tree_source.held_out_share}: leaves no trees of FILES"
      f" for the split {split!r}; set a share between 0 and 1"
    )
  mend = ""
  if split == "validation":
    mend = (
      ": build it with a larger --validation_share, or set HELD_OUT_SHARE = 0 to train"
      " without held-out trees"
    )
  raise UserError(
    f"the data of {task.name!r} has no split {split!r} with trees in it; there are"
    f" {', '.join(task.splits) or 'none'}{mend}"
  )


@dataclasses.dataclass
class _Part:
  """What one shard of the source gave."""

  totals: records.Totals
  counts: SubtreeCounts
  read_counts: ReadCounts


def _parts(
  task: TreeTask,
  split: str,
  config: DataConfig,
  draft: pathlib.Path,
  shards: int,
  console: Console,
) -> Iterator[_Part]:
  """Writes a part for each shard, in as many processes as pay; yields them in order."""
  workers = _count_workers(task, split, config, shards)
  if workers == 1:
    for shard in range(shards):
      yield _write_part(task, split, shard, draft, console)
    return
  started = time.monotonic()
  comments = 0
  with concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    futures = [
      pool.submit(_write_part_apart, config, task.name, split, shard, os.fspath(draft))
      for shard in range(shards)
    ]
    try:
      for shard, future in enumerate(futures, 1):
        part = future.result()
        comments += part.counts.comments
        rate = comments / (time.monotonic() - started)
        console.print(
          f"preparing {split}: shard {shard} of {shards}, {comments:,} comments"
          f" ({rate:,.0f}/s, {workers} processes)"
        )
        yield part
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _count_workers(task: TreeTask, split: str, config: DataConfig, shards: int) -> int:
  source = task.tree_source
  # Another process knows the task only if the settings alone make it.
  known = task.name in settings_tasks.made(config)
  if not known or not isinstance(source, BuiltTreesSource):
    return 1
  paying = 1 + source.dataset.split(split).num_bytes // _BYTES_PER_WORKER
  wanted = config.prepare_processes or min(os.cpu_count() or 1, paying)
  return max(1, min(wanted, shards))


def _write_part_apart(
  config: DataConfig, name: str, split: str, shard: int, draft: str
) -> _Part:
  """`_write_part` in a process of its own, which makes the task from its settings."""
  task = settings_tasks.make(config, name)
  return _write_part(task, split, shard, pathlib.Path(draft), Console(quiet=True))


def _write_part(
  task: TreeTask,
  split: str,
  shard: int,
  draft: pathlib.Path,
  console: Console,
) -> _Part:
  builder = task.subtree_builder()

  def subtrees() -> Iterator[Subtree]:
    started = told = time.monotonic()
    for _, tree in task.tree_source.shard_trees(split, shard):
      yield from builder(tree)
      if time.monotonic() - told > _PROGRESS_SECONDS:
        told = time.monotonic()
        rate = builder.counts.comments / (told - started)
        console.print(
          f"preparing {split}: {builder.counts.comments:,} comments ({rate:,.0f}/s)"
        )

  totals = records.write_part(records.part_path(draft, shard), subtrees())
  return _Part(totals, builder.counts, task.tree_source.read_counts)


def open_cached(
  task: TreeTask, split: str, config: DataConfig, console: Console
) -> cached_subtrees.CachedSubtrees:
  """Opens a split's subtrees in the SeqIO cache that has the task.

  Raises:
    UserError: if it is missing, or it was made with other settings.
  """
  import seqio

  from commentree.tasks.seqio_tasks import registry

  check_split(task, split)
  dirs = config.seqio_additional_cache_dirs
  seqio.add_global_cache_dirs([dirs] if isinstance(dirs, str) else list(dirs))
  cache_dir = registry.get_task(task.name).cache_dir
  if not cache_dir:
    raise UserError(
      f"USE_CACHED_TASKS: {task.name!r} is not cached in"
      f" {', '.join(seqio.utils.get_global_cache_dirs()) or 'any folder'}; run this"
      " command with `commentree cache --output_cache_dir=DIR` in place of `commentree"
      " train`, and set SEQIO_ADDITIONAL_CACHE_DIRS to DIR"
    )
  folder = epath.Path(cache_dir)
  check_note(folder, task, split, console)
  return cached_subtrees.CachedSubtrees(
    folder, split, cache_root(config.cache_dir) / "indexes", console.print
  )


def note(task: TreeTask) -> str:
  """What our cache job writes of the settings into the task's folder of the cache."""
  noted = {split: _portable(settings(task, split)) for split in task.splits}
  return json.dumps(noted, indent=2, sort_keys=True)


def check_note(
  folder: epath.Path, task: TreeTask, split: str, console: Console
) -> None:
  """Compares the settings of a cache with those of the run.

  Raises:
    UserError: naming what differs.
  """
  path = folder / cached_subtrees.NOTE
  if not path.exists():
    console.print(
      f"{folder}: does not say with what settings it was made; it is taken as it is",
    )
    return
  try:
    there = json.loads(path.read_text()).get(split, {})
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(
      f"{path}: is damaged ({error}); make the cache again with `commentree cache"
      " --overwrite`"
    ) from error
  for name, was, now in differences.find(there, _portable(settings(task, split))):
    raise UserError(
      f"{folder}: was cached with other settings: {name} was {was}, is {now}; make the"
      " cache again with `commentree cache --overwrite`, or use those settings"
    )


def _portable(signature: dict[str, Any]) -> dict[str, Any]:
  """Without where files lie and when they were written: caches are copied about."""
  source = dict(signature["source"])
  if "files" in source:
    source["files"] = [
      (os.path.basename(path), size) for path, size, _ in source["files"]
    ]
  return {**signature, "source": source}
