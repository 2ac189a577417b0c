"""Settings of the data: plain, importable without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from commentree.errors import UserError
from commentree.settings import (
  ByContent,
  MayChange,
  NonNegativeInt,
  PositiveInt,
  Share,
  check_fields,
)
from commentree.tasks import readers
from commentree.tasks.config import mixture_config
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.mixture_config import Member
from commentree.tasks.config.preprocessing import HELD_OUT_SHARE, PreprocessingConfig
from commentree.tasks.forests.forest_layout import ForestLayout, row_lengths
from commentree.tasks.objectives import label_objectives


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which trees, and how they become batches.

  Attributes:
    mixture_or_task_name: a task or mixture registered with SeqIO; 'commentree_files'
      takes `files` and `vocabulary` from here, 'commentree_mixture' `mixture` as well.
    task_feature_lengths: tokens per row, {'encoder': 128, 'decoder': 128}.
    files: tree files: one, a glob, a folder, or several; or the folder of a dataset
      made by `commentree build`.
    files_format: of `files`, as in `readers.FORMATS`; None to tell it from each.
    vocabulary: SentencePiece model or tokenizer.json for `files`, from `commentree
      vocab`.
    held_out_share: share of the trees in `files` held out for evaluation; 0 for a run
      that holds out and evaluates nothing, regardless of its data; else a dataset
      made by `commentree build` has splits of its own.
    cache_dir: where prepared data lies; None for the user's cache folder.
    use_cached: whether to read subtrees from a SeqIO cache instead of preparing them.
    seqio_additional_cache_dirs: folders that SeqIO seeks cached tasks in.
    prepare_processes: processes that prepare a built dataset; None for as many as pay.
    eval_seed: seed of the masks in evaluation.
    mixture: of the task 'commentree_mixture', rates of 'CORPUS:OBJECTIVE', 'CORPUS' or
      'OBJECTIVE'; see `mixture_config`.
    layout: the static shape of a forest.
    preprocessing: how trees become masked subtrees.
    generated: settings of generated trees.
    corpora: files or a built dataset by the corpus's name in `mixture`.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  files: ByContent[str | Sequence[str] | None] = None
  files_format: ByContent[str | None] = None
  vocabulary: ByContent[str | None] = None
  held_out_share: ByContent[Share] = HELD_OUT_SHARE
  cache_dir: MayChange[str | None] = None
  use_cached: MayChange[bool] = False
  seqio_additional_cache_dirs: MayChange[str | Sequence[str]] = ()
  prepare_processes: MayChange[PositiveInt | None] = None
  eval_seed: MayChange[NonNegativeInt] = 0
  layout: ForestLayout = ForestLayout()
  preprocessing: PreprocessingConfig = PreprocessingConfig()
  mixture: ByContent[Mapping[str, float] | None] = None
  corpora: ByContent[Mapping[str, str | Sequence[str]] | None] = None
  generated: ByContent[GeneratedTreesConfig] = GeneratedTreesConfig()

  def __post_init__(self):
    check_fields(self)
    subtrees = self.preprocessing.subtrees
    shortest = min(row_lengths(self.task_feature_lengths))
    if subtrees.sequence_ends and subtrees.max_comment_tokens > shortest:
      raise UserError(
        f"SubtreeConfig.max_comment_tokens = {subtrees.max_comment_tokens}: rows of"
        f" {shortest} tokens (TASK_FEATURE_LENGTHS) would cut off the ends of comments"
        f" that SubtreeConfig.sequence_ends asks for; set it to {shortest} or less"
      )
    if self.files_format is not None:
      readers.check_name(self.files_format)
    if not isinstance(self.mixture_or_task_name, str):
      raise UserError(
        f"MIXTURE_OR_TASK_NAME = {self.mixture_or_task_name!r}: give a task's name in"
        " quotes"
      )
    self._check_mixture()
    reads_files = any(source == mixture_config.FILES for source in self._sources())
    if reads_files and not self.files:
      raise UserError(f"FILES is missing: the task {mixture_config.FILES!r} needs it")
    if (reads_files or self.files or self.corpora) and not self.vocabulary:
      raise UserError(
        "VOCABULARY is missing: a checkpoint needs its own, prepared by `commentree"
        " vocab --from=FILE --output=PATH`; for a new model, make one by `commentree"
        f" vocab --input={'FILES' if self.files else 'CORPORA'} --output=PATH`"
      )
    label_objectives.check(self.preprocessing, self.objective_names)

  def _check_mixture(self) -> None:
    name = self.mixture_or_task_name
    if name == mixture_config.MIXTURE:
      if not isinstance(self.mixture, Mapping) or not self.mixture:
        raise UserError(
          f"MIXTURE = {self.mixture!r}: the mixture {name!r} needs rates, such as"
          " {'mlm': 0.7, 'clm': 0.3}"
        )
      if not isinstance(self.corpora or {}, Mapping):
        raise UserError(
          f"CORPORA = {self.corpora!r}: give files by name, such as"
          " {'forum': 'data/forum'}"
        )
      rates = {member.name: member.rate for member in self.members()}
      mixture_config.shares("MIXTURE", rates)
    elif self.mixture or self.corpora:
      raise UserError(
        f"{'MIXTURE' if self.mixture else 'CORPORA'} is for MIXTURE_OR_TASK_NAME ="
        f" {mixture_config.MIXTURE!r}, not {name!r}"
      )

  def members(self) -> list[Member]:
    """The tasks that these settings mix; none where they name one, or a mixture's."""
    if self.mixture_or_task_name != mixture_config.MIXTURE:
      return []
    return mixture_config.members(
      self.mixture or {}, self.corpora or {}, self.preprocessing.objective.name
    )

  def _sources(self) -> set[str]:
    return {member.source for member in self.members()} or {self.mixture_or_task_name}

  @property
  def objective_names(self) -> tuple[str, ...]:
    """What is predicted, by name; several in a mixture of objectives."""
    names = [member.objective for member in self.members()]
    return tuple(dict.fromkeys(names)) or (self.preprocessing.objective.name,)
