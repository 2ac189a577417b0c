"""Prepared data for a run: from a task's name to batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from . import (
  built_dataset,
  cached_pieces,
  forest_layout,
  packing,
  preparation,
  records,
  registry,
  streams,
)
from .data_config import DataConfig
from .forest_layout import ForestShape
from .registry import CommentTreeTask, Preprocessing

Pieces = records.PieceRecords | cached_pieces.CachedPieces

_LATER_SETTINGS = ("comment_labels", "objective")
_DEFAULT_SHARE = DataConfig.held_out_share


@dataclasses.dataclass(frozen=True)
class RunData:
  """What a run reads.

  Attributes:
    task: the SeqIO task.
    shape: what a forest holds.
    config: the settings it came from.
    splits: pieces of 'train' and 'validation', prepared or cached.
  """

  task: CommentTreeTask
  shape: ForestShape
  config: DataConfig
  splits: Mapping[str, Pieces]

  def train_batches(
    self, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
  ) -> streams.TrainBatches:
    """This host's rows of the global training batches, endless and resumable."""
    return streams.TrainBatches(
      self.splits["train"],
      self.task.objective(),
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
      self.task.objective(),
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
      **{f"forest.{k}": v for k, v in shape_facts(self.shape).items()},
      "pieces": pieces_facts(self.task.preprocessing),
      **{
        f"{name}_pieces": f"{len(split):,}, of digest {split.totals.digest:016x}"
        for name, split in self.splits.items()
      },
    }


def shape_facts(shape: ForestShape) -> dict[str, Any]:
  """A forest's shape; without `extras`, which came later, where there are none."""
  facts = dataclasses.asdict(shape)
  return facts if shape.extras else {k: v for k, v in facts.items() if k != "extras"}


def pieces_facts(preprocessing: Preprocessing) -> dict[str, Any]:
  """Settings of pieces; without those of later versions where nothing is set."""
  facts = records.jsonable(preprocessing)
  default = records.jsonable(Preprocessing())
  for name in _LATER_SETTINGS:
    if facts[name] == default[name]:
      del facts[name]
  if not facts["masking"]["whole_words"]:
    del facts["masking"]["whole_words"]
  if facts["labels"]["bare_trees"] == default["labels"]["bare_trees"]:
    del facts["labels"]["bare_trees"]
  return facts


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
      config.files_format,
    )


def open_data(
  config: DataConfig,
  console: Console | None = None,
  splits: tuple[str, ...] = ("train", "validation"),
) -> RunData:
  """Prepares what is neither prepared nor cached, and chooses the forest's shape.

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
  if built_dataset.find(config.files or ()) and config.held_out_share != _DEFAULT_SHARE:
    console.print(
      f"HELD_OUT_SHARE = {config.held_out_share} does not apply: {config.files} has"
      " splits of its own",
      soft_wrap=True,
    )
  open_split = preparation.open_cached if config.use_cached else preparation.prepare
  prepared: dict[str, Pieces] = {
    split: open_split(task, split, config, console) for split in splits
  }
  lengths = forest_layout.row_lengths(config.task_feature_lengths)
  objective = task.objective()
  totals = streams.sample_totals(
    prepared[splits[0]], objective, lengths, config.layout.max_ancestors
  )
  shape = forest_layout.resolve(
    config.layout, config.task_feature_lengths, totals, objective.extras
  )
  return RunData(task, shape, config, prepared)
