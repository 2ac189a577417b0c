"""SeqIO's cache job for a run's task, regardless of its settings, on any Beam runner.

`seqio.scripts.cache_tasks_main` knows the tasks that a module registers when imported;
ours come from settings too. The transforms, the files and their names are SeqIO's.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import apache_beam as beam
import seqio
from etils import epath
from seqio import beam_utils

from commentree.console import Console
from commentree.errors import UserError
from commentree.paths import cache_root
from commentree.tasks.building import beam_pipeline
from commentree.tasks.data_config import DataConfig
from commentree.tasks.preparation import cached_subtrees, preparing
from commentree.tasks.seqio_tasks import registration, registry
from commentree.tasks.seqio_tasks.registry import CommentTreeTask

_COMPLETED = "COMPLETED"


@dataclasses.dataclass(frozen=True)
class CacheJob:
  """What to cache, and where.

  Attributes:
    config: of the data; says the task.
    output_cache_dir: SeqIO's cache; the task gets a folder in it.
    pipeline_options: Beam's, such as '--runner=DirectRunner'.
    min_shards: least number of files of a split; more if its source has more.
    overwrite: whether to cache again what is cached.
  """

  config: DataConfig
  output_cache_dir: str
  pipeline_options: Sequence[str] = ()
  min_shards: int = 64
  overwrite: bool = False


def run(job: CacheJob, console: Console) -> list[epath.Path]:
  """Caches all splits of a task, or of a mixture's tasks, and makes their indexes.

  Returns:
    The tasks' folders.

  Raises:
    UserError: if one is cached already, or the runner or the storage refuses.
  """
  registration.register_tasks(job.config)
  tasks = [part.task for part in registry.get_parts(job.config.mixture_or_task_name)]
  _check_not_cached(job, tasks)
  return [_cache(job, task, console) for task in tasks]


def _cache(job: CacheJob, task: CommentTreeTask, console: Console) -> epath.Path:
  """Caches a task; returns its folder."""
  folder = _empty_folder(job, task)
  note = preparing.note(task)  # reads the vocabulary: a missing one is reported now
  pipeline = beam.Pipeline(options=beam_pipeline.options_of(job.pipeline_options))
  for split in task.splits:
    _add_split(pipeline, task, split, folder, job)
  with console.status(f"caching {task.name}: {', '.join(task.splits)}"):
    pipeline.run().wait_until_finish()
  (folder / cached_subtrees.NOTE).write_text(note)
  for split in task.splits:
    subtrees = cached_subtrees.CachedSubtrees(
      folder, split, cache_root(job.config.cache_dir) / "indexes", console.print
    )
    subtrees.copy_index()
    console.print(f"cached {split}: {len(subtrees):,} subtrees")
  # Last: SeqIO takes for a cache what has this file.
  (folder / _COMPLETED).write_text("")
  return folder


def _folder(job: CacheJob, task: CommentTreeTask) -> epath.Path:
  """The task's folder in the cache."""
  return epath.Path(job.output_cache_dir).expanduser() / (
    seqio.get_task_dir_from_name(task.name)
  )


def _check_not_cached(job: CacheJob, tasks: Sequence[CommentTreeTask]) -> None:
  """Raises UserError if a task is cached, unless that is to be overwritten."""
  for folder in (_folder(job, task) for task in tasks):
    if (folder / _COMPLETED).exists() and not job.overwrite:
      raise UserError(
        f"{folder}: is cached already; add --overwrite to cache it again, or give"
        " another --output_cache_dir"
      )


def _empty_folder(job: CacheJob, task: CommentTreeTask) -> epath.Path:
  """The task's folder in the cache, without what a killed or older job left there."""
  folder = _folder(job, task)
  try:
    if folder.exists():
      # COMPLETED goes first: a job that is killed here leaves no cache.
      (folder / _COMPLETED).unlink(missing_ok=True)
      folder.rmtree()
    folder.mkdir(parents=True)
  except OSError as error:
    raise UserError(f"--output_cache_dir: cannot be written ({error})") from error
  return folder


class _Preprocess(beam_utils.PreprocessTask):
  """SeqIO's, with arrays for tensors, which Beam takes long to pass on."""

  def _emit_examples(self, shard):
    for example in super()._emit_examples(shard):
      yield {name: value.numpy() for name, value in example.items()}


def _add_split(
  pipeline: beam.Pipeline,
  task: CommentTreeTask,
  split: str,
  folder: epath.Path,
  job: CacheJob,
) -> None:
  """SeqIO's steps for a split."""
  path, label = os.fspath(folder), f"{task.name}_{split}"
  preprocess = _Preprocess(
    task, split, setup_fn=functools.partial(registration.register_tasks, job.config)
  )
  num_shards = max(len(preprocess.shards), job.min_shards)
  examples = (
    pipeline | f"{label}_pat" >> preprocess | f"{label}_shuffle" >> beam.Reshuffle()
  )
  _ = examples | f"{label}_write_tfrecord" >> beam_utils.WriteExampleTfRecord(
    seqio.get_cached_tfrecord_prefix(path, split), num_shards=num_shards
  )
  _ = (
    examples
    | f"{label}_info" >> beam_utils.GetInfo(num_shards)
    | f"{label}_write_info"
    >> beam_utils.WriteJson(seqio.get_cached_info_path(path, split))
  )
  _ = (
    examples
    | f"{label}_stats" >> beam_utils.GetStats(task.output_features)
    | f"{label}_write_stats"
    >> beam_utils.WriteJson(seqio.get_cached_stats_path(path, split))
  )
