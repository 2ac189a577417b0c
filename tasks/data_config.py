"""Settings of the data: plain, importable without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UserError
from ..models.config import check_range
from . import label_objectives, readers
from .config import (
  CleaningConfig,
  CommentLabelsConfig,
  DiscourseMarkersConfig,
  LabelsConfig,
  MarkersConfig,
  TreeConfig,
)
from .forest_layout import ForestLayout, row_lengths
from .generated_config import GeneratedTreesConfig
from .masking import MaskingConfig
from .objectives_config import ObjectiveConfig
from .pieces import PiecesConfig

if TYPE_CHECKING:
  from .registry import Preprocessing


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which trees, and how they become batches.

  Attributes:
    mixture_or_task_name: a task registered with SeqIO; 'commentree_files' takes
      `files` and `vocabulary` from here.
    task_feature_lengths: tokens per row, {'encoder': 128, 'decoder': 128}.
    files: tree files: one, a glob, a folder, or several; or the folder of a dataset
      made by `commentree build`.
    files_format: of `files`, as in `readers.FORMATS`; None to tell it from each.
    vocabulary: SentencePiece model or tokenizer.json for `files`, from `commentree
      vocab`.
    held_out_share: share of the trees in `files` held out for evaluation; a dataset
      made by `commentree build` has splits of its own.
    cache_dir: where prepared data lies; None for the user's cache folder.
    use_cached: whether to read pieces from a SeqIO cache instead of preparing them.
    seqio_additional_cache_dirs: folders that SeqIO seeks cached tasks in.
    prepare_processes: processes that prepare a built dataset; None for as many as pay.
    eval_seed: seed of the masks in evaluation.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  files: str | Sequence[str] | None = None
  files_format: str | None = None
  vocabulary: str | None = None
  held_out_share: float = 0.1
  cache_dir: str | None = None
  use_cached: bool = False
  seqio_additional_cache_dirs: str | Sequence[str] = ()
  prepare_processes: int | None = None
  eval_seed: int = 0
  layout: ForestLayout = ForestLayout()
  trees: TreeConfig = TreeConfig()
  cleaning: CleaningConfig = CleaningConfig()
  markers: MarkersConfig = MarkersConfig()
  pieces: PiecesConfig = PiecesConfig()
  masking: MaskingConfig = MaskingConfig()
  labels: LabelsConfig = LabelsConfig()
  discourse: DiscourseMarkersConfig = DiscourseMarkersConfig()
  comment_labels: CommentLabelsConfig = CommentLabelsConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  generated: GeneratedTreesConfig = GeneratedTreesConfig()

  def __post_init__(self):
    row_lengths(self.task_feature_lengths)
    check_range("DataConfig", "held_out_share", self.held_out_share, 0, 1)
    check_range("DataConfig", "eval_seed", self.eval_seed, 0, whole=True)
    if self.prepare_processes is not None:
      check_range(
        "DataConfig", "prepare_processes", self.prepare_processes, 1, whole=True
      )
    if self.files_format is not None:
      readers.check_name(self.files_format)
    if not isinstance(self.use_cached, bool):
      raise UserError(f"USE_CACHED_TASKS = {self.use_cached!r}: must be True or False")
    if not isinstance(self.mixture_or_task_name, str):
      raise UserError(
        f"MIXTURE_OR_TASK_NAME = {self.mixture_or_task_name!r}: give a task's name in"
        " quotes"
      )
    if self.mixture_or_task_name == "commentree_files":
      for field in ("files", "vocabulary"):
        if not getattr(self, field):
          raise UserError(
            f"{field.upper()} is missing: the task 'commentree_files' needs it"
          )
    if self.files and not self.vocabulary:
      raise UserError(
        "VOCABULARY is missing: make one for your FILES with `commentree vocab`"
      )
    label_objectives.check(self)

  def preprocessing(self) -> Preprocessing:
    """The part of the settings that a task is built from."""
    from .registry import Preprocessing

    return Preprocessing(
      self.trees,
      self.cleaning,
      self.markers,
      self.pieces,
      self.masking,
      self.labels,
      self.discourse,
      comment_labels=self.comment_labels,
      objective=self.objective,
    )
