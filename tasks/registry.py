"""Registers comment-tree tasks with SeqIO.

    registry.add_files_task("my_forum", files="dumps/*.jsonl.gz",
                            vocabulary="my_forum.model")

makes a task that SeqIO's tools, our trainer and T5X's know by that name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import seqio

from ..errors import UserError
from . import built_dataset, generated, objectives, preprocessors, vocabularies
from .config import (
  CleaningConfig,
  CommentLabelsConfig,
  DiscourseMarkersConfig,
  LabelsConfig,
  MarkersConfig,
  TreeConfig,
)
from .generated_config import GeneratedTreesConfig
from .markers import all_markers
from .masking import MaskingConfig
from .objectives_config import ObjectiveConfig
from .pieces import PieceBuilder, PiecesConfig
from .sources import BuiltTreesSource, GeneratedTreesSource, TreeFilesSource, TreeSource

GENERATED = "commentree_generated"
FILES = "commentree_files"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How a task turns trees into masked pieces."""

  trees: TreeConfig = TreeConfig()
  cleaning: CleaningConfig = CleaningConfig()
  markers: MarkersConfig = MarkersConfig()
  pieces: PiecesConfig = PiecesConfig()
  masking: MaskingConfig = MaskingConfig()
  labels: LabelsConfig = LabelsConfig()
  discourse: DiscourseMarkersConfig = DiscourseMarkersConfig()
  comment_labels: CommentLabelsConfig = CommentLabelsConfig()
  objective: ObjectiveConfig = ObjectiveConfig()


class CommentTreeTask(seqio.Task):
  """A SeqIO task over comment trees, its parts at hand for trainer and inspection.

  Attributes:
    tree_source: where the trees come from.
    tokenizer: text to token ids.
    preprocessing: the settings.
  """

  def __init__(
    self,
    name: str,
    tree_source: TreeSource,
    tokenizer: vocabularies.Tokenizer,
    preprocessing: Preprocessing,
  ):
    """Builds the pipeline; nothing is read or trained yet."""
    self.tree_source = tree_source
    self.tokenizer = tokenizer
    self.preprocessing = preprocessing
    super().__init__(
      name,
      source=tree_source,
      preprocessors=[
        self._to_pieces,
        seqio.CacheDatasetPlaceholder(),
        self._apply_objective,
      ],
      output_features=preprocessors.output_features(
        tokenizer.vocabulary,
        objectives.features(preprocessing.objective),
        self.piece_builder().annotations,
        objectives.predicts_tokens(preprocessing.objective),
      ),
    )

  def piece_builder(self) -> PieceBuilder:
    """A fresh builder, its counts at zero."""
    config = self.preprocessing
    return PieceBuilder(
      self.tokenizer,
      config.trees,
      config.cleaning,
      config.markers,
      config.pieces,
      labels=config.labels,
      discourse=config.discourse,
      comment_labels=config.comment_labels,
    )

  def objective(self) -> objectives.Objective:
    """What is predicted of this task's comments.

    Raises:
      UserError: if its vocabulary lacks a token that the objective needs.
    """
    return objectives.build(self.preprocessing, self.tokenizer)

  def _to_pieces(self, ds):
    return preprocessors.trees_to_pieces(ds, self.piece_builder())

  def _apply_objective(self, ds, sequence_length):
    limit = self.preprocessing.pieces.max_comment_tokens
    return preprocessors.apply_objective(ds, sequence_length, self.objective(), limit)


def add_generated_task(
  name: str = GENERATED,
  config: GeneratedTreesConfig = GeneratedTreesConfig(),
  preprocessing: Preprocessing | None = None,
  cache_dir: str | None = None,
) -> CommentTreeTask:
  """Registers (or replaces) a task of generated trees with their own vocabulary.

  Masks are all `<mask>` and text is left as generated unless `preprocessing` says
  otherwise: the closed-form entropies hold for that.
  """
  preprocessing = preprocessing or Preprocessing(
    masking=MaskingConfig(mask_share=1.0, random_share=0.0)
  )
  tokenizer = vocabularies.Tokenizer(
    lambda: generated.vocabulary(config, preprocessing.markers, cache_dir)
  )
  return _register(
    CommentTreeTask(name, GeneratedTreesSource(config), tokenizer, preprocessing)
  )


def add_files_task(
  name: str,
  files: str | Sequence[str],
  vocabulary: str,
  held_out_share: float = 0.1,
  preprocessing: Preprocessing = Preprocessing(),
  files_format: str | None = None,
) -> CommentTreeTask:
  """Registers (or replaces) a task of trees in files.

  Args:
    name: what SeqIO is to know it by.
    files: a file, a glob, a folder, or several of those; or the folder of a dataset
      made by `commentree build`, which has splits of its own.
    vocabulary: a SentencePiece model or tokenizer.json, from `commentree vocab`.
    held_out_share: share of the trees in the 'validation' split.
    preprocessing: how trees become masked pieces.
    files_format: of the files, as in `readers.FORMATS`; None to tell it from each.
  """
  built = built_dataset.find(files)
  source: TreeSource
  if built is None:
    source = TreeFilesSource(files, held_out_share, preprocessing.trees, files_format)
  else:
    source = BuiltTreesSource(built)
    _check_labels(source, preprocessing.comment_labels)
  tokenizer = vocabularies.Tokenizer(
    lambda: vocabulary, all_markers(preprocessing.markers)
  )
  return _register(CommentTreeTask(name, source, tokenizer, preprocessing))


def _check_labels(source: BuiltTreesSource, labels: CommentLabelsConfig) -> None:
  """Raises UserError for labels that a dataset cannot have."""
  column = {"label": "labels", "deleted_next": "reply_deleted"}.get(labels.source)
  if column and column not in source.dataset.columns:
    raise UserError(
      f"CommentLabelsConfig.source = {labels.source!r}: {source.dataset.folder} was"
      " built before datasets noted that; build it again with `commentree build`"
    )


def get_task(name: str) -> CommentTreeTask:
  """Returns a registered task.

  Raises:
    UserError: if there is none of that name, or it is not of comment trees.
  """
  if name in seqio.MixtureRegistry.names():
    raise UserError(
      f"MIXTURE_OR_TASK_NAME = {name!r}: is a mixture; name one task of comment trees"
    )
  ours = [
    known
    for known in seqio.TaskRegistry.names()
    if isinstance(seqio.TaskRegistry.get(known), CommentTreeTask)
  ]
  if name not in ours:
    raise UserError(
      f"MIXTURE_OR_TASK_NAME = {name!r}: no such task of comment trees; there are"
      f" {', '.join(sorted(ours)) or 'none'}"
    )
  return seqio.TaskRegistry.get(name)


def _register(task: CommentTreeTask) -> CommentTreeTask:
  if task.name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add_provider(task.name, task)
  return task
