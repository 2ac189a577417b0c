"""Prepared data for a run: from a task's name to batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from commentree.console import Console
from commentree.errors import UserError
from commentree.settings import identity
from commentree.tasks import named_tasks
from commentree.tasks.data_config import DataConfig
from commentree.tasks.dataset_files import built_dataset
from commentree.tasks.forests import forest_layout, forest_streams, mixing, packing
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.objectives import label_objectives
from commentree.tasks.preparation import cached_subtrees, preparing, records
from commentree.tasks.tree_task import TreeTask

Subtrees = records.SubtreeRecords | cached_subtrees.CachedSubtrees

_DEFAULT_SHARE = DataConfig.held_out_share
# Share of a decoder's rows that packing fills, as a rule.
_USUAL_FILL = 0.95


@dataclasses.dataclass(frozen=True)
class TaskData:
  """What a run reads of a task.

  Attributes:
    task: the task.
    share: of all subtrees that are read in training; 1 for a task alone.
    splits: subtrees of 'train' and 'validation', prepared or cached.
  """

  task: TreeTask
  share: Fraction
  splits: Mapping[str, Subtrees]

  def facts(self) -> dict[str, Any]:
    """What of it decides a run's results."""
    return {
      **identity(self.task.preprocessing),
      **{
        f"{name}_subtrees": f"{len(split):,}, of digest {split.totals.digest:016x}"
        for name, split in self.splits.items()
      },
    }


@dataclasses.dataclass(frozen=True)
class Pace:
  """About what a step of training and an epoch hold.

  Attributes:
    comments: of a step.
    tokens: of those comments.
    masked_tokens: of these, to be predicted.
    epoch_comments: comments of an epoch; None for a mixture, whose tasks have epochs of
      their own.
  """

  comments: int
  tokens: int
  masked_tokens: int
  epoch_comments: int | None

  @property
  def epoch_steps(self) -> int | None:
    """Steps of an epoch; None for a mixture."""
    if self.epoch_comments is None:
      return None
    return math.ceil(self.epoch_comments / max(1, self.comments))

  def __str__(self) -> str:
    step = (
      f"a step holds about {self.comments:,} comments of {self.tokens:,} tokens,"
      f" {self.masked_tokens:,} to be predicted"
    )
    if self.epoch_steps is None:
      return step
    return (
      f"{step}; an epoch {self.epoch_comments:,} comments in {self.epoch_steps:,} steps"
    )


@dataclasses.dataclass(frozen=True)
class RunData:
  """What a run reads.

  Attributes:
    name: of the task or mixture.
    parts: the task, or those of the mixture.
    shape: what a forest holds.
    sample: sizes of subtrees, of all tasks in their proportions.
    config: the settings it came from.
  """

  name: str
  parts: tuple[TaskData, ...]
  shape: ForestShape
  sample: forest_layout.SubtreeTotals
  config: DataConfig

  @property
  def task(self) -> TreeTask:
    """The task; of a mixture the first, with which the others share the vocabulary."""
    return self.parts[0].task

  @property
  def splits(self) -> Mapping[str, Subtrees]:
    """That task's subtrees."""
    return self.parts[0].splits

  def pace(self, batch_size: int) -> Pace:
    """Returns about what a step of training and an epoch hold, from a sample."""
    shape, sample = self.shape, self.sample
    tokens = batch_size * shape.decoder_rows * shape.decoder_length * _USUAL_FILL
    comments = tokens * sample.targets / max(1, sample.target_tokens)
    per_subtree = sample.targets / max(1, sample.subtrees)
    epoch = None
    if len(self.parts) == 1:
      epoch = round(len(self.splits["train"]) * per_subtree)
    return Pace(
      round(comments),
      round(tokens),
      round(comments * sample.masked_tokens / max(1, sample.targets)),
      epoch,
    )

  def train_batches(
    self, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
  ) -> forest_streams.TrainForests:
    """This host's rows of the global training batches, endless and resumable."""
    sources = [
      forest_streams.SubtreeSource(
        part.splits["train"], part.task.objective(), part.share
      )
      for part in self.parts
    ]
    return forest_streams.TrainForests(
      sources,
      self.shape,
      batch_size=batch_size,
      seed=seed,
      lookahead=self.config.layout.lookahead,
      host=host,
      num_hosts=num_hosts,
    )

  def eval_batches(
    self,
    batch_size: int,
    host: int = 0,
    num_hosts: int = 1,
    part: int = 0,
    split: str = "validation",
  ) -> Iterator[forest_streams.Batch]:
    """This host's rows of a pass over a task's held-out data, the same each time."""
    return forest_streams.eval_batches(
      self.parts[part].splits[split],
      self.parts[part].task.objective(),
      self.shape,
      batch_size=batch_size,
      seed=self.config.eval_seed,
      lookahead=self.config.layout.lookahead,
      host=host,
      num_hosts=num_hosts,
    )

  def holds_targets(self, batch_size: int, limit: int | None, part: int = 0) -> bool:
    """Whether anything is to be predicted in a pass over a task's held-out data.

    Args:
      batch_size: forests in a global batch.
      limit: batches that the pass is cut to; None for all.
      part: which task's.
    """
    subtrees = self.parts[part].splits["validation"]
    rank = forest_streams.first_target(
      subtrees,
      self.parts[part].task.objective(),
      self.shape.decoder_length,
      self.config.eval_seed,
    )
    # The oldest subtree that waits goes into the next forest, so that at least one
    # subtree of each forest's stream is used up by it.
    if rank is None or limit is None or rank < batch_size * limit:
      return rank is not None
    batches = itertools.islice(self.eval_batches(batch_size, part=part), limit)
    return any((batch["decoder_loss_weights"] > 0).any() for batch in batches)

  def count_targets(self, part: int = 0) -> np.ndarray:
    """How often each id is to be predicted in a task's training data, int64 [ids].

    Counted in all subtrees, or in a sample of many.
    """
    task = self.parts[part].task
    labels = label_objectives.label_names(task.preprocessing)
    return forest_streams.count_targets(
      self.parts[part].splits["train"],
      task.objective(),
      self.shape.decoder_length,
      len(labels) or task.tokenizer.vocab_size,
    )

  def example_batch(self, batch_size: int) -> forest_streams.Batch:
    """A batch of padding, for shapes and types."""
    return forest_streams.stack([packing.empty_forest(self.shape)] * batch_size)

  def facts(self) -> dict[str, Any]:
    """What of the data decides a run's results: shapes, vocabulary, sources, rates."""
    settings = identity(self.config)
    for name in identity(self.config.preprocessing):
      del settings[name]  # Of each task those that it has.
    facts = {
      **settings,
      "vocabulary": self.task.tokenizer.fingerprint,
      **{f"forest.{k}": v for k, v in dataclasses.asdict(self.shape).items()},
    }
    if self.name == self.task.name:
      return facts | self.parts[0].facts()
    facts["mixture"] = ", ".join(f"{p.share} {p.task.name}" for p in self.parts)
    for part in self.parts:
      facts |= {f"{part.task.name}.{name}": v for name, v in part.facts().items()}
    return facts


def open_data(
  config: DataConfig,
  console: Console | None = None,
  splits: tuple[str, ...] | None = None,
) -> RunData:
  """Prepares what is neither prepared nor cached, and chooses the forest's shape.

  Args:
    config: the settings.
    console: told of progress and of every comment's fate.
    splits: which splits to open; the shape always follows from the first. None for
      'train' and 'validation', or 'train' alone where nothing is held out.

  Raises:
    UserError: for anything the user can mend.
  """
  console = console or Console(quiet=True)
  found = named_tasks.find(config)
  if splits is None:
    splits = ("train", "validation") if config.held_out_share else ("train",)
  for part in found:
    for split in splits:
      preparing.check_split(part.task, split)
  if config.held_out_share not in (_DEFAULT_SHARE, 0):
    for files in (config.files, *(config.corpora or {}).values()):
      if built_dataset.find(files or ()):
        console.print(
          f"HELD_OUT_SHARE = {config.held_out_share} does not apply: {files} has splits"
          " of its own",
        )
  open_split = preparing.open_cached if config.use_cached else preparing.prepare
  parts = tuple(
    TaskData(
      part.task,
      part.share,
      {split: open_split(part.task, split, config, console) for split in splits},
    )
    for part in found
  )
  shape, sample = _resolve(config, parts, splits[0])
  return RunData(config.mixture_or_task_name, parts, shape, sample, config)


def _resolve(
  config: DataConfig, parts: Sequence[TaskData], split: str
) -> tuple[forest_layout.ForestShape, forest_layout.SubtreeTotals]:
  """The forest's shape, from the sizes of all tasks' subtrees in their proportions."""
  lengths = forest_layout.row_lengths(config.task_feature_lengths)
  optional_features: dict[str, None] = {}
  for part in parts:
    objective, subtrees = part.task.objective(), part.splits[split]
    if not forest_streams.has_target(subtrees, objective, lengths[1]):
      alone = ": give others, or another objective"
      raise UserError(
        f"{part.task.name}: no comment of the split {split!r} has anything to predict"
        + (alone if len(parts) == 1 else "; leave it out of the mixture")
      )
    optional_features |= dict.fromkeys(objective.optional_features)

  samples = [
    forest_streams.Sample(
      part.splits[split], part.task.objective(), lengths, config.layout.max_ancestors
    )
    for part in parts
  ]

  def totals(shape: forest_layout.ForestShape | None) -> forest_layout.SubtreeTotals:
    each = [sample.totals(shape) for sample in samples]
    return mixing.mix_totals(each, [part.share for part in parts])

  def choose(found: forest_layout.SubtreeTotals) -> forest_layout.ForestShape:
    return forest_layout.resolve(
      config.layout, config.task_feature_lengths, found, tuple(optional_features)
    )

  return forest_layout.fit(choose, totals(None), totals)
