"""The settings that gin binds: every one a plain dataclass, none of them heavy."""

from __future__ import annotations

import dataclasses
import functools

import gin
from commentree.models.config import ModelConfig
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  CommentLabelsConfig,
  CommentNumbersConfig,
  DiscourseMarkersConfig,
  LabelsConfig,
  MarkersConfig,
  MaskingConfig,
  PreprocessingConfig,
  SubtreeConfig,
  TreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.training.config import (
  CheckpointConfig,
  EvalConfig,
  HealthConfig,
  PartitioningConfig,
  TrainConfig,
)
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of a run: the model, its data, its training.

  Attributes:
    model: the model.
    data: the data.
    train: the training.
  """

  model: ModelConfig
  data: DataConfig
  train: TrainConfig


@functools.cache
def register() -> tuple[type, ...]:
  """Makes the settings known to gin, once; returns them."""
  configs = (
    RunConfig,
    ModelConfig,
    DataConfig,
    ForestLayout,
    PreprocessingConfig,
    SubtreeConfig,
    MaskingConfig,
    ObjectiveConfig,
    TreeConfig,
    CleaningConfig,
    MarkersConfig,
    LabelsConfig,
    CommentLabelsConfig,
    CommentNumbersConfig,
    DiscourseMarkersConfig,
    GeneratedTreesConfig,
    TrainConfig,
    OptimizerConfig,
    ScheduleConfig,
    PartitioningConfig,
    CheckpointConfig,
    EvalConfig,
    HealthConfig,
  )
  for config in configs:
    gin.external_configurable(config, module="commentree")
  return configs
