"""The tasks that settings alone make, without SeqIO."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from commentree.tasks.config import mixture_config
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  HELD_OUT_SHARE,
  MaskingConfig,
  PreprocessingConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.dataset_files import built_dataset
from commentree.tasks.sources import generated
from commentree.tasks.sources.tree_sources import (
  BuiltTreesSource,
  GeneratedTreesSource,
  TreeFilesSource,
  TreeSource,
)
from commentree.tasks.tree_task import TreeTask
from commentree.tasks.trees.markers import all_markers
from commentree.tasks.vocabulary import vocabularies


def made(config: DataConfig) -> list[str]:
  """Names of the tasks that these settings make, if they do not name them all."""
  names = [mixture_config.GENERATED]
  if config.files and config.vocabulary:
    names.append(mixture_config.FILES)
  return [*names, *(member.name for member in config.members())]


def make(config: DataConfig, name: str) -> TreeTask:
  """Returns one of the tasks that settings make.

  Args:
    config: the settings.
    name: one of `made`.
  """
  source, objective = name, config.preprocessing.objective
  for member in config.members():
    if member.name == name:
      source, objective = member.source, objective.named(member.objective)
  return _make(config, name, source, objective)


def _make(
  config: DataConfig, name: str, source: str, objective: ObjectiveConfig
) -> TreeTask:
  preprocessing = dataclasses.replace(config.preprocessing, objective=objective)
  if source == mixture_config.GENERATED:
    masking = dataclasses.replace(
      preprocessing.masking, mask_share=1.0, random_share=0.0
    )
    return generated_task(
      name,
      config.generated,
      dataclasses.replace(preprocessing, masking=masking),
      config.cache_dir,
      with_sentinels="span_corruption" in config.objective_names,
    )
  files = {**(config.corpora or {}), mixture_config.FILES: config.files}[source]
  assert files is not None  # `DataConfig` sees to both
  assert config.vocabulary is not None
  return files_task(
    name,
    files,
    config.vocabulary,
    config.held_out_share,
    preprocessing,
    config.files_format,
  )


def generated_task(
  name: str,
  config: GeneratedTreesConfig = GeneratedTreesConfig(),
  preprocessing: PreprocessingConfig | None = None,
  cache_dir: str | None = None,
  *,
  with_sentinels: bool = False,
) -> TreeTask:
  """Returns a task of generated trees with their own vocabulary.

  Masks are all `<mask>` and text is left as generated unless `preprocessing` says
  otherwise: the closed-form entropies hold for that.

  Args:
    name: of the task.
    config: of the trees.
    preprocessing: how trees become subtrees, and what is predicted of them.
    cache_dir: where the vocabulary lies.
    with_sentinels: whether the vocabulary has sentinels for spans that are taken out,
      as a mixture with such a task needs of all.
  """
  preprocessing = preprocessing or PreprocessingConfig(
    masking=MaskingConfig(mask_share=1.0, random_share=0.0)
  )
  with_spans = preprocessing.objective.name == "span_corruption"
  sentinels = generated.SENTINELS if with_spans or with_sentinels else 0
  tokenizer = vocabularies.Tokenizer(
    lambda: generated.vocabulary(config, preprocessing.markers, cache_dir, sentinels)
  )
  return TreeTask(name, GeneratedTreesSource(config), tokenizer, preprocessing)


def files_task(
  name: str,
  files: str | Sequence[str],
  vocabulary: str,
  held_out_share: float = HELD_OUT_SHARE,
  preprocessing: PreprocessingConfig = PreprocessingConfig(),
  files_format: str | None = None,
) -> TreeTask:
  """Returns a task of trees in files.

  Args:
    name: of the task.
    files: a file, a glob, a folder, or several of those; or the folder of a dataset
      made by `commentree build`, which has splits of its own.
    vocabulary: a SentencePiece model or tokenizer.json, from `commentree vocab`.
    held_out_share: share of the trees in the 'validation' split.
    preprocessing: how trees become masked subtrees.
    files_format: of the files, as in `readers.FORMATS`; None to tell it from each.
  """
  built = built_dataset.find(files)
  source: TreeSource
  if built is None:
    source = TreeFilesSource(files, held_out_share, preprocessing.trees, files_format)
  else:
    source = BuiltTreesSource(built)
  tokenizer = vocabularies.Tokenizer(
    lambda: vocabulary, all_markers(preprocessing.markers)
  )
  return TreeTask(name, source, tokenizer, preprocessing)
