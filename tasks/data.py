"""Prepared data for a run: from a task's name to batches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from . import forest_layout, packing, records, registry, streams
from .cache import cache_root
from .data_config import DataConfig
from .forest_layout import ForestShape
from .pieces import Piece, PieceCounts
from .registry import CommentTreeTask

_PROGRESS_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class RunData:
  """What a run reads.

  Attributes:
    task: the SeqIO task.
    shape: what a forest holds.
    config: the settings it came from.
    splits: prepared pieces of 'train' and 'validation'.
  """

  task: CommentTreeTask
  shape: ForestShape
  config: DataConfig
  splits: Mapping[str, records.PieceRecords]

  def train_batches(
    self, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
  ) -> streams.TrainBatches:
    """This host's rows of the global training batches, endless and resumable."""
    return streams.TrainBatches(
      self.splits["train"],
      self.task.masker(),
      self.shape,
      batch_size=batch_size,
      seed=seed,
      lookahead=self.config.layout.lookahead,
      host=host,
      num_hosts=num_hosts,
    )

  def eval_batches(
    self, batch_size: int, host: int = 0, num_hosts: int = 1
  ) -> Iterator[streams.Batch]:
    """This host's rows of a pass over the held-out data, the same each time."""
    return streams.eval_batches(
      self.splits["validation"],
      self.task.masker(),
      self.shape,
      batch_size=batch_size,
      seed=self.config.eval_seed,
      lookahead=self.config.layout.lookahead,
      host=host,
      num_hosts=num_hosts,
    )

  def example_batch(self, batch_size: int) -> streams.Batch:
    """A batch of padding, for shapes and types."""
    return streams.stack([packing.empty_forest(self.shape)] * batch_size)

  def facts(self) -> dict[str, Any]:
    """What of the data decides a run's results: shapes, vocabulary, sources."""
    return {
      "task": self.task.name,
      "vocabulary": self.task.tokenizer.fingerprint,
      **{f"forest.{k}": v for k, v in dataclasses.asdict(self.shape).items()},
      "pieces": records.jsonable(self.task.preprocessing),
      **{f"{name}_counts": split.meta["counts"] for name, split in self.splits.items()},
    }


def register_tasks(config: DataConfig) -> None:
  """Makes the settings' own tasks known to SeqIO, beside those already registered."""
  preprocessing = config.preprocessing()
  registry.add_generated_task(
    config=config.generated,
    preprocessing=dataclasses.replace(
      preprocessing,
      masking=dataclasses.replace(
        preprocessing.masking, mask_share=1.0, random_share=0.0
      ),
    ),
    cache_dir=config.cache_dir,
  )
  if config.files and config.vocabulary:
    registry.add_files_task(
      registry.FILES,
      config.files,
      config.vocabulary,
      config.held_out_share,
      preprocessing,
    )


def open_data(
  config: DataConfig,
  console: Console | None = None,
  splits: tuple[str, ...] = ("train", "validation"),
) -> RunData:
  """Prepares what is not prepared yet, and chooses the forest's shape.

  Args:
    config: the settings.
    console: told of progress and of every comment's fate.
    splits: which splits to open; the shape always follows from the first.

  Raises:
    UserError: for anything the user can mend.
  """
  console = console or Console(quiet=True)
  register_tasks(config)
  task = registry.get_task(config.mixture_or_task_name)
  prepared = {
    split: prepare(task, split, config.cache_dir, console) for split in splits
  }
  lengths = forest_layout.row_lengths(config.task_feature_lengths)
  totals = streams.sample_totals(
    prepared[splits[0]], task.masker(), lengths, config.layout.max_ancestors
  )
  shape = forest_layout.resolve(config.layout, config.task_feature_lengths, totals)
  return RunData(task, shape, config, prepared)


def prepare(
  task: CommentTreeTask, split: str, cache_dir: str | None, console: Console
) -> records.PieceRecords:
  """Opens a split's pieces, writing them first if this is their first use."""
  builder = task.piece_builder()
  signature = {
    "source": task.tree_source.signature(split),
    "vocabulary": task.tokenizer.fingerprint,
    "cleaning": records.jsonable(builder.cleaning),
    "markers": records.jsonable(builder.markers),
    "pieces": records.jsonable(builder.pieces),
    "target_post": builder.trees.target_post,
  }
  key = records.fingerprint(signature)
  folder = cache_root(cache_dir) / "pieces" / f"{task.name}-{split}-{key}"
  meta: dict[str, Any] = {"key": key, "signature": signature}

  def pieces() -> Iterator[Piece]:
    started = told = time.monotonic()
    for tree in task.tree_source.trees(split):
      yield from builder(tree)
      if time.monotonic() - told > _PROGRESS_SECONDS:
        told = time.monotonic()
        rate = builder.counts.comments / (told - started)
        console.print(
          f"preparing {split}: {builder.counts.comments:,} comments ({rate:,.0f}/s)"
        )
    meta["counts"] = dataclasses.asdict(builder.counts)

  # Processes of one machine need it at the same moment: one prepares, the others wait.
  with records.locked(folder):
    if folder.exists():
      return records.PieceRecords(folder)
    written = records.write(folder, pieces(), meta)
  report(console, split, task, builder.counts)
  return written


def report(
  console: Console, split: str, task: CommentTreeTask, counts: PieceCounts
) -> None:
  """Says what became of every comment read."""
  console.print(f"prepared {split}: {counts.report()}")
  if task.tree_source.fates.total():
    console.print(task.tree_source.fates.table())
