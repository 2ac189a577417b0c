"""Registers the tasks that a run's settings name with SeqIO."""

from __future__ import annotations

import dataclasses

from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.data_config import DataConfig
from commentree.tasks.seqio_tasks import registry


def register_tasks(config: DataConfig) -> None:
  """Makes the settings' own tasks known to SeqIO, beside those already registered."""
  add = _Adder(config)
  add(registry.GENERATED, registry.GENERATED, config.preprocessing.objective)
  if config.files and config.vocabulary:
    add(registry.FILES, registry.FILES, config.preprocessing.objective)
  members = config.members()
  for member in members:
    objective = config.preprocessing.objective.named(member.objective)
    add(member.name, member.source, objective)
  if members:
    rates = {member.name: member.rate for member in members}
    registry.add_mixture(config.mixture_or_task_name, rates)


class _Adder:
  """Registers tasks as settings say."""

  def __init__(self, config: DataConfig):
    self._config = config
    self._preprocessing = config.preprocessing
    self._files = {**(config.corpora or {}), registry.FILES: config.files}

  def __call__(self, name: str, source: str, objective: ObjectiveConfig) -> None:
    config = self._config
    preprocessing = dataclasses.replace(self._preprocessing, objective=objective)
    if source == registry.GENERATED:
      masking = dataclasses.replace(
        preprocessing.masking, mask_share=1.0, random_share=0.0
      )
      registry.add_generated_task(
        name,
        config.generated,
        dataclasses.replace(preprocessing, masking=masking),
        config.cache_dir,
        with_sentinels="span_corruption" in config.objective_names,
      )
      return
    files, vocabulary = self._files[source], config.vocabulary
    assert files is not None  # `DataConfig` sees to both
    assert vocabulary is not None
    registry.add_files_task(
      name,
      files,
      vocabulary,
      config.held_out_share,
      preprocessing,
      config.files_format,
    )
